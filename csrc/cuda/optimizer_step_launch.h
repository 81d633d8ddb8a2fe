// How csrc/cuda/optimizer_step.cu reaches the kernels in the files beside it. Each returns a
// cudaError_t as int.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "optimizer_step_call.h"

namespace regops {

struct CudaStep {
  const StepOptions& options;
  const StepTensors* tensors;
  int64_t count;
  const StepScalars* scalars;  // device memory, one for each tensor
  bool unscale;                // gradients, in memory
  cudaStream_t stream;
};

// Whether a step is float32 throughout and has none of the extras that touch elements.
bool is_plain(const CudaStep& step);

int plain_step(const CudaStep& step);

int general_step(const CudaStep& step);

int strided_step(const CudaStep& step, const StepLayout& layout);

}  // namespace regops
