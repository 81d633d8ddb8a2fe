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
#include "cuda/dropconnect_mma.cuh"

namespace regops {
namespace {

constexpr int kStep = 4;   // groups of 8 columns in two products, one for each of 4 lanes
constexpr int kSteps = 4;  // of a chunk: 128 bytes in flight a thread, 64 KiB in two blocks
constexpr int kChunk = kStep * kSteps;

__host__ __device__ uint32_t chunks_of(const DropConnectCall& call) {
  return static_cast<uint32_t>((call.in_features / kDropoutGroup + kChunk - 1) / kChunk);
}

// Rows of block x, and chunks of k of split y.
template <class T, int kTiles, bool kFine>
__global__ void __launch_bounds__(kMmaThreads, 2)
    mma_output(const __grid_constant__ DropConnectCall call, CudaKey cuda_key, T* output,
               float* partial) {
  constexpr int kSamples = kTiles * kMmaTileSamples;
  constexpr int kStepVectors = kSamples * 4;  // of x
  // Columns of an accumulator's fragment stand 2 rows of sums apart: 8 banks, of which a lane group
  // takes 8.
  constexpr int kPitch = kMmaWidth + 4;
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
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kMmaWidth + 16 * warp + lane / 4 + 8 * i;
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
      uint4 a[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i] = masked<kFine>(weight[step][i], exists, key, group[i], call.rule.threshold);
        weight[step][i] = all_weights[more ? group[i] + kChunk : 0];
        group[i] += kStep;
      }
      // Not sooner: its registers are needed for random numbers.
      const uint4 next = load(all_inputs + input, kChunk, brings_input && more);
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
      shared.sums[tile * kMmaTileSamples + 2 * (lane % 4) + i % 2][row] = sum[tile][i];
    }
  }
  add_up<true>(shared.sums, static_cast<int>(call.samples), call.out_features, call.rule.scale,
               output, partial);
}

// With 64 samples, where splits cost most, half as many.
int splits_of(const DropConnectCall& call) {
  return mma_splits(call.out_features, chunks_of(call), call.samples > 32 ? 1 : 2);
}

template <class T, int kTiles>
int launch(const DropConnectCall& call, const CudaKey& key, void* output, void* workspace,
           cudaStream_t stream) {
  const auto kernel = call.rule.fine ? mma_output<T, kTiles, true> : mma_output<T, kTiles, false>;
  return launch_mma<true>(kernel, call, key, static_cast<T*>(output), call.out_features,
                          splits_of(call), workspace, stream);
}

template <class T>
int launch_tiles(const DropConnectCall& call, const CudaKey& key, void* output, void* workspace,
                 cudaStream_t stream) {
  const auto chosen = call.samples <= 8    ? launch<T, 1>
                      : call.samples <= 16 ? launch<T, 2>
                      : call.samples <= 32 ? launch<T, 4>
                                           : launch<T, 8>;
  return chosen(call, key, output, workspace, stream);
}

}  // namespace

bool dropconnect_mma_serves_output(const DropConnectCall& call) {
  // Groups of weights, and of x, are counted in 32 bits.
  const int64_t rows = std::max(call.out_features, kDropConnectFewSamples);
  const bool countable = rows * (call.in_features / kDropoutGroup) < int64_t(1) << 32;
  return mma_half(call.dtype) && call.samples <= kDropConnectFewSamples && countable &&
         call.in_features % kDropoutGroup == 0 && is_aligned(call.input) && is_aligned(call.weight);
}

int64_t dropconnect_mma_output_bytes(const DropConnectCall& call) {
  return mma_half(call.dtype) ? mma_partial_bytes(splits_of(call), call.samples, call.out_features)
                              : 0;
}

int dropconnect_mma_output(const DropConnectCall& call, const CudaKey& key, void* output,
                           void* workspace, cudaStream_t stream) {
  const auto chosen =
      call.dtype == DType::float16 ? launch_tiles<__half> : launch_tiles<__nv_bfloat16>;
  return chosen(call, key, output, workspace, stream);
}

}  // namespace regops
