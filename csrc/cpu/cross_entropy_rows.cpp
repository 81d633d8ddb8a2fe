// Cross-entropy of rows that lie in one piece: one read, one write and one exponential an element.
//
// A row is walked in blocks that stay in L1. First each block's largest logit and, relative to it,
// its sums; the exponentials are kept in a scratch row in L2. Then, from the sums of all blocks,
// the gradient. Where exponentials cannot be kept, or log-probabilities are wanted too, they are
// computed again from the logits, to the same bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/cross_entropy_block.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "math/cross_entropy.h"

#define REGOPS_ISA_FILE "cpu/cross_entropy_rows.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/vector.h"
#include "cpu/exp.h"
#include "cpu/half_floats.h"
#include "cpu/reals.h"
#include "cpu/stream.h"
#include "cpu/cross_entropy_row.h"

namespace regops::cpu::REGOPS_ISA {

constexpr int64_t kBlock = 1024;            // classes
constexpr int64_t kScratchBytes = 1 << 20;  // what is kept of a row: about the size of L2
constexpr int kUnroll = 4;                  // independent sums, for latency

// How far ahead a row is asked for. 256 x 32768 fp32, loss only, in blocks of 2048: 0.19 ns an
// element with 8 KiB, as much as the block on which the first pass then waits; 0.12 with 16 KiB,
// 0.14 with 32 KiB; in cache 0.12.
constexpr int64_t kAheadBytes = 16384;

// ---- first phase: sums --------------------------------------------------------------------------

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
      shifted[u] = lane < VectorBits<Real>{} + static_cast<int32_t>(count) ? shifted[u] : zero;
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

// ---- second phase: gradients --------------------------------------------------------------------

// The row's gradient as a block sees it.
template <class Real>
struct BlockGradient {
  Real of_e, of_e_lp, of_value, of_probability;
  Real reference, to_lp;  // lp_c = x_c - reference + to_lp
};

// dl/dx of a block but for its labels. x is read only where of_e_lp != 0.
template <class Real>
static void apply(const BlockGradient<Real>& block, CrossEntropyValues kind, const Real* x,
                  const Real* e, const Real* values, int64_t n, Real* gradient) {
  const Real of_e = block.of_e, of_e_lp = block.of_e_lp, of_value = block.of_value;
  if (of_e_lp != Real(0)) {
    const Real reference = block.reference, to_lp = block.to_lp;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const Real lp = x[i] - reference + to_lp;
      const Real of_p = e[i] * multiply_add(of_e_lp, lp, of_e);
      gradient[i] = e[i] == Real(0) ? e[i] * of_e : of_p;  // 0, or nan in a row that is nan
    }
    if (kind == CrossEntropyValues::uniform) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) gradient[i] -= of_value;
    } else if (kind == CrossEntropyValues::array) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) gradient[i] -= of_value * values[i];
    }
  } else if (kind == CrossEntropyValues::none) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) gradient[i] = e[i] * of_e;
  } else if (kind == CrossEntropyValues::uniform) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) gradient[i] = multiply_add(e[i], of_e, -of_value);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      gradient[i] = multiply_add(e[i], of_e, -(of_value * values[i]));
    }
  }
}

template <class Real>
static void probability_gradient(const CrossEntropyCall& call, const BlockGradient<Real>& block,
                                 int64_t row, int64_t begin, int64_t n, const Real* x,
                                 Real* buffer) {
  const Real scale = block.of_probability, reference = block.reference, to_lp = block.to_lp;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) buffer[i] = -scale * (x[i] - reference + to_lp);
  if (call.weight != nullptr) {
    const Real* weight = static_cast<const Real*>(call.weight) + begin;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) buffer[i] *= weight[i];
  }
  const int64_t at = row_offset(call.probability_strides, call.inner, row) + begin;
  write_reals(call.probability_dtype, buffer, call.probability_gradient, at, n);
}

// ---- a row --------------------------------------------------------------------------------------

