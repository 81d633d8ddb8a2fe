// One optimizer step on the device: the scalars, then the kernels over elements.
//
// All that changes between two steps is read on the device by the first kernel, one thread a
// parameter, which leaves 150 bytes of scalars for the blocks of the second: nothing waits for the
// host, and a graph's replays count steps and see a new learning rate, norm, scale and key.
#include "cuda/optimizer_step.h"

#include <algorithm>

#include "cuda/optimizer_step_launch.h"
#include "cuda/tensor_table.cuh"
#include "math/optimizer_step.h"

namespace regops {
namespace {

constexpr int kScalarThreads = 64;
constexpr int kCounters = 236;

struct Counter {
  float* step;
  uint64_t stream;
};

struct ScalarsCall {
  StepOptions options;
  CudaStepInputs inputs;
  StepScalars* scalars;
  int count;
  Counter counter[kCounters];
};
static_assert(sizeof(ScalarsCall) <= kParameterBytes);

__device__ __forceinline__ double load_lr(const CudaStepInputs& inputs) {
  if (inputs.lr_device == nullptr) return inputs.lr;
  if (inputs.lr_is_float64) return *static_cast<const double*>(inputs.lr_device);
  return *static_cast<const float*>(inputs.lr_device);
}

__global__ void __launch_bounds__(kScalarThreads)
    count_and_prepare(const __grid_constant__ ScalarsCall call) {
  const int t = static_cast<int>(blockIdx.x) * kScalarThreads + threadIdx.x;
  if (t >= call.count) return;
  const CudaStepInputs& inputs = call.inputs;
  const double found_inf = inputs.found_inf == nullptr ? 0.0 : *inputs.found_inf;
  const double grad_scale = inputs.grad_scale == nullptr ? 1.0 : *inputs.grad_scale;
  const double grad_norm = inputs.grad_norm == nullptr ? 0.0 : *inputs.grad_norm;
  const Counter counter = call.counter[t];
  float step = *counter.step;
  if (found_inf == 0.0) {
    step += 1.0f;
    *counter.step = step;
  }
  call.scalars[t] = step_scalars(call.options, step, load_lr(inputs), grad_norm, grad_scale,
                                 found_inf, inputs.key.load(), counter.stream);
}

void prepare(const StepOptions& options, const StepTensors* tensors, int64_t count,
             const CudaStepInputs& inputs, StepScalars* scalars, cudaStream_t stream) {
  ScalarsCall call = {options, inputs, scalars, 0, {}};
  for (int64_t first = 0; first < count; first += kCounters) {
    call.scalars = scalars + first;
    call.count = static_cast<int>(std::min<int64_t>(kCounters, count - first));
    for (int t = 0; t < call.count; ++t) {
      call.counter[t] = {tensors[first + t].step, tensors[first + t].stream};
    }
    const unsigned blocks = (call.count + kScalarThreads - 1) / kScalarThreads;
    count_and_prepare<<<blocks, kScalarThreads, 0, stream>>>(call);
  }
}

}  // namespace
}  // namespace regops

extern "C" int regops_optimizer_step_cuda(const regops::StepOptions* options,
                                          const regops::StepTensors* tensors, int64_t count,
                                          const regops::CudaStepInputs* inputs,
                                          regops::StepScalars* scalars, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  regops::prepare(*options, tensors, count, *inputs, scalars, on);
  const bool unscale = inputs->grad_scale != nullptr;
  const regops::CudaStep step = {*options, tensors, count, scalars, unscale, on};
  return regops::is_plain(step) ? regops::plain_step(step) : regops::general_step(step);
}

extern "C" int regops_optimizer_step_strided_cuda(const regops::StepOptions* options,
                                                  const regops::StepTensors* tensors,
                                                  const regops::StepLayout* layout,
                                                  const regops::CudaStepInputs* inputs,
                                                  regops::StepScalars* scalars, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  regops::prepare(*options, tensors, 1, *inputs, scalars, on);
  const bool unscale = inputs->grad_scale != nullptr;
  return regops::strided_step({*options, tensors, 1, scalars, unscale, on}, *layout);
}
