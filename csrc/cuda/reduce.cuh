// Reductions over neighbouring lanes of a warp and over a block. Every lane gets the result, the
// same bit for bit, and the order of additions is fixed.
#pragma once

#include <cuda_runtime.h>

namespace regops {

// A nan loses against any number.
__device__ __forceinline__ float maximum(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double maximum(double a, double b) { return fmax(a, b); }

// The bits of the kLanes lanes, a power of two, among which the calling one is.
template <int kLanes>
__device__ __forceinline__ unsigned lanes_mask() {
  if constexpr (kLanes == 32) {
    return ~0u;
  } else {
    return ((1u << kLanes) - 1u) << (threadIdx.x % 32 / kLanes * kLanes);
  }
}

template <int kLanes, class Real>
__device__ __forceinline__ Real lanes_max(Real x, unsigned mask) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    x = maximum(x, __shfl_xor_sync(mask, x, step));
  }
  return x;
}

template <int kLanes, class Real>
__device__ __forceinline__ Real lanes_sum(Real x, unsigned mask) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask, x, step);
  return x;
}

// Sum over a one-dimensional block of whole warps. `partial`, 32 values of shared memory, is used
// once: a second call needs its own.
template <class Real>
__device__ __forceinline__ Real block_sum(Real x, Real* partial) {
  const unsigned lane = threadIdx.x % 32;
  x = lanes_sum<32>(x, ~0u);
  if (lane == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  return lanes_sum<32>(lane < blockDim.x / 32 ? partial[lane] : Real(0), ~0u);
}

}  // namespace regops