namespace {  // so that the linker sees no member

// A row whose gradient is still to be written.
struct PendingGradient {
  int64_t index;
  CrossEntropyRow row;
  CrossEntropyRowGradient of_row;
};

template <class T>
struct RowKernel {
  using Real = RealOf<T>;
  const CrossEntropyCall& call;
  const CrossEntropyValues kind;
  const BlockSums<Real> sums_function;

  explicit RowKernel(const CrossEntropyCall& its_call)
      : call(its_call),
        kind(cross_entropy_values(its_call)),
        sums_function(block_sums_of<Real, sizeof(T)>(its_call)) {}

  const T* input(int64_t row) const {
    return static_cast<const T*>(call.input) + row_offset(call.input_strides, call.inner, row);
  }

  int64_t block_length(int64_t begin) const { return std::min(kBlock, call.classes - begin); }

  // The logits as Reals, in `buffer` unless they are such already.
  static const Real* logits(const T* x, int64_t n, Real* buffer) {
    if constexpr (std::is_same_v<T, Real>) return x;
    widen(x, buffer, n);
    return buffer;
  }

  T* gradient_of(int64_t row) const {
    return static_cast<T*>(call.gradient) + row_offset(call.gradient_strides, call.inner, row);
  }

  // e: room for the block's exponentials, which are stored after before_storing().
  template <class BeforeStoring>
  CrossEntropyPart sums(int64_t row, int64_t begin, Real* e, BeforeStoring before_storing) const {
    alignas(64) Real wide[kBlock], values[kBlock];
    const int64_t n = block_length(begin);
    const T* from = input(row) + begin;
    const Real* x = logits(from, n, wide);
    const Real* v = nullptr;
    if (kind == CrossEntropyValues::array) v = block_values(call, row, begin, n, values);
    const Real top = largest(x, n);
    const Real lowest = std::numeric_limits<Real>::lowest();
    before_storing();
    const bool plain_stores = call.gradient != nullptr && !call.stream;
    return sums_function(
        x, v, n, top > lowest ? top : lowest, e,
        {reinterpret_cast<const char*>(from),
         plain_stores ? reinterpret_cast<char*>(gradient_of(row) + begin) : nullptr});
  }

  void loss(int64_t index, const CrossEntropyRow& row, const CrossEntropyPart& all,
            const CrossEntropySums<double>& sums) const {
    Real x_a = 0, x_b = 0;
    if (row.a >= 0) widen(input(index) + row.a, &x_a, 1);
    if (row.b >= 0) widen(input(index) + row.b, &x_b, 1);
    write_loss<Real>(call, index, row, all, sums, x_a, x_b);
  }

  BlockGradient<Real> block_gradient(const CrossEntropyRowGradient& of_row,
                                     const CrossEntropyBlock& sums) const {
    const double reference = sums.sums.reference;
    BlockGradient<Real> block;
    block.of_e = static_cast<Real>(of_row.of_e * sums.factor);
    block.of_e_lp = static_cast<Real>(of_row.of_e_lp * sums.factor);
    block.of_value = static_cast<Real>(of_row.of_value);
    block.of_probability = static_cast<Real>(of_row.of_probability);
    block.reference = static_cast<Real>(reference);
    block.to_lp = static_cast<Real>(reference - of_row.max - of_row.log_sum);
    return block;
  }

