// Serial dropout kernels of the instruction set in use. The caller splits the work over threads.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "layout.h"
#include "math/dropout.h"

namespace regops::cpu {

struct DropoutCall {
  DType dtype;
  const void* input;
  void* output;  // may be the input
  Key key;
  DropoutRule rule;
  bool stream;  // store past the cache: for outputs larger than it that are not the input
};

// Elements [begin, end) of memory, whose logical indices are first_index, first_index + 1, ...
void dropout_run(const DropoutCall& call, int64_t begin, int64_t end, uint64_t first_index);

// A tile of one outer index of a permuted tensor. Fastest where row_begin is a multiple of 16.
void dropout_tile(const DropoutCall& call, const PermutedLayout& layout, OuterOrigin origin,
                  Tile tile);

// One Philox block, as this instruction set's vector code computes it: for known-answer tests.
void philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high, uint32_t word[4]);

// Blocks first, first + 1, ... of a key's stream, as the kernels make them: for tests.
constexpr int kVariateBlocks = 64;
void variate_blocks(Key key, uint64_t first, uint32_t words[4 * kVariateBlocks]);

}  // namespace regops::cpu
