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
#include "cpu/for_dtype.h"
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
#include "cpu/cross_entropy_sums.h"
#include "cpu/cross_entropy_gradient.h"

namespace regops::cpu::REGOPS_ISA {

constexpr int64_t kScratchBytes = 1 << 20;  // what is kept of a row: about the size of L2

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
  const CrossEntropyScalars scalars;
  const BlockSums<Real> sums_function;

  explicit RowKernel(const CrossEntropyCall& its_call)
      : call(its_call),
        kind(cross_entropy_values(its_call)),
        scalars(cross_entropy_scalars<Real>(its_call)),
        sums_function(block_sums_of<Real, sizeof(T)>(its_call)) {}

  const T* input(int64_t row) const {
    return static_cast<const T*>(call.input) + row_offset(call.input_strides, call.inner, row);
  }

  CrossEntropyRow row(int64_t index) const { return cross_entropy_row<Real>(call, scalars, index); }

  int64_t blocks() const { return (call.classes + kBlock - 1) / kBlock; }

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
    write_loss<Real>(call, scalars, index, row, all, sums, x_a, x_b);
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
    const bool from_registers = std::is_same_v<T, Real> && block.of_e_lp == Real(0);
    const bool stage = call.stream && !from_registers;
    T* out = stage ? staged + reinterpret_cast<uintptr_t>(to) % 64 / sizeof(T) : to;
    // The labels' logits, which may be overwritten: their gradients are made again, as Reals.
    Real x_label[2] = {}, e_label[2] = {}, v_label[2] = {};
    const int64_t labels[2] = {row.row.a - begin, row.row.b - begin};
    const auto is_here = [&labels, n](int l) { return labels[l] >= 0 && labels[l] < n; };
    for (int l = 0; l < 2; ++l) {
      if (!is_here(l)) continue;
      e_label[l] = e[labels[l]];
      if (x != nullptr) x_label[l] = x[labels[l]];
      if (v != nullptr) v_label[l] = v[labels[l]];
    }
    if constexpr (std::is_same_v<T, Real>) {
      if (call.stream && from_registers) {
        stream(block, kind, e, v, n, out);
      } else {
        apply(block, kind, x, e, v, n, out);
      }
    } else {
      apply(block, kind, x, e, v, n, out);
    }
    for (int l = 0; l < 2; ++l) {
      if (!is_here(l)) continue;
      Real value;
      apply<Real>(block, kind, x_label + l, e_label + l, v_label + l, 1, &value);
      if (row.row.a == row.row.b || l == 0) value -= static_cast<Real>(row.of_row.of_a);
      if (row.row.a == row.row.b || l == 1) value -= static_cast<Real>(row.of_row.of_b);
      narrow(&value, out + labels[l], 1);
    }
    if (stage) stream_run(to, out, n * sizeof(T));
  }

  void zero_gradient(int64_t row, int64_t begin, int64_t n) const {
    if (call.gradient == nullptr) return;
    std::memset(static_cast<void*>(gradient_of(row) + begin), 0, n * sizeof(T));
  }

  void run(int64_t begin, int64_t end) const {
    const int64_t blocks = this->blocks();
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
      const CrossEntropyRow row = this->row(index);
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
      const CrossEntropySums<double> sums = finished<double>(all, call.entropy_weight);
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
  const RowKernel<T> kernel(call);
  alignas(64) RealOf<T> unused[kBlock];
  *sums = {};
  if (kernel.row(row).skipped) return;
  sums->sums = kernel.sums(row, block * kBlock, unused, [] {});
}

template <class T>
static void loss_of_row(const CrossEntropyCall& call, int64_t row, CrossEntropyBlock* all_sums) {
  const RowKernel<T> kernel(call);
  merge(all_sums, kernel.blocks());
  const CrossEntropyPart& all = all_sums[0].row;
  kernel.loss(row, kernel.row(row), all, finished<double>(all, call.entropy_weight));
}

template <class T>
static void gradient_of_block(const CrossEntropyCall& call, int64_t index, int64_t block,
                              const CrossEntropyBlock* all_sums) {
  const RowKernel<T> kernel(call);
  const CrossEntropyRow row = kernel.row(index);
  if (row.gradient_is_zero) {
    kernel.zero_gradient(index, block * kBlock, kernel.block_length(block * kBlock));
    return;
  }
  const CrossEntropyPart& all = all_sums[0].row;
  const CrossEntropySums<double> sums = finished<double>(all, call.entropy_weight);
  kernel.gradient({index, row, row_gradient(call, row, all, sums)}, all_sums[block], block * kBlock,
                  nullptr);
  if (call.stream) stream_fence();
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
