// Serial cross-entropy kernels of the instruction set in use. The caller splits the work over
// threads; results do not depend on how.
#pragma once

#include <cstdint>

#include "cross_entropy_call.h"

namespace regops::cpu {

// What a pass over the targets finds.
struct CrossEntropyTargets {
  double weight = 0.0;     // the sum of the rows' weights (omega), ignored rows counting 0
  int64_t bad_row = -1;    // the first row whose target is neither a class nor ignored, and that
  int64_t bad_target = 0;  // target
  bool bad_is_b = false;   // of a pair's second targets
};

// Reads the targets of rows [begin, end).
CrossEntropyTargets cross_entropy_targets(const CrossEntropyCall& call, int64_t begin, int64_t end);

// Losses, lse and gradients, each where asked for, of rows [begin, end).
// Every tensor's rows lie in one piece (class stride 1).
void cross_entropy_rows(const CrossEntropyCall& call, int64_t begin, int64_t end);

// The same of columns [begin, end) of outer index `outer`: inner stride 1. Fastest where begin is a
// multiple of 64.
void cross_entropy_columns(const CrossEntropyCall& call, int64_t outer, int64_t begin, int64_t end);

// One row split over threads: first the statistics of all its blocks, in any order; then loss and
// lse; then the gradient of all its blocks, in any order. Bit-equal to cross_entropy_rows for rows
// of more than 64 classes.
struct CrossEntropyBlock;            // sums over a block; cross_entropy_block.h has it
int64_t cross_entropy_block_size();  // classes; the last block is shorter
void cross_entropy_block_sums(const CrossEntropyCall& call, int64_t row, int64_t block,
                              CrossEntropyBlock* sums);
void cross_entropy_row_loss(const CrossEntropyCall& call, int64_t row, CrossEntropyBlock* all_sums);
void cross_entropy_block_gradient(const CrossEntropyCall& call, int64_t row, int64_t block,
                                  const CrossEntropyBlock* all_sums);

}  // namespace regops::cpu
