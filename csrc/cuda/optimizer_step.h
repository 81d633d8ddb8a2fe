// CUDA launchers of optimizer steps and of the gradients' norm. See launch.h for the conventions.
#pragma once

#include <cstdint>

#include "cuda/key.h"
#include "optimizer_step_call.h"

namespace regops {

// What a step reads on the device, so that the host waits for nothing and a graph's replays see
// new values. A null pointer is an absent argument.
struct CudaStepInputs {
  double lr;
  const void* lr_device;  // overrides `lr`; float64 or float32
  bool lr_is_float64;
  const double* grad_norm;
  const float* grad_scale;
  const float* found_inf;
  CudaKey key;
};

struct CudaGradient {
  DType dtype;
  const void* values;
  int64_t numel;
};

}  // namespace regops

extern "C" {

// One step of `count` parameters, each tensor's elements in one piece. `tensors` is in host memory
// and may be freed on return. `scalars`, device memory, has room for `count`; it is filled by a
// first kernel, which also counts the steps up.
int regops_optimizer_step_cuda(const regops::StepOptions* options,
                               const regops::StepTensors* tensors, int64_t count,
                               const regops::CudaStepInputs* inputs, regops::StepScalars* scalars,
                               void* stream);

// The same for one parameter whose tensors have strides of their own.
int regops_optimizer_step_strided_cuda(const regops::StepOptions* options,
                                       const regops::StepTensors* tensors,
                                       const regops::StepLayout* layout,
                                       const regops::CudaStepInputs* inputs,
                                       regops::StepScalars* scalars, void* stream);

// How many doubles regops_grad_norm_cuda needs in `partial`.
int64_t regops_grad_norm_partials(const regops::CudaGradient* gradients, int64_t count);

// norm[0] = sqrt(sum of all squares).
int regops_grad_norm_cuda(const regops::CudaGradient* gradients, int64_t count, double* partial,
                          double* norm, void* stream);

}  // extern "C"
