// From a torch tensor's strides to the layouts that kernels walk.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "layout.h"

namespace regops {

// The logical indices of a tensor's elements: element (i0, i1, ...) has first + sum i_d strides[d].
// A slice of a larger tensor has the first index and the row-major strides of that one.
struct LogicalIndices {
  int64_t first = 0;
  std::optional<at::IntArrayRef> strides;  // none: row-major, of the tensor itself
};

// Of a dense tensor in any memory order. Empty when more than kMaxOuterDims dimensions are left
// after merging neighbours (more than 6 that no two stand side by side in both orders).
std::optional<PermutedLayout> permuted_layout(const at::Tensor& tensor,
                                              const LogicalIndices& indices = {});

// Whether logical indices follow each other in memory, from layout.first on.
inline bool is_run(const PermutedLayout& layout) {
  return layout.row_memory == 1 && layout.columns == 1 && layout.outer == 1;
}

}  // namespace regops
