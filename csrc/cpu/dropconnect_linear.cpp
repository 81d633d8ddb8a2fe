// DropConnect with a mask for each sample on the CPU: 16 random bits and one (forward) or two
// (backward) multiply-adds for each sample and weight, and no mask in memory.
//
// The random bits are the bound. They are made for one sample and a few rows of W at a time, a
// "run" that stays in L1; a second loop compares, selects and multiplies. Backward makes them once
// for both gradients. AVX-512, 64 x 1024 -> 1024 float32, in ns a weight and sample: bits alone
// 0.066, forward 0.087, backward 0.107.
//
// What is reused from where: a run's rows of W (and dW) from L1 for all samples of a tile, the
// tile's x (and dx) from L2 for all rows. Longer rows than fit are cut into chunks.
//
// Every sum is of Reals and in an order that depends on the shape, the cell and the instruction set
// only: of the products of each kLanes-th element of a chunk, then over lanes in a tree, then over
// chunks; dx over even and odd rows of four; dW over samples in order.
#include "cpu/dropconnect_linear.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"

#define REGOPS_ISA_FILE "cpu/dropconnect_linear.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/philox_lanes.h"
#include "cpu/philox_run.h"
#include "cpu/vector.h"

namespace regops::cpu::REGOPS_ISA {
namespace {  // so that the linker sees no member

constexpr int kRows = 4;                 // of W side by side: an x that was read serves four
constexpr int64_t kRunDecisions = 4096;  // 8 KiB of half-words
constexpr int64_t kChunkBytes = 4096;    // four rows of W and dW are 32 KiB
constexpr int64_t kTileSamples = 64;     // x and dx of a chunk are 512 KiB, half of a small L2

// Which lanes are kept: a mask register where there are such, else all bits of a lane.
#if REGOPS_VECTOR_BYTES == 64
template <class Real>
using Keep = std::conditional_t<std::is_same_v<Real, float>, __mmask16, __mmask8>;
#else
template <class Real>
using Keep = decltype(Vector<Real>{} < Vector<Real>{});
#endif

#if REGOPS_VECTOR_BYTES < 64
// Bits in lanes as wide as a Real.
template <class Real, class Bits>
static inline __attribute__((always_inline)) VectorBits<Real> wide_bits(const Bits* bits) {
#if REGOPS_VECTOR_BYTES == 32  // GCC 12 converts by halves
  const __m128i* narrow = reinterpret_cast<const __m128i*>(bits);
  if constexpr (sizeof(Real) == 4 && sizeof(Bits) == 2) {
    return (VectorBits<Real>)_mm256_cvtepu16_epi32(_mm_loadu_si128(narrow));
  } else if constexpr (sizeof(Real) == 4) {
    return (VectorBits<Real>)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
  } else if constexpr (sizeof(Bits) == 2) {
    return (VectorBits<Real>)_mm256_cvtepu16_epi64(_mm_loadl_epi64(narrow));
  } else {
    return (VectorBits<Real>)_mm256_cvtepu32_epi64(_mm_loadu_si128(narrow));
  }
#else
  typedef Bits Narrow __attribute__((vector_size(kLanes<Real> * sizeof(Bits))));
  Narrow narrow;
  std::memcpy(&narrow, bits, sizeof narrow);
  return __builtin_convertvector(narrow, VectorBits<Real>);
#endif
}
#endif

template <class Real, class Bits>
static inline __attribute__((always_inline)) Keep<Real> keep(const Bits* bits, Bits threshold) {
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (sizeof(Real) == 4 && sizeof(Bits) == 2) {
    return _mm256_cmpge_epu16_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)),
                                   _mm256_set1_epi16(threshold));
  } else if constexpr (sizeof(Real) == 4) {
    return _mm512_cmpge_epu32_mask(_mm512_loadu_si512(bits), _mm512_set1_epi32(threshold));
  } else if constexpr (sizeof(Bits) == 2) {
    return _mm_cmpge_epu16_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits)),
                                _mm_set1_epi16(threshold));
  } else {
    return _mm256_cmpge_epu32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)),
                                   _mm256_set1_epi32(threshold));
  }
#else
  if constexpr (REGOPS_VECTOR_BYTES == 16 && sizeof(Real) == 8) {  // SSE2 compares no 64 bits
    return Keep<Real>{-int64_t{bits[0] >= threshold}, -int64_t{bits[1] >= threshold}};
  } else if constexpr (sizeof(Bits) < sizeof(Real)) {  // signed comparisons are one instruction
    return (Keep<Real>)wide_bits<Real>(bits) > Keep<Real>{} + (threshold - 1);
  } else {
    return wide_bits<Real>(bits) >= VectorBits<Real>{} + threshold;
  }
#endif
}

