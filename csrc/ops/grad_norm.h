// regops::grad_norm as C++ functions.
#pragma once

#include <ATen/core/Tensor.h>

namespace regops {

// For eager Python: 0 on the CPU for no gradients, which the dispatcher cannot place.
at::Tensor grad_norm_eager(const std::vector<at::Tensor>& grads);

}  // namespace regops
