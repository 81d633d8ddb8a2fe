// The streaming copy for benchmarks: what a memory-bound op of the same size cannot beat.
#pragma once

#include <ATen/core/Tensor.h>

namespace regops {

// A copy of a contiguous CPU tensor, allocated, threaded and stored as the ops do it.
at::Tensor copy(const at::Tensor& input);

// The same into memory that is there already.
void copy_inplace(const at::Tensor& output, const at::Tensor& input);

}  // namespace regops