  // Of the block at `begin`. e: its exponentials, where they were kept.
  void gradient(const PendingGradient& row, const CrossEntropyBlock& sums, int64_t begin,
                const Real* e) const {
    const BlockGradient<Real> block = block_gradient(row.of_row, sums);
    const int64_t n = block_length(begin);
    alignas(64) Real wide[kBlock], values[kBlock], again[kBlock];
    const Real* x = nullptr;
    if (e == nullptr || block.of_e_lp != Real(0) || call.probability_gradient != nullptr) {
      x = logits(input(row.index) + begin, n, wide);
    }
    if (call.probability_gradient != nullptr) {
      probability_gradient(call, block, row.index, begin, n, x, values);
    }
    if (call.gradient == nullptr) return;
    if (e == nullptr) {
      exponentials(x, block.reference, n, again);
      e = again;
    }
    const Real* v = nullptr;
    if (kind == CrossEntropyValues::array) v = block_values(call, row.index, begin, n, values);
    T* to = gradient_of(row.index) + begin;
    // Streamed from a copy that stands to lines of memory as the gradient does.
    alignas(64) T staged[kBlock + 64 / sizeof(T)];
    T* out = call.stream ? staged + reinterpret_cast<uintptr_t>(to) % 64 / sizeof(T) : to;
    alignas(64) Real computed[kBlock];
    Real* reals;
    if constexpr (std::is_same_v<T, Real>) {
      reals = out;
    } else {
      reals = computed;
    }
    apply(block, kind, x, e, v, n, reals);
    const auto add_label = [&](int64_t label, double value) {
      if (label >= begin && label < begin + n) reals[label - begin] -= static_cast<Real>(value);
    };
    add_label(row.row.a, row.of_row.of_a);
    add_label(row.row.b, row.of_row.of_b);
    if constexpr (!std::is_same_v<T, Real>) narrow(reals, out, n);
    if (call.stream) stream_run(to, out, n * sizeof(T));
  }

  void zero_gradient(int64_t row, int64_t begin, int64_t n) const {
    if (call.gradient == nullptr) return;
    std::memset(static_cast<void*>(gradient_of(row) + begin), 0, n * sizeof(T));
  }

  void run(int64_t begin, int64_t end) const {
    const int64_t blocks = (call.classes + kBlock - 1) / kBlock;
    const int64_t parts_bytes = (blocks * sizeof(CrossEntropyBlock) + 63) / 64 * 64;
    const int64_t block_bytes = kBlock * static_cast<int64_t>(sizeof(Real));
    const bool wanted = call.gradient != nullptr || call.probability_gradient != nullptr;
    const bool keep = call.gradient != nullptr && blocks * block_bytes <= kScratchBytes &&
                      call.entropy_weight == 0.0 && call.probability_gradient == nullptr;
    // Streamed gradients of a block are written just before the next row's exponentials take the
    // place of its own: then the stores reach memory while there is arithmetic to do. 256 x 32768
    // fp32: 0.16 ns an element; 0.22 where all of a row's gradients are written at once. Plain
    // stores would hold up those to scratch that follow them.
    const bool delay = keep && call.stream;
    char* scratch =
        static_cast<char*>(thread_scratch(parts_bytes + (keep ? blocks : 1) * block_bytes));
    CrossEntropyBlock* parts = reinterpret_cast<CrossEntropyBlock*>(scratch);
    Real* kept = reinterpret_cast<Real*>(scratch + parts_bytes);
    PendingGradient pending = {};
    bool is_pending = false;
    const auto write_pending = [&](int64_t b) {
      gradient(pending, parts[b], b * kBlock, keep ? kept + b * kBlock : nullptr);
    };
    for (int64_t index = begin; index < end; ++index) {
      const CrossEntropyRow row = cross_entropy_row<Real>(call, index);
      for (int64_t b = 0; b < blocks && !row.skipped; ++b) {
        parts[b].sums = sums(index, b * kBlock, kept + (keep ? b * kBlock : 0), [&] {
          if (is_pending) write_pending(b);
        });
      }
      CrossEntropyPart all = {};
      if (!row.skipped) {
        merge(parts, blocks);
        all = parts[0].row;
        is_pending = false;
      }
      const CrossEntropySums<double> sums = finished(all);
      loss(index, row, all, sums);
      if (!wanted) continue;
      if (row.gradient_is_zero) {
        zero_gradient(index, 0, call.classes);
        continue;
      }
      pending = {index, row, row_gradient(call, row, all, sums)};
      is_pending = delay;
      for (int64_t b = 0; b < blocks && !delay; ++b) write_pending(b);
    }
    for (int64_t b = 0; b < blocks && is_pending; ++b) write_pending(b);
    if (call.stream) stream_fence();
  }
};

}  // namespace

