// How csrc/cuda/dropconnect_linear.cu reaches the kernels in the files beside it, which serve every
// type, shape and alignment with plain multiply-adds. Each returns a cudaError_t as int.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/dropconnect_linear.h"
#include "cuda/grid.h"
#include "cuda/vector.cuh"

namespace regops {

// Grids are shaped for the 132 multiprocessors of an H200 and not by the device at hand: partial
// sums, and so the roundings, are the same on all.
constexpr int64_t kDropConnectProcessors = 132;

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A sum over `length` terms, cut into `parts` of `size`.
struct DropConnectSplit {
  int64_t parts, size;
};

// As many parts as bring `blocks` up to `wanted`, each a multiple of `step`.
inline DropConnectSplit dropconnect_split(int64_t length, int64_t step, int64_t blocks,
                                          int64_t wanted) {
  const int64_t most = std::max<int64_t>(ceil_divide(length, step), 1);
  const int64_t parts = std::clamp<int64_t>(wanted / std::max<int64_t>(blocks, 1), 1, most);
  const int64_t size = ceil_divide(most, parts) * step;
  return {std::max<int64_t>(ceil_divide(length, size), 1), size};
}

// By the shapes alone, so that the workspace's size does not depend on pointers.
DropConnectSplit dropconnect_grad_input_split(const DropConnectCall& call, bool per_sample);
DropConnectSplit dropconnect_grad_weight_split(const DropConnectCall& call, bool per_sample);

// The kernels with kFast of dropconnect_linear_chunk.cuh take the call. `result`: what is written
// in chunks, or null.
inline bool dropconnect_is_fast(const DropConnectCall& call, const void* result) {
  return call.in_features % kDropoutGroup == 0 && is_aligned(call.input) &&
         is_aligned(call.weight) && is_aligned(result);
}

int dropconnect_output(const DropConnectCall& call, bool per_sample, const CudaKey& key,
                       void* output, cudaStream_t stream);
int dropconnect_moments(const DropConnectCall& call, void* mean, void* variance,
                        cudaStream_t stream);

// Where the split has several parts, they go to `partial`, (parts, size of the gradient) in the
// type that sums are in; otherwise the gradient itself is written.
int dropconnect_grad_input(const DropConnectCall& call, bool per_sample, const CudaKey& key,
                           void* grad_input, void* partial, cudaStream_t stream);
int dropconnect_grad_weight(const DropConnectCall& call, bool per_sample, const CudaKey& key,
                            void* grad_weight, void* partial, cudaStream_t stream);

}  // namespace regops
