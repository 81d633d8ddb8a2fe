// Two kernels for the build test: one that needs more registers than its launch bounds leave it,
// one that does not.

__global__ void __launch_bounds__(1024, 2) spilling(float* out, const float* in) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int round = 0; round < 3; ++round) {
#pragma unroll
    for (int i = 0; i < 96; ++i) values[i] = values[i] * values[(i * 7 + 5) % 96] + values[95 - i];
  }
#pragma unroll
  for (int i = 0; i < 96; ++i) out[i * 1024 + threadIdx.x] = values[i];
}

__global__ void lean(float* out, const float* in) { out[threadIdx.x] = 2 * in[threadIdx.x]; }
