// Atomics, warp-wide instructions, parameters passed by value, and the runtime functions of the
// stand-in.

#include <cuda_fp16.h>

#include <cstdint>

using u32 = uint32_t;

__global__ void atomics(u32* counters, const u32* x, float* sum, __half2* pair, int n) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  atomicAdd(counters + x[i] % 8, 1u);
  atomicMax(counters + 8, x[i]);
  atomicXor(counters + 9, x[i]);
  atomicInc(counters + 10, 6u);
  atomicCAS(counters + 11, 0u, x[i]);
  atomicAdd(sum, 0.25f);
  atomicAdd(pair, __floats2half2_rn(1.0f, 0.5f));
}
extern "C" int run_atomics(u32* counters, const u32* x, float* sum, __half2* pair, int n) {
  atomics<<<(n + 255) / 256, 256>>>(counters, x, sum, pair, n);
  return cudaGetLastError();
}

__global__ void warp_wide(u32* out, const u32* x) {
  const u32 a = x[threadIdx.x];
  out += threadIdx.x * 8;
  out[0] = __ballot_sync(~0u, a & 1);
  out[1] = __match_any_sync(~0u, a & 3);
  out[2] = __reduce_add_sync(~0u, a);
  out[3] = __reduce_min_sync(~0u, a);
  out[4] = __shfl_up_sync(~0u, a, 3, 16);
  out[5] = __shfl_down_sync(~0u, a, 5, 8);
  out[6] = __shfl_sync(~0u, a, a & 31);
  out[7] = __any_sync(~0u, a == 1) + 2 * __all_sync(~0u, a != 1);
}
extern "C" int run_warp_wide(u32* out, const u32* x) {
  warp_wide<<<1, 64>>>(out, x);
  return cudaGetLastError();
}

struct Table {
  float* out[3];
  char shift;
  int16_t length[3];
};
__global__ void by_value(const __grid_constant__ Table table, Table second, float factor) {
  const unsigned k = blockIdx.y;
  if (threadIdx.x < table.length[k]) {
    second.out[k][threadIdx.x] = threadIdx.x * factor + table.shift + blockIdx.x;
  }
}
extern "C" int run_by_value(const Table* table, float factor) {
  by_value<<<dim3(1, 3), 64>>>(*table, *table, factor);
  return cudaGetLastError();
}

__global__ void __launch_bounds__(128) bounded(float* out) { out[threadIdx.x] = 1; }
__global__ void dynamic_shared(float* out, int n) {
  extern __shared__ float dynamic[];
  dynamic[n - 1] = 3;
  out[0] = dynamic[n - 1];
}
extern "C" int run_bounded(float* out, int threads) {
  bounded<<<1, threads>>>(out);
  const int peeked = cudaPeekAtLastError();
  return peeked == cudaGetLastError() && cudaGetLastError() == 0 ? peeked : -1;
}
extern "C" int run_dynamic_shared(float* out, int n, int allow) {
  if (allow) {
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaFuncSetAttribute(dynamic_shared, limit, static_cast<int>(n * sizeof(float)));
  }
  dynamic_shared<<<1, 1, n * sizeof(float)>>>(out, n);
  return cudaGetLastError();
}
extern "C" int query_device(int* processors, int* capturing, int* blocks, const char** name) {
  int device = -1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(processors, cudaDevAttrMultiProcessorCount, device);
  cudaStreamCaptureStatus status;
  cudaStreamIsCapturing(nullptr, &status);
  *capturing = status;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, bounded, 128, 0);
  *name = cudaGetErrorName(cudaErrorInvalidConfiguration);
  return device;
}