// ---- one row over many threads ------------------------------------------------------------------

template <class T>
static void sums_of_block(const CrossEntropyCall& call, int64_t row, int64_t block,
                          CrossEntropyBlock* sums) {
  using Real = RealOf<T>;
  alignas(64) Real unused[kBlock];
  *sums = {};
  if (cross_entropy_row<Real>(call, row).skipped) return;
  sums->sums = RowKernel<T>(call).sums(row, block * kBlock, unused, [] {});
}

template <class T>
static void loss_of_row(const CrossEntropyCall& call, int64_t row, CrossEntropyBlock* all_sums) {
  merge(all_sums, (call.classes + kBlock - 1) / kBlock);
  const CrossEntropyPart& all = all_sums[0].row;
  RowKernel<T>(call).loss(row, cross_entropy_row<RealOf<T>>(call, row), all, finished(all));
}

template <class T>
static void gradient_of_block(const CrossEntropyCall& call, int64_t index, int64_t block,
                              const CrossEntropyBlock* all_sums) {
  const RowKernel<T> kernel(call);
  const CrossEntropyRow row = cross_entropy_row<RealOf<T>>(call, index);
  if (row.gradient_is_zero) {
    kernel.zero_gradient(index, block * kBlock, kernel.block_length(block * kBlock));
    return;
  }
  const CrossEntropyPart& all = all_sums[0].row;
  kernel.gradient({index, row, row_gradient(call, row, all, finished(all))}, all_sums[block],
                  block * kBlock, nullptr);
  if (call.stream) stream_fence();
}

#define REGOPS_FOR_DTYPE(dtype, call) \
  switch (dtype) {                    \
    case DType::float64:              \
      return call(double);            \
    case DType::float32:              \
      return call(float);             \
    case DType::bfloat16:             \
      return call(BFloat16);          \
    case DType::float16:              \
      return call(Half);              \
  }

void cross_entropy_many_classes(const CrossEntropyCall& call, int64_t begin, int64_t end) {
#define REGOPS_CALL(T) RowKernel<T>(call).run(begin, end)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void cross_entropy_block_sums(const CrossEntropyCall& call, int64_t row, int64_t block,
                              CrossEntropyBlock* sums) {
#define REGOPS_CALL(T) sums_of_block<T>(call, row, block, sums)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void cross_entropy_row_loss(const CrossEntropyCall& call, int64_t row,
                            CrossEntropyBlock* all_sums) {
#define REGOPS_CALL(T) loss_of_row<T>(call, row, all_sums)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void cross_entropy_block_gradient(const CrossEntropyCall& call, int64_t row, int64_t block,
                                  const CrossEntropyBlock* all_sums) {
#define REGOPS_CALL(T) gradient_of_block<T>(call, row, block, all_sums)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

int64_t cross_entropy_block_size() { return baseline::kBlock; }

int64_t cross_entropy_block_bytes() { return sizeof(CrossEntropyBlock); }

void cross_entropy_many_classes(const CrossEntropyCall& call, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(cross_entropy_many_classes, call, begin, end);
}

void cross_entropy_block_sums(const CrossEntropyCall& call, int64_t row, int64_t block,
                              CrossEntropyBlock* sums) {
  REGOPS_DISPATCH_ISA(cross_entropy_block_sums, call, row, block, sums);
}

void cross_entropy_row_loss(const CrossEntropyCall& call, int64_t row,
                            CrossEntropyBlock* all_sums) {
  REGOPS_DISPATCH_ISA(cross_entropy_row_loss, call, row, all_sums);
}

void cross_entropy_block_gradient(const CrossEntropyCall& call, int64_t row, int64_t block,
                                  const CrossEntropyBlock* all_sums) {
  REGOPS_DISPATCH_ISA(cross_entropy_block_gradient, call, row, block, all_sums);
}

}  // namespace regops::cpu

#endif