template <class Real>
static inline __attribute__((always_inline)) Vector<Real> value_or_zero(Keep<Real> keep,
                                                                        Vector<Real> value) {
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<Real, float>) {
    return (Vector<Real>)_mm512_maskz_mov_ps(keep, (__m512)value);
  } else {
    return (Vector<Real>)_mm512_maskz_mov_pd(keep, (__m512d)value);
  }
#else
  return (Vector<Real>)((Keep<Real>)value & keep);
#endif
}

// c, and a b where it is kept.
template <class Real>
static inline __attribute__((always_inline)) Vector<Real> add_kept(Keep<Real> keep, Vector<Real> a,
                                                                   Vector<Real> b, Vector<Real> c) {
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<Real, float>) {
    return (Vector<Real>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)c, keep);
  } else {
    return (Vector<Real>)_mm512_mask3_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c, keep);
  }
#else
  return c + value_or_zero<Real>(keep, a * b);
#endif
}

// A row's vectors are whole but the last, of which the first `count` lanes are there.
struct Whole {
  template <class Real>
  Vector<Real> load(const Real* from) const {
    return REGOPS_ISA::load(from);
  }
  template <class Real>
  void store(Real* to, Vector<Real> vector) const {
    REGOPS_ISA::store(to, vector);
  }
};

struct Part {
  int64_t count;
  template <class Real>
  Vector<Real> load(const Real* from) const {
    return load_part(from, count, Real(0));
  }
  template <class Real>
  void store(Real* to, Vector<Real> vector) const {
    store_part(to, count, vector);
  }
};

template <class Real, class Step>
static inline __attribute__((always_inline)) void for_vectors(int64_t n, Step step) {
  int64_t k = 0;
  for (; k + kLanes<Real> <= n; k += kLanes<Real>) step(k, Whole{});
  if (k < n) step(k, Part{n - k});
}

// The random bits of one sample's run: `rows` rows of W, elements [begin, begin + width) of each.
template <class Bits>
class RunBits {
 public:
  explicit RunBits(Key key) : run_(philox_run(key, 0)) {}

  void fill(uint64_t first_index, int64_t in_features, int64_t rows, int64_t width) {
    if (width == in_features) {
      stride_ = width;
      fill_row(0, first_index, rows * width);
      return;
    }
    stride_ = kChunk + kPerBlock;
    for (int64_t r = 0; r < rows; ++r) fill_row(r, first_index + r * in_features, width);
  }

  const Bits* row(int64_t r) const { return bits_ + kFirst + r * stride_; }

 private:
  static constexpr int64_t kPerBlock = 16 / sizeof(Bits);
  static constexpr int64_t kChunk = kChunkBytes / sizeof(float);
  static constexpr int64_t kFirst = 64 / sizeof(Bits);  // room for the start of a block
  static constexpr int64_t kOvershoot = (kRunOvershoot + REGOPS_VECTOR_BYTES) / sizeof(Bits);

  // A row begins where its bits do: what its first block holds of other elements goes before it.
  void fill_row(int64_t r, uint64_t index, int64_t count) {
    const int64_t skip = index % kPerBlock;
    fill_run(run_, index / kPerBlock, (skip + count + kPerBlock - 1) / kPerBlock,
             bits_ + kFirst + r * stride_ - skip);
  }

  PhiloxRun run_;
  int64_t stride_ = 0;
  alignas(64) Bits bits_[kFirst + kRunDecisions + kRows * kPerBlock + kOvershoot];
};

// One sample's pass over a run.
struct Run {
  int64_t sample, out, rows, begin, width;
};

// Calls visit(run, its random bits) for all of a cell.
template <class Real, class Bits, class Visit>
static inline __attribute__((always_inline)) void for_runs(const DropConnectCall& call, Key key,
                                                           const DropConnectCell& cell,
                                                           Visit visit) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(Real);
  const int64_t in_features = call.in_features;
  if (in_features == 0) return;
  const int64_t chunks = (in_features + kChunk - 1) / kChunk;
  const int64_t chunk =  // as equal as whole lines allow
      chunks == 1 ? in_features : ((in_features + chunks - 1) / chunks + 63) / 64 * 64;
  const int64_t rows = std::max<int64_t>(kRows, kRows * kChunk / chunk / kRows * kRows);
  RunBits<Bits> bits(key);
  for (int64_t tile = cell.sample_begin; tile < cell.sample_end; tile += kTileSamples) {
    const int64_t tile_end = std::min(tile + kTileSamples, cell.sample_end);
    for (int64_t begin = 0; begin < in_features; begin += chunk) {
      const int64_t width = std::min(chunk, in_features - begin);
      for (int64_t out = cell.out_begin; out < cell.out_end; out += rows) {
        for (int64_t sample = tile; sample < tile_end; ++sample) {
          const Run run = {sample, out, std::min(rows, cell.out_end - out), begin, width};
          bits.fill(dropconnect_index(sample, out, begin, call.out_features, in_features),
                    in_features, run.rows, width);
          visit(run, bits);
        }
      }
    }
  }
}

