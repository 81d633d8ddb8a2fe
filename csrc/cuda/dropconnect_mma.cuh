// What the tensor-core kernels of a DropConnect layer share: masked weights, a product of a warp,
// sums over blocks in a fixed order, and the launch.
//
// A block makes kMmaWidth columns of a result (samples, width); what these are sums over is split
// over the blocks of a column of the grid, up to kMmaMostSplits: a cluster, which adds up in its
// shared memory, or, before compute capability 9.0, blocks that write partial sums for
// `add_partials`.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>
#include <type_traits>

#include "cuda/current_device.h"
#include "cuda/dropconnect_linear_launch.h"
#include "cuda/dropconnect_mma.h"
#include "cuda/vector.cuh"

namespace regops {

constexpr int kMmaWarps = 8;
constexpr int kMmaThreads = 32 * kMmaWarps;
constexpr int kMmaWidth = 128;
constexpr int kMmaTileSamples = 8;  // of one product
constexpr int kMmaMostSplits = 8;   // blocks of a cluster; more are not portable

// All bits of the half-words of a word that drop their elements: `dropout_keep_bits` as a mask, in
// 3 instructions. A half-word less the threshold is negative where it drops; a permutation of bytes
// spreads the signs.
__device__ __forceinline__ uint32_t dropped_halves(uint32_t bits, uint32_t threshold) {
  const uint32_t lower = __dp2a_lo(bits, 0x0001u, 0u - threshold);  // 1 and 0 times the halves
  const uint32_t upper = __dp2a_lo(bits, 0x0100u, 0u - threshold);
  uint32_t dropped;
  asm("prmt.b32 %0, %1, %2, 0xFFBB;" : "=r"(dropped) : "r"(lower), "r"(upper));
  return dropped;
}

// The 8 weights of a group of random bits, the dropped ones 0; all 0 unless they exist.
template <bool kFine>
__device__ __forceinline__ uint4 masked(uint4 weight, bool exist, Key key, uint64_t group,
                                        uint32_t threshold) {
  uint32_t dropped[4];
  if constexpr (kFine) {
    const uint32_t drop = ~dropout_keep_bits<true>(key, group, threshold);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dropped[i] = (drop >> 2 * i & 1u) * 0xFFFFu | (drop >> (2 * i + 1) & 1u) * 0xFFFF0000u;
    }
  } else {
    const PhiloxBlock block = variate_block(key, group);
#pragma unroll
    for (int i = 0; i < 4; ++i) dropped[i] = dropped_halves(block.word[i], threshold);
  }
  const uint32_t all = exist ? ~0u : 0u;
  return {weight.x & ~dropped[0] & all, weight.y & ~dropped[1] & all, weight.z & ~dropped[2] & all,
          weight.w & ~dropped[3] & all};
}

// sum += a b of 16 x 16 by 16 x 8, a of two rows and two pairs of columns a lane.
template <class T>
__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t row_pair, uint32_t row8_pair,
                                         uint32_t row_pair8, uint32_t row8_pair8, uint32_t pair,
                                         uint32_t pair8) {
#define REGOPS_MULTIPLY(type)                                                \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
      : "r"(row_pair), "r"(row8_pair), "r"(row_pair8), "r"(row8_pair8), "r"(pair), "r"(pair8))
  if constexpr (std::is_same_v<T, __half>) {
    REGOPS_MULTIPLY("f16");
  } else {
    REGOPS_MULTIPLY("bf16");
  }
#undef REGOPS_MULTIPLY
}

// Vector `index`, or 0.
__device__ __forceinline__ uint4 load(const uint4* from, int index, bool exists) {
  return exists ? from[index] : uint4{};
}

template <bool kAdd, class T>
__device__ __forceinline__ T scaled(T start, float scale, float sum) {
  return Element<T>::round(kAdd ? fmaf(scale, sum, Element<T>::widen(start)) : scale * sum);
}

// result (+)= scale times the sums, in shared memory, of the blocks of this block's column.
template <bool kAdd, class T, int kSamples, int kPitch>
__device__ __forceinline__ void add_up(float (&sums)[kSamples][kPitch], int samples, int64_t width,
                                       float scale, T* result, float* partial) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kMmaWidth;
  const int count = samples * kMmaWidth;
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  // Each block of the cluster adds up its share.
  for (int i = blockIdx.y * kMmaThreads + threadIdx.x; i < count; i += gridDim.y * kMmaThreads) {
    const int sample = i / kMmaWidth, column = i % kMmaWidth;
    const bool exists = first + column < width;
    T* to = result + sample * width + first + column;
    const T start = kAdd && exists ? *to : T();  // in flight together with the parts
    float part[kMmaMostSplits], sum = 0.0f;
#pragma unroll
    for (int y = 0; y < kMmaMostSplits; ++y) {
      part[y] = y < gridDim.y ? *cluster.map_shared_rank(&sums[sample][column], y) : 0.0f;
    }
#pragma unroll
    for (int y = 0; y < kMmaMostSplits; ++y) sum += part[y];
    if (exists) *to = scaled<kAdd>(start, scale, sum);
  }
  cluster.sync();  // others read this block's shared memory
#else
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kMmaThreads) {
    const int sample = i / kMmaWidth, column = i % kMmaWidth;
    if (first + column >= width) continue;
    const int64_t at = sample * width + first + column;
    if (partial == nullptr) {
      result[at] = scaled<kAdd>(kAdd ? result[at] : T(), scale, sums[sample][column]);
    } else {
      partial[blockIdx.y * samples * width + at] = sums[sample][column];
    }
  }
#endif
}

template <bool kAdd, class T>
__global__ void __launch_bounds__(kMmaThreads)
    add_partials(const float* partial, T* result, int64_t size, int splits, float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kMmaThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + i];
  result[i] = scaled<kAdd>(kAdd ? result[i] : T(), scale, sum);
}

inline bool mma_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }

// Blocks of a column of the grid: as many as run at once, `resident` on a multiprocessor, but no
// more than `chunks`. By the shapes alone: roundings are the same on all devices.
inline int mma_splits(int64_t width, int64_t chunks, int resident) {
  const int64_t most = std::min<int64_t>(kMmaMostSplits, chunks);
  const int64_t room = resident * kDropConnectProcessors;
  int splits = 1;
  while (2 * splits <= most && 2 * splits * ceil_divide(width, kMmaWidth) <= room) splits *= 2;
  return splits;
}

inline int64_t mma_partial_bytes(int splits, int64_t samples, int64_t width) {
  const bool needed = splits > 1 && !clusters_work(current_cuda_device().capability);
  return needed ? splits * samples * width * int64_t(sizeof(float)) : 0;
}

template <bool kAdd, class T>
int launch_mma(void (*kernel)(DropConnectCall, CudaKey, T*, float*), const DropConnectCall& call,
               const CudaKey& key, T* result, int64_t width, int splits, void* workspace,
               cudaStream_t stream) {
  const bool clusters = clusters_work(current_cuda_device().capability);
  float* partial = clusters || splits == 1 ? nullptr : static_cast<float*>(workspace);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {1, static_cast<unsigned>(splits), 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ceil_divide(width, kMmaWidth)), splits);
  config.blockDim = kMmaThreads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = clusters ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, call, key, result, partial);
  if (error != cudaSuccess) return static_cast<int>(error);
  if (partial != nullptr) {
    const int64_t size = call.samples * width;
    const auto blocks = static_cast<unsigned>(ceil_divide(size, kMmaThreads));
    add_partials<kAdd>
        <<<blocks, kMmaThreads, 0, stream>>>(partial, result, size, splits, call.rule.scale);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace regops
