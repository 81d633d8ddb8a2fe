// A DropConnect layer of few samples and 16-bit floats, one mask for all: y += s x (M o W)^T.
//
// W is read once and masked in registers: 2 bytes a weight, 33.5 MB and 7.8 us of a 4096 x 4096
// layer at the 4.3 TB/s of an H200. Tensor cores multiply, since 64 samples are 64 multiply-adds a
// weight and the integer units are busy: 8 weights take 40 instructions for their random bits, 16
// to mask them, and 75 in all (88 with 64 samples), 5 us of that layer.
//
// A warp owns 16 rows of W. The order of k in a sum is free, so lane 4 g + t loads 16 bytes, 8
// neighbouring weights and one block of random bits, of rows g and g + 8, and gives its pairs to
// two products of 16 x 16 by 16 x 8 as the columns that these ask of it. x is loaded by the same
// rule.
//
// The 8 warps of a block, 128 rows, share x through shared memory: of 64 samples the L2 cache
// gives 16.8 MB beside the 33.5 of W, 9 us at 5.5 TB/s; half as many rows would take 12. To occupy
// the device, k is split over up to 8 blocks, whose sums meet in a fixed order: in the shared
// memory of a cluster, or, before compute capability 9.0, in `workspace`. With 64 samples a split
// over 4 blocks moves 3 MB between multiprocessors, over 8 it would move 7 MB.
#include "cuda/dropconnect_mma.h"

#include <cooperative_groups.h>

#include <algorithm>
#include <type_traits>

#include "cuda/current_device.h"
#include "cuda/dropconnect_linear_launch.h"
#include "cuda/vector.cuh"

namespace regops {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlockRows = 16 * kWarps;
constexpr int kStep = 4;   // groups of 8 columns in two products, one for each of 4 lanes
constexpr int kSteps = 4;  // of a chunk: 128 bytes in flight a thread, 64 KiB in two blocks
constexpr int kChunk = kStep * kSteps;
constexpr int kTileSamples = 8;
constexpr int kMostSplits = 8;  // blocks of a cluster; more are not portable

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

__host__ __device__ uint32_t chunks_of(const DropConnectCall& call) {
  return static_cast<uint32_t>((call.in_features / kDropoutGroup + kChunk - 1) / kChunk);
}

template <class T>
__device__ __forceinline__ T add_scaled(T start, float scale, float sum) {
  return Element<T>::round(fmaf(scale, sum, Element<T>::widen(start)));
}

// Sums of a block's rows, in shared memory. Without clusters they go to `partial`, if k is split.
template <class T, int kSamples, int kPitch>
__device__ __forceinline__ void add_up(float (&sums)[kSamples][kPitch], const DropConnectCall& call,
                                       T* output, float* partial) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kBlockRows;
  const int count = static_cast<int>(call.samples) * kBlockRows;
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  // Each block of the cluster adds up its share.
  for (int i = blockIdx.y * kThreads + threadIdx.x; i < count; i += gridDim.y * kThreads) {
    const int sample = i / kBlockRows, row = i % kBlockRows;
    const bool exists = first_row + row < call.out_features;
    T* to = output + sample * call.out_features + first_row + row;
    const T start = exists ? *to : T();  // in flight together with the parts
    float part[kMostSplits], sum = 0.0f;
#pragma unroll
    for (int split = 0; split < kMostSplits; ++split) {
      part[split] = split < gridDim.y ? *cluster.map_shared_rank(&sums[sample][row], split) : 0.0f;
    }
#pragma unroll
    for (int split = 0; split < kMostSplits; ++split) sum += part[split];
    if (exists) *to = add_scaled(start, call.rule.scale, sum);
  }
  cluster.sync();  // others read this block's shared memory
#else
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int sample = i / kBlockRows, row = i % kBlockRows;
    if (first_row + row >= call.out_features) continue;
    const int64_t at = sample * call.out_features + first_row + row;
    if (partial == nullptr) {
      output[at] = add_scaled(output[at], call.rule.scale, sums[sample][row]);
    } else {
      partial[blockIdx.y * call.samples * call.out_features + at] = sums[sample][row];
    }
  }
#endif
}

// Rows of block x, and chunks of k of split y.
template <class T, int kTiles, bool kFine>
__global__ void __launch_bounds__(kThreads, 2)
    dropconnect_mma(const __grid_constant__ DropConnectCall call, CudaKey cuda_key, T* output,
                    float* partial) {
  constexpr int kSamples = kTiles * kTileSamples;
  constexpr int kStepVectors = kSamples * 4;  // of x
  // Columns of an accumulator's fragment stand 2 rows of sums apart: 8 banks, of which a lane group
  // takes 8.
  constexpr int kPitch = kBlockRows + 4;
  __shared__ union {
    uint4 input[2][kSteps][kStepVectors];
    float sums[kSamples][kPitch];
  } shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint4* const all_weights = static_cast<const uint4*>(call.weight);
  const uint4* const all_inputs = static_cast<const uint4*>(call.input);
  // In groups of 8 columns from here on.
  const uint32_t columns = static_cast<uint32_t>(call.in_features / kDropoutGroup);
  const uint32_t chunks = chunks_of(call);
  const uint32_t first = chunks * blockIdx.y / gridDim.y * kChunk;
  const uint32_t past = min(chunks * (blockIdx.y + 1) / gridDim.y * kChunk, columns);
  int left = static_cast<int>(past - first);
  const Key key = cuda_key.load();

  // This lane's groups of weights. Rows past the last repeat it; their sums go nowhere.
  uint32_t group[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row =
        static_cast<int64_t>(blockIdx.x) * kBlockRows + 16 * warp + lane / 4 + 8 * i;
    group[i] = static_cast<uint32_t>(min(row, call.out_features - 1)) * columns + first + lane % 4;
  }
  // A thread brings one vector of x a step: vector v lies at place v of shared memory.
  const int sample = threadIdx.x / 4;
  const bool brings = threadIdx.x < kStepVectors;
  const bool brings_input = brings && sample < call.samples;
  uint32_t input = sample * columns + first + lane % 4;

  uint4 weight[kSteps][2];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weight[step][i] = all_weights[lane % 4 + step * kStep < left ? group[i] + step * kStep : 0];
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const bool here = brings_input && lane % 4 + step * kStep < left;
    const uint4 vector = load(all_inputs + input, step * kStep, here);
    if (brings) shared.input[0][step][threadIdx.x] = vector;
  }
  __syncthreads();

  float sum[kTiles][4] = {};
  int buffer = 0;