// ---- forward ------------------------------------------------------------------------------------

template <class Real>
struct FourOf {
  typedef Real Type __attribute__((vector_size(4 * sizeof(Real))));
};
template <class Real>
using Four = typename FourOf<Real>::Type;

// Four partial sums of a vector's lanes.
template <class Real, class V>
static inline __attribute__((always_inline)) Four<Real> fold(V vector) {
  if constexpr (sizeof(V) > sizeof(Four<Real>)) {
    return fold<Real>(half_of(vector, false) + half_of(vector, true));
  } else {
    return vector;
  }
}

// The sums of the lanes of four vectors.
template <class Real>
static inline __attribute__((always_inline)) Four<Real> sums_of_lanes(const Vector<Real>* vectors) {
  using F = Four<Real>;
  const F a = fold<Real>(vectors[0]), b = fold<Real>(vectors[1]);
  const F c = fold<Real>(vectors[2]), d = fold<Real>(vectors[3]);
  const F ab = F{a[0], a[1], b[0], b[1]} + F{a[2], a[3], b[2], b[3]};
  const F cd = F{c[0], c[1], d[0], d[1]} + F{c[2], c[3], d[2], d[3]};
  return F{ab[0], ab[2], cd[0], cd[2]} + F{ab[1], ab[3], cd[1], cd[3]};
}

// y[r] += s sum over k of M[r, k] W[r, k] x[k], for kCount rows of a run.
template <class Real, int kCount, class Bits>
static inline __attribute__((always_inline)) void products(const Real* x, const Real* weight,
                                                           int64_t in_features, int64_t width,
                                                           const RunBits<Bits>& bits, int64_t row,
                                                           Bits threshold, Real scale, Real* y) {
  const Bits* random[kCount];
  for (int r = 0; r < kCount; ++r) random[r] = bits.row(row + r);
  Vector<Real> sums[kCount] = {};
  for_vectors<Real>(width, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
    const Vector<Real> value = lanes.load(x + k);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const Keep<Real> kept = keep<Real>(random[r] + k, threshold);
      const Vector<Real> w = lanes.load(weight + r * in_features + k);
      sums[r] = multiply_add(value_or_zero<Real>(kept, w), value, sums[r]);
    }
  });
  if constexpr (kCount == 4 && kLanes<Real> >= 4) {
    Four<Real> to;
    std::memcpy(&to, y, sizeof to);
    to += scale * sums_of_lanes<Real>(sums);
    std::memcpy(y, &to, sizeof to);
  } else {
    for (int r = 0; r < kCount; ++r) y[r] += scale * static_cast<Real>(sum_of_lanes(sums[r]));
  }
}

template <class Real, class Bits>
static void forward(const DropConnectCall& call, Key key, Real* output,
                    const DropConnectCell& cell) {
  const int64_t in = call.in_features;
  const Real scale = static_cast<Real>(call.rule.scale_f64);
  const Bits threshold = static_cast<Bits>(call.rule.threshold);
  for_runs<Real, Bits>(call, key, cell, [&](const Run& run, const RunBits<Bits>& bits) {
    const Real* x = static_cast<const Real*>(call.input) + run.sample * in + run.begin;
    const Real* weight = static_cast<const Real*>(call.weight) + run.out * in + run.begin;
    Real* y = output + run.sample * call.out_features + run.out;
    int64_t r = 0;
    for (; r + kRows <= run.rows; r += kRows) {
      products<Real, kRows>(x, weight + r * in, in, run.width, bits, r, threshold, scale, y + r);
    }
    for (; r < run.rows; ++r) {
      products<Real, 1>(x, weight + r * in, in, run.width, bits, r, threshold, scale, y + r);
    }
  });
}

// ---- backward -----------------------------------------------------------------------------------

// Rows of W, and of dW where it is wanted; dx where it is wanted.
template <class Real>
struct Gradients {
  const Real* x;
  const Real* weight;
  Real* grad_input;
  Real* grad_weight;
};

