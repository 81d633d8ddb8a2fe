// Random numbers of an optimizer step, a block at a time: noise, and roundings. After
// philox_lanes.h; once per instruction set.

namespace regops::cpu::REGOPS_ISA {

// Elements of a block: as many half-words as fill_blocks makes at once with 512-bit vectors, and
// seven of float32 are 7 KiB of L1.
constexpr int64_t kStepBlock = 256;

// Random words for a block and for the blocks of words that stick out at both ends.
constexpr int64_t kStepWords = kStepBlock + 8 * kFillBlocks;

// The variates of kBits bits of elements [first, first + n) of a stream.
template <class Bits>
static inline const Bits* variates(Key key, uint64_t first, int64_t n, uint32_t* words) {
  constexpr int64_t kPerBlock = 16 / sizeof(Bits);
  const int64_t skip = static_cast<int64_t>(first % kPerBlock);
  const uint64_t block = first / kPerBlock;
  const int64_t blocks = (skip + n + kPerBlock - 1) / kPerBlock;
  for (int64_t b = 0; b < blocks; b += kFillBlocks) {
    fill_blocks<kFillChains>(key, block + b, words + 4 * b);
  }
  return reinterpret_cast<const Bits*>(words) + skip;
}

// values <- values + deviation z, z standard normal.
template <class Real>
static inline void add_noise(Real* values, int64_t n, Real deviation, Key key, uint64_t first,
                             uint32_t* words) {
  // Pairs begin at even indices.
  const int64_t skip = static_cast<int64_t>(first % 2);
  const uint32_t* pairs = variates<uint32_t>(key, first - skip, skip + n, words);
  alignas(64) float normals[kStepBlock + 2];
  const int64_t count = (skip + n + 1) / 2;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const NormalPair pair = normal_pair(pairs[2 * i], pairs[2 * i + 1]);
    normals[2 * i] = pair.first;
    normals[2 * i + 1] = pair.second;
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) values[i] += deviation * static_cast<Real>(normals[skip + i]);
}

static inline void store_stochastically(DType dtype, const float* from, void* to, int64_t n,
                                        const uint16_t* random) {
  if (dtype == DType::bfloat16) {
    BFloat16* target = static_cast<BFloat16*>(to);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) target[i].bits = stochastic_bfloat16(from[i], random[i]);
  } else {
    Half* target = static_cast<Half*>(to);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) target[i].bits = stochastic_float16(from[i], random[i]);
  }
}

}  // namespace regops::cpu::REGOPS_ISA
