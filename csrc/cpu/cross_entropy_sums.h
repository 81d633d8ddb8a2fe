// First phase of cross-entropy of rows that lie in one piece: the sums of a block. Once per
// instruction set.

namespace regops::cpu::REGOPS_ISA {

constexpr int64_t kBlock = 1024;  // classes
constexpr int kUnroll = 4;        // independent sums, for latency

// How far ahead a row is asked for. 256 x 32768 fp32, loss only, in blocks of 2048: 0.19 ns an
// element with 8 KiB, as much as the block on which the first pass then waits; 0.12 with 16 KiB,
// 0.14 with 32 KiB; in cache 0.12.
constexpr int64_t kAheadBytes = 16384;

template <class Real>
static inline __attribute__((always_inline)) Real largest(const Real* x, int64_t n) {
  constexpr int kWidth = kLanes<Real>;
  constexpr Real kNone = -std::numeric_limits<Real>::infinity();
  Vector<Real> top[kUnroll];
  for (int u = 0; u < kUnroll; ++u) top[u] = splat(kNone);
  int64_t i = 0;
  for (; i + kUnroll * kWidth <= n; i += kUnroll * kWidth) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) top[u] = larger(load(x + i + u * kWidth), top[u]);
  }
  for (; i + kWidth <= n; i += kWidth) top[0] = larger(load(x + i), top[0]);
  if (i < n) top[1] = larger(load_part(x + i, n - i, kNone), top[1]);
  return largest_lane(larger(larger(top[0], top[1]), larger(top[2], top[3])));
}

template <class Real>
struct VectorSums {
  Vector<Real> sum, cross, mass, entropy;
};

// `kCount` vectors of a block from i on: stores their exponentials, adds to the sums. kPart: only
// `count` lanes of the one vector.
template <class Real, CrossEntropyValues kValues, bool kEntropy, bool kPart, int kCount>
static inline __attribute__((always_inline)) void add_vectors(const Real* x, const Real* values,
                                                              int64_t i, Vector<Real> reference,
                                                              int64_t count, Real* e,
                                                              VectorSums<Real>* sums) {
  constexpr int kWidth = kLanes<Real>;
  constexpr Real kNone = -std::numeric_limits<Real>::infinity();
  const Vector<Real> zero = {};
  Vector<Real> shifted[kCount], power[kCount];
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) {
    const Real* at = x + i + u * kWidth;
    shifted[u] = (kPart ? load_part(at, count, kNone) : load(at)) - reference;
  }
  exp_of_negative<Real>(shifted, power);
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) {
    store(e + i + u * kWidth, power[u]);
    sums[u].sum += power[u];
    if constexpr (kEntropy) sums[u].entropy += power[u] == zero ? zero : power[u] * shifted[u];
    if constexpr (kValues == CrossEntropyValues::array) {
      const Real* at = values + i + u * kWidth;
      const Vector<Real> v = kPart ? load_part(at, count, Real(0)) : load(at);
      shifted[u] *= v;
      sums[u].mass += v;
    }
    if constexpr (kPart) {
      VectorBits<Real> lane;
      for (int l = 0; l < kWidth; ++l) lane[l] = l;
      shifted[u] = lane < VectorBits<Real>{} + static_cast<uint32_t>(count) ? shifted[u] : zero;
    }
    if constexpr (kValues != CrossEntropyValues::none) sums[u].cross += shifted[u];
  }
}

// What memory a block asks for while it computes.
struct Prefetch {
  const char* input;  // the block's own, of which what is kAheadBytes behind is asked for
  char* gradient;     // the block's, where it will be written by plain stores; else null
};

template <int kBytes>
static inline __attribute__((always_inline)) void prefetch(const Prefetch& memory, int64_t at) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < kBytes; i += 64) {
    __builtin_prefetch(memory.input + kAheadBytes + at + i, 0, 0);
    if (memory.gradient != nullptr) __builtin_prefetch(memory.gradient + at + i, 1);
  }
}