#pragma unroll 1
  while (left > 0) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (left <= 0) break;  // keeps the steps apart: mixed, they would take more registers
      // What this step leaves free is filled for the next chunk.
      const bool exists = lane % 4 < left;
      const bool more = lane % 4 + kChunk < left;
      const uint4 next = load(all_inputs + input, kChunk, brings_input && more);
      uint4 a[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i] = masked<kFine>(weight[step][i], exists, key, group[i], call.rule.threshold);
        weight[step][i] = all_weights[more ? group[i] + kChunk : 0];
        group[i] += kStep;
      }
      input += kStep, left -= kStep;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4 b = shared.input[buffer][step][tile * 32 + lane];
        multiply<T>(sum[tile], a[0].x, a[1].x, a[0].y, a[1].y, b.x, b.y);
        multiply<T>(sum[tile], a[0].z, a[1].z, a[0].w, a[1].w, b.z, b.w);
      }
      if (brings) shared.input[buffer ^ 1][step][threadIdx.x] = next;
    }
    buffer ^= 1;
    __syncthreads();
  }

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + lane / 4 + i / 2 * 8;
      shared.sums[tile * kTileSamples + 2 * (lane % 4) + i % 2][row] = sum[tile][i];
    }
  }
  add_up(shared.sums, call, output, partial);
}

// Adds the sums of all splits, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_partials(const float* partial, T* output, int64_t size, int splits, float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + i];
  output[i] = add_scaled(output[i], scale, sum);
}

bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }

int64_t row_blocks(const DropConnectCall& call) {
  return ceil_divide(call.out_features, kBlockRows);
}

// Blocks over which k is split: as many as run at once, two on a multiprocessor; with 64 samples,
// where splits cost most, one. By the shapes alone: roundings are the same on all devices.
int splits_of(const DropConnectCall& call) {
  const int64_t resident = kDropConnectProcessors * (call.samples > 32 ? 1 : 2);
  int splits = 1;
  while (2 * splits <= std::min<int64_t>(kMostSplits, chunks_of(call)) &&
         2 * splits * row_blocks(call) <= resident) {
    splits *= 2;
  }
  return splits;
}

template <class T, int kTiles>
int launch(const DropConnectCall& call, const CudaKey& key, T* output, float* workspace,
           cudaStream_t stream) {
  const auto kernel =
      call.rule.fine ? dropconnect_mma<T, kTiles, true> : dropconnect_mma<T, kTiles, false>;
  const int splits = splits_of(call);
  const bool clusters = clusters_work(current_cuda_device().capability);
  float* partial = clusters || splits == 1 ? nullptr : workspace;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {1, static_cast<unsigned>(splits), 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(row_blocks(call)), splits);
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = clusters ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, call, key, output, partial);
  if (partial != nullptr) {
    const int64_t size = call.samples * call.out_features;
    const auto blocks = static_cast<unsigned>(ceil_divide(size, kThreads));
    add_partials<<<blocks, kThreads, 0, stream>>>(partial, output, size, splits, call.rule.scale);
  }
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int launch_tiles(const DropConnectCall& call, const CudaKey& key, void* to, void* workspace,
                 cudaStream_t stream) {
  T* output = static_cast<T*>(to);
  float* partial = static_cast<float*>(workspace);
  if (call.samples <= 8) return launch<T, 1>(call, key, output, partial, stream);
  if (call.samples <= 16) return launch<T, 2>(call, key, output, partial, stream);
  if (call.samples <= 32) return launch<T, 4>(call, key, output, partial, stream);
  return launch<T, 8>(call, key, output, partial, stream);
}

}  // namespace

bool dropconnect_mma_serves(const DropConnectCall& call) {
  // Groups of weights, and of x, are counted in 32 bits.
  const int64_t rows = std::max(call.out_features, kDropConnectFewSamples);
  const bool countable = rows * (call.in_features / kDropoutGroup) < int64_t(1) << 32;
  return is_half(call.dtype) && call.samples <= kDropConnectFewSamples && countable &&
         call.in_features % kDropoutGroup == 0 && is_aligned(call.input) && is_aligned(call.weight);
}

int64_t dropconnect_mma_workspace_bytes(const DropConnectCall& call) {
  const int splits = splits_of(call);
  const bool clusters = clusters_work(current_cuda_device().capability);
  if (!is_half(call.dtype) || clusters || splits == 1) return 0;
  return splits * call.samples * call.out_features * int64_t(sizeof(float));
}

int dropconnect_mma_output(const DropConnectCall& call, const CudaKey& key, void* output,
                           void* workspace, cudaStream_t stream) {
  const auto launch =
      call.dtype == DType::float16 ? launch_tiles<__half> : launch_tiles<__nv_bfloat16>;
  return launch(call, key, output, workspace, stream);
}

}  // namespace regops