// dx[k] += sum over r of M[r, k] W[r, k] g[r];   dW[r, k] += M[r, k] g[r] x[k].
template <class Real, int kCount, bool kInput, bool kWeight, class Bits>
static inline __attribute__((always_inline)) void gradients(const Gradients<Real>& at,
                                                            const Vector<Real>* g,
                                                            int64_t in_features, int64_t width,
                                                            const RunBits<Bits>& bits, int64_t row,
                                                            Bits threshold) {
  const Bits* random[kCount];
  for (int r = 0; r < kCount; ++r) random[r] = bits.row(row + r);
  for_vectors<Real>(width, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
    Vector<Real> x = {}, sums[2] = {};
    if constexpr (kWeight) x = lanes.load(at.x + k);
    if constexpr (kInput) sums[0] = lanes.load(at.grad_input + k);
    // All loads before a store: a short row's vector is in part its neighbour's, and a load would
    // wait for the neighbour's store.
    Vector<Real> products[kCount];
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      if constexpr (kWeight) products[r] = lanes.load(at.grad_weight + r * in_features + k);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
      const Keep<Real> kept = keep<Real>(random[r] + k, threshold);
      if constexpr (kInput) {
        const Vector<Real> w = lanes.load(at.weight + r * in_features + k);
        sums[r % 2] = multiply_add(value_or_zero<Real>(kept, w), g[r], sums[r % 2]);
      }
      if constexpr (kWeight) {
        lanes.store(at.grad_weight + r * in_features + k,
                    add_kept<Real>(kept, x, g[r], products[r]));
      }
    }
    if constexpr (kInput) lanes.store(at.grad_input + k, sums[0] + sums[1]);
  });
}

template <class Real, class Bits, bool kInput, bool kWeight>
static void backward(const DropConnectCall& call, Key key, Real* grad_input, Real* grad_weight,
                     const DropConnectCell& cell) {
  const int64_t in = call.in_features;
  const Real scale = static_cast<Real>(call.rule.scale_f64);
  const Bits threshold = static_cast<Bits>(call.rule.threshold);
  for_runs<Real, Bits>(call, key, cell, [&](const Run& run, const RunBits<Bits>& bits) {
    const Real* dy =
        static_cast<const Real*>(call.grad_output) + run.sample * call.out_features + run.out;
    const int64_t x_at = run.sample * in + run.begin;
    const int64_t weight_at = run.out * in + run.begin;
    const auto rows = [&](int64_t r, auto count) __attribute__((always_inline)) {
      constexpr int kCount = decltype(count)::value;
      const Gradients<Real> at = {static_cast<const Real*>(call.input) + x_at,
                                  static_cast<const Real*>(call.weight) + weight_at + r * in,
                                  kInput ? grad_input + x_at : nullptr,
                                  kWeight ? grad_weight + weight_at + r * in : nullptr};
      Vector<Real> g[kCount];
      for (int i = 0; i < kCount; ++i) g[i] = splat(scale * dy[r + i]);
      gradients<Real, kCount, kInput, kWeight>(at, g, in, run.width, bits, r, threshold);
    };
    int64_t r = 0;
    for (; r + kRows <= run.rows; r += kRows) rows(r, std::integral_constant<int, kRows>{});
    for (; r < run.rows; ++r) rows(r, std::integral_constant<int, 1>{});
  });
}

template <class Real, class Bits>
static void backward_of(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight,
                        const DropConnectCell& cell) {
  Real* dx = static_cast<Real*>(grad_input);
  Real* dw = static_cast<Real*>(grad_weight);
  if (dx != nullptr && dw != nullptr)
    return backward<Real, Bits, true, true>(call, key, dx, dw, cell);
  if (dx != nullptr) return backward<Real, Bits, true, false>(call, key, dx, dw, cell);
  if (dw != nullptr) return backward<Real, Bits, false, true>(call, key, dx, dw, cell);
}

}  // namespace

void dropconnect_forward(const DropConnectCall& call, Key key, void* output, DropConnectCell cell) {
  const auto run = [&](auto real) {
    using Real = decltype(real);
    Real* y = static_cast<Real*>(output);
    if (call.rule.fine) return forward<Real, uint32_t>(call, key, y, cell);
    return forward<Real, uint16_t>(call, key, y, cell);
  };
  return call.dtype == DType::float64 ? run(double{}) : run(float{});
}

void dropconnect_backward(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight,
                          DropConnectCell cell) {
  const auto run = [&](auto real) {
    using Real = decltype(real);
    if (call.rule.fine) {
      return backward_of<Real, uint32_t>(call, key, grad_input, grad_weight, cell);
    }
    return backward_of<Real, uint16_t>(call, key, grad_input, grad_weight, cell);
  };
  return call.dtype == DType::float64 ? run(double{}) : run(float{});
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void dropconnect_forward(const DropConnectCall& call, Key key, void* output, DropConnectCell cell) {
  REGOPS_DISPATCH_ISA(dropconnect_forward, call, key, output, cell);
}

void dropconnect_backward(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight,
                          DropConnectCell cell) {
  REGOPS_DISPATCH_ISA(dropconnect_backward, call, key, grad_input, grad_weight, cell);
}

}  // namespace regops::cpu

#endif
