// Grids of more blocks than fit into one dimension.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace regops {

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
