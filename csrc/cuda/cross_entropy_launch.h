// How csrc/cuda/cross_entropy.cu reaches the kernels in the files beside it. Each returns a
// cudaError_t as int.
#pragma once

#include <cuda_runtime.h>

#include "cross_entropy_call.h"

namespace regops {

// What the choice of a kernel depends on.
struct CudaDevice {
  int capability;  // as in 90
  int multiprocessors;
};

// The current device; asked for once.
CudaDevice current_cuda_device();

// Whether a row of class indices fits into the registers of a block, or of a cluster of blocks.
bool cross_entropy_fits_on_chip(const CrossEntropyCall& call);

// Rows that lie in one piece and fit on chip.
int cross_entropy_on_chip(const CrossEntropyCall& call, cudaStream_t stream);

// Any rows that lie in one piece.
int cross_entropy_streamed(const CrossEntropyCall& call, cudaStream_t stream);

// Rows of any strides; fast where neighbouring rows stand side by side.
int cross_entropy_columns(const CrossEntropyCall& call, cudaStream_t stream);

// A grid of `blocks` blocks, which number themselves by `block_number`: more than fit into one
// dimension go into a second.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t kMostInX = int64_t(1) << 24;
  const int64_t x = blocks < kMostInX ? blocks : kMostInX;
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>((blocks + x - 1) / x));
}

#ifdef __CUDACC__
__device__ __forceinline__ int64_t block_number() {
  return static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
}
#endif

}  // namespace regops
