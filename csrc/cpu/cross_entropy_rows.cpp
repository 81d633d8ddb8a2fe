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
#include "cpu/cross_entropy_row_kernel.h"

namespace regops::cpu::REGOPS_ISA {

constexpr int64_t kScratchBytes = 1 << 20;  // what is kept of a row: about the size of L2

template <class T>
static void run_rows(const CrossEntropyCall& call, int64_t begin, int64_t end) {
  using Real = RealOf<T>;
  const RowKernel<T> kernel(call);
  const int64_t blocks = kernel.blocks();
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
    kernel.gradient(pending, parts[b], b * kBlock, keep ? kept + b * kBlock : nullptr);
  };
  for (int64_t index = begin; index < end; ++index) {
    const CrossEntropyRow row = kernel.row(index);
    for (int64_t b = 0; b < blocks && !row.skipped; ++b) {
      parts[b].sums = kernel.sums(index, b * kBlock, kept + (keep ? b * kBlock : 0), [&] {
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
    kernel.loss(index, row, all, sums);
    if (!wanted) continue;
    if (row.gradient_is_zero) {
      kernel.zero_gradient(index, 0, call.classes);
      continue;
    }
    pending = {index, row, row_gradient(call, row, all, sums)};
    is_pending = delay;
    for (int64_t b = 0; b < blocks && !delay; ++b) write_pending(b);
  }
  for (int64_t b = 0; b < blocks && is_pending; ++b) write_pending(b);
  if (call.stream) stream_fence();
}

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
#define REGOPS_CALL(T) run_rows<T>(call, begin, end)
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
