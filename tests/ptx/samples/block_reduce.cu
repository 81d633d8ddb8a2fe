// A block-wide sum used twice, and a staged transpose: every barrier below is needed.

#include <cuda_runtime.h>

#include "block_reduce.cuh"

// means[row] = mean(x[row, :]), deviations[row] = sum((x[row, :] - mean)^2)
__global__ void row_moments(float* means, float* deviations, const float* x, int columns) {
  __shared__ float partial[32];
  const float* row = x + static_cast<long long>(blockIdx.x) * columns;
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += row[i];
  const float mean = block_sum(sum, partial) / columns;
  float squares = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    squares += (row[i] - mean) * (row[i] - mean);
  }
  squares = block_sum(squares, partial);
  if (threadIdx.x == 0) {
    means[blockIdx.x] = mean;
    deviations[blockIdx.x] = squares;
  }
}

// Each warp reverses its 32 values in each of several rounds.
__global__ void reverse_in_warps(float* out, const float* in, int rounds) {
  __shared__ float staged[256];
  float* mine = staged + (threadIdx.x & ~31u);
  const unsigned lane = threadIdx.x & 31;
  float value = in[threadIdx.x];
#pragma unroll 1
  for (int k = 0; k < rounds; ++k) {
    mine[lane] = value;
    __syncwarp();
    value = mine[31 - lane];
    __syncwarp();
  }
  out[threadIdx.x] = value;
}

extern "C" int run_row_moments(float* means, float* deviations, const float* x, int rows,
                               int columns) {
  row_moments<<<rows, 256>>>(means, deviations, x, columns);
  return cudaGetLastError();
}

extern "C" int run_reverse_in_warps(float* out, const float* in, int rounds) {
  reverse_in_warps<<<1, 256>>>(out, in, rounds);
  return cudaGetLastError();
}
