// A run of consecutive Philox blocks. After philox_lanes.h; once per instruction set.
//
// The blocks that fill_blocks makes, in 0.066 ns a half-word instead of 0.097 (AVX-512), by three
// means: the keys of the rounds lie in memory, from where instructions broadcast them (made of the
// seed each time, they cost 20 of 300 vector instructions a group); the two rounds in which half of
// a block is equal for all counters compute that half once; and six chains advance together.

namespace regops::cpu::REGOPS_ISA {
namespace {  // so that the linker sees no member

// What the blocks of a key with the same upper half of the counter share. In rounds 1-3 the parts
// of the block that do not depend on the lower half are constants, and merge into the round's keys.
struct PhiloxRun {
  Key key;
  uint32_t counter_high;                              // upper half of the blocks' index
  uint64_t key0[kPhiloxRounds], key1[kPhiloxRounds];  // 32 bits each, zero above
};

}  // namespace

static inline PhiloxRun philox_run(Key key, uint32_t counter_high) {
  PhiloxRun run;
  run.key = key;
  run.counter_high = counter_high;
  const uint64_t seed = key.seed ^ kDomainVariates;
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    run.key0[round] = k0;
    run.key1[round] = k1;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  // First round: c1, c2 and c3 are constants, and so are the new c0 and c1.
  const uint32_t c1 = counter_high;
  const uint32_t c2 = static_cast<uint32_t>(key.offset);
  const uint32_t c3 = static_cast<uint32_t>(key.offset >> 32);
  const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
  const uint32_t c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ run.key0[0];
  run.key1[0] ^= c3;
  run.key0[1] ^= static_cast<uint32_t>(product1);
  // Second: the product of c0 is a constant, whose lower half is c3 of the third round.
  const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
  run.key1[1] ^= product0 >> 32;
  run.key1[2] ^= static_cast<uint32_t>(product0);
  return run;
}

// A product's upper word, and its lower word in the upper half: the words that a last round leaves
// in c0 and c1 (or c2 and c3), side by side. `other` and `key` enter the first of them.
static inline __attribute__((always_inline)) Lanes last_words(Lanes product, Lanes other,
                                                              Lanes key) {
#if REGOPS_VECTOR_BYTES == 64
  const __m512i swapped = _mm512_rol_epi64((__m512i)product, 32);
  return (Lanes)_mm512_mask_ternarylogic_epi32(swapped, 0x5555, (__m512i)other, (__m512i)key, 0x96);
#else
#if REGOPS_VECTOR_BYTES == 32
  const Lanes swapped = (Lanes)_mm256_shuffle_epi32((__m256i)product, 0xB1);
#elif defined(__SSE2__)
  const Lanes swapped = (Lanes)_mm_shuffle_epi32((__m128i)product, 0xB1);
#else
  const Lanes swapped = (product >> 32) | (product << 32);
#endif
  return swapped ^ (other & 0xFFFFFFFFu) ^ key;
#endif
}

// kChains * kPhiloxLanes blocks, whose indices first, first + 1, ... share their upper half.
template <int kChains>
static inline __attribute__((always_inline)) void run_group(const PhiloxRun& run, uint64_t first,
                                                            void* blocks) {
  const Lanes multiplier0 = Lanes{} + kPhiloxMultiplier0;
  const Lanes multiplier1 = Lanes{} + kPhiloxMultiplier1;
  Lanes index = block_order() + first;
  Lanes c0[kChains], c1[kChains], c2[kChains], c3[kChains];
#pragma GCC unroll 8
  for (int u = 0; u < kChains; ++u) {  // the first two rounds
    const Lanes product = multiply_words(index, multiplier0);
    const Lanes product1 = multiply_words((product >> 32) ^ (Lanes{} + run.key1[0]), multiplier1);
    c0[u] = (product1 >> 32) ^ (Lanes{} + run.key0[1]);
    c1[u] = product1;
    c2[u] = product ^ (Lanes{} + run.key1[1]);
    c3[u] = Lanes{};  // a constant, in key1[2]
    index += kPhiloxLanes;
  }
#pragma GCC unroll 10
  for (int round = 2; round < kPhiloxRounds - 1; ++round) {
#pragma GCC unroll 8
    for (int u = 0; u < kChains; ++u) {
      const Lanes product0 = multiply_words(c0[u], multiplier0);
      const Lanes product1 = multiply_words(c2[u], multiplier1);
      c0[u] = (product1 >> 32) ^ c1[u] ^ (Lanes{} + run.key0[round]);
      c1[u] = product1;
      c2[u] = (product0 >> 32) ^ c3[u] ^ (Lanes{} + run.key1[round]);
      c3[u] = product0;
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < kChains; ++u) {
    const Lanes product0 = multiply_words(c0[u], multiplier0);
    const Lanes product1 = multiply_words(c2[u], multiplier1);
    const Lanes low = last_words(product1, c1[u], Lanes{} + run.key0[kPhiloxRounds - 1]);
    const Lanes high = last_words(product0, c3[u], Lanes{} + run.key1[kPhiloxRounds - 1]);
    const Lanes halves[2] = {even_lanes(low, high), odd_lanes(low, high)};
    std::memcpy(static_cast<char*>(blocks) + u * sizeof halves, halves, sizeof halves);
  }
}

// Chains of a group: the AVX-512 registers hold six.
constexpr int kRunChains = REGOPS_VECTOR_BYTES == 64 ? 6 : 4;

// What fill_run writes behind the last block that it is asked for, at most.
constexpr int64_t kRunOvershoot = (kRunChains * kPhiloxLanes - 1) * 16;  // bytes

// At least blocks [first, first + count) of the key of `run`, in memory order.
static void fill_run(PhiloxRun& run, uint64_t first, int64_t count, void* blocks) {
  char* to = static_cast<char*>(blocks);
  while (count > 0) {
    const int64_t chains = (count + kPhiloxLanes - 1) / kPhiloxLanes;
    int64_t done;
    if (first >> 32 != run.counter_high) run = philox_run(run.key, first >> 32);
    if ((first + kRunChains * kPhiloxLanes - 1) >> 32 != run.counter_high) {
      fill_blocks<1>(run.key, first, to);  // a group that crosses from one upper half to the next
      done = 1;
    } else if (chains > 4) {
      run_group<kRunChains>(run, first, to);
      done = kRunChains;
    } else if (chains > 2) {
      run_group<4>(run, first, to);
      done = 4;
    } else if (chains == 2) {
      run_group<2>(run, first, to);
      done = 2;
    } else {
      run_group<1>(run, first, to);
      done = 1;
    }
    to += done * kPhiloxLanes * 16;
    first += done * kPhiloxLanes;
    count -= done * kPhiloxLanes;
  }
}

}  // namespace regops::cpu::REGOPS_ISA
