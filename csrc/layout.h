// A dense tensor whose memory order is not its logical (row-major) order, in a form that kernels
// can walk: channels_last, transposes and any other permutation.
//
// Random masks belong to logical indices, and memory wants to be walked in memory order. The
// dimension of logical stride 1 ("rows") is where one Philox block serves 8 neighbours; the
// dimension of memory stride 1 ("columns") is where vector loads go. All others are "outer".
// The tensor may be a slice of a larger one, whose indices its elements then have.
// Torch-free, because CPU and CUDA kernels take it by value.
#pragma once

#include <cstdint>

namespace regops {

constexpr int kMaxOuterDims = 4;

struct PermutedLayout {
  int64_t first;                                   // logical index of the first element
  int64_t rows, row_memory;                        // logical stride 1, memory stride row_memory
  int64_t columns, column_memory, column_logical;  // column_memory is 1 unless row_memory is
  int64_t outer;                                   // product of outer_size
  int outer_dims;
  int64_t outer_size[kMaxOuterDims];
  int64_t outer_memory[kMaxOuterDims];
  int64_t outer_logical[kMaxOuterDims];
};

// A part of one outer index: rows [row_begin, row_end) by columns [column_begin, column_end).
struct Tile {
  int64_t row_begin, row_end, column_begin, column_end;
};

struct OuterOrigin {
  int64_t memory, logical;
};

#ifdef __CUDACC__
__host__ __device__
#endif
    inline OuterOrigin outer_origin(const PermutedLayout& layout, int64_t index) {
  OuterOrigin origin = {0, layout.first};
  for (int d = layout.outer_dims - 1; d >= 0; --d) {
    const int64_t i = index % layout.outer_size[d];
    index /= layout.outer_size[d];
    origin.memory += i * layout.outer_memory[d];
    origin.logical += i * layout.outer_logical[d];
  }
  return origin;
}

}  // namespace regops
