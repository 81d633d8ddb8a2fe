// From a torch tensor's strides to the layouts that kernels walk.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

#include "layout.h"

namespace regops {

// Of a dense tensor in any memory order. Empty when more than kMaxOuterDims dimensions are left
// after merging neighbours (more than 6 that no two stand side by side in both orders).
std::optional<PermutedLayout> permuted_layout(const at::Tensor& tensor);

}  // namespace regops
