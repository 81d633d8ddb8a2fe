// What the kernels of a DropConnect layer are told. Torch-free, for CPU and CUDA alike.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "math/dropconnect_linear.h"

namespace regops {

// All tensors are dense, in row-major order and of `dtype`.
struct DropConnectCall {
  DType dtype;
  int64_t samples, in_features, out_features;
  const void* input;        // x, (samples, in_features)
  const void* weight;       // W, (out_features, in_features)
  const void* grad_output;  // dy, (samples, out_features); backward only
  DropoutRule rule;
};

}  // namespace regops