// The sums of a block: n <= kBlock elements, that were kBytes each. e: their exponentials, with
// room for a whole last vector.
template <class Real, int kBytes, CrossEntropyValues kValues, bool kEntropy>
static CrossEntropyPart block_sums(const Real* x, const Real* values, int64_t n, Real reference,
                                   Real* e, const Prefetch& memory) {
  constexpr int kWidth = kLanes<Real>;
  const Vector<Real> references = splat(reference);
  VectorSums<Real> sums[kUnroll];
#pragma GCC unroll 4
  for (int u = 0; u < kUnroll; ++u) {  // "= {}" would be a memset, and keep them in memory
    sums[u].sum = Vector<Real>{};
    sums[u].cross = sums[u].mass = sums[u].entropy = sums[u].sum;
  }
  int64_t i = 0;
  for (; i + kUnroll * kWidth <= n; i += kUnroll * kWidth) {
    prefetch<kUnroll * kWidth * kBytes>(memory, i * kBytes);
    add_vectors<Real, kValues, kEntropy, false, kUnroll>(x, values, i, references, 0, e, sums);
  }
  for (; i + kWidth <= n; i += kWidth) {
    add_vectors<Real, kValues, kEntropy, false, 1>(x, values, i, references, 0, e, sums);
  }
  if (i < n) {
    add_vectors<Real, kValues, kEntropy, true, 1>(x, values, i, references, n - i, e, sums + 1);
  }
#pragma GCC unroll 4
  for (int u = 1; u < kUnroll; ++u) {
    sums[0].sum += sums[u].sum;
    sums[0].cross += sums[u].cross;
    sums[0].mass += sums[u].mass;
    sums[0].entropy += sums[u].entropy;
  }
  CrossEntropyPart part = {reference, sum_of_lanes(sums[0].sum), 0.0, 0.0, 0.0};
  if (kValues != CrossEntropyValues::none) part.cross = sum_of_lanes(sums[0].cross);
  if (kValues == CrossEntropyValues::uniform) part.mass = static_cast<double>(n);
  if (kValues == CrossEntropyValues::array) part.mass = sum_of_lanes(sums[0].mass);
  if (kEntropy) part.entropy = sum_of_lanes(sums[0].entropy);
  return part;
}

// exp(x - m), to the same bits.
template <class Real>
static void exponentials(const Real* x, Real reference, int64_t n, Real* e) {
  block_sums<Real, sizeof(Real), CrossEntropyValues::none, false>(
      x, nullptr, n, reference, e, {reinterpret_cast<const char*>(x), nullptr});
}

template <class Real>
using BlockSums = CrossEntropyPart (*)(const Real*, const Real*, int64_t, Real, Real*,
                                       const Prefetch&);

template <class Real, int kBytes>
static BlockSums<Real> block_sums_of(const CrossEntropyCall& call) {
  using Values = CrossEntropyValues;
  const bool entropy = call.entropy_weight != 0.0;
  switch (cross_entropy_values(call)) {
    case Values::none:
      return entropy ? block_sums<Real, kBytes, Values::none, true>
                     : block_sums<Real, kBytes, Values::none, false>;
    case Values::uniform:
      return entropy ? block_sums<Real, kBytes, Values::uniform, true>
                     : block_sums<Real, kBytes, Values::uniform, false>;
    case Values::array:
      break;
  }
  return entropy ? block_sums<Real, kBytes, Values::array, true>
                 : block_sums<Real, kBytes, Values::array, false>;
}

// v of classes [begin, begin + n), in `buffer` unless they are there already.
template <class Real>
static const Real* block_values(const CrossEntropyCall& call, int64_t row, int64_t begin, int64_t n,
                                Real* buffer) {
  const Real* weight = static_cast<const Real*>(call.weight);
  if (weight != nullptr) weight += begin;
  if (call.probability == nullptr) return weight;
  const int64_t at = row_offset(call.probability_strides, call.inner, row) + begin;
  read_reals(call.probability_dtype, call.probability, at, n, buffer);
  const Real keep = static_cast<Real>(call.keep), off = static_cast<Real>(call.off);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) buffer[i] = multiply_add(keep, buffer[i], off);
  if (weight != nullptr) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) buffer[i] *= weight[i];
  }
  return buffer;
}

}  // namespace regops::cpu::REGOPS_ISA
