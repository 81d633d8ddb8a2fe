// The input's gradient of few samples and 16-bit floats, one mask for all: dx = s dy (M o W).
//
// As in dropconnect_mma_output.cu W is read once, masked in registers and multiplied by tensor
// cores, here its columns by rows n of W. A product asks a lane for pairs of neighbouring n: lane
// 4 g + t loads 8 columns of 4 rows, and byte permutations (16 for 32 weights) make pairs of them.
// These are rows 4 t to 4 t + 3 and columns 8 g to 8 g + 7 of 16 by 64, or 4 products for each 8
// samples; 32 samples take 64 sums a lane, and 64 samples a second pass over W.
//
// Two warps of a block have the columns, four its rows n; the sums of these meet one after the
// other in shared memory, as do those of the blocks over which n is split.
#include "cuda/dropconnect_mma.cuh"

namespace regops {
namespace {

constexpr int kWarpColumns = 64;
constexpr int kColumnWarps = kMmaWidth / kWarpColumns;
constexpr int kParts = kMmaWarps / kColumnWarps;  // of n
constexpr int kLaneRows = 4;
constexpr int kWarpRows = 4 * kLaneRows;
constexpr int kChunk = kParts * kWarpRows;  // n of a block's step
constexpr int kMostSamples = 32;
constexpr int kGroups = kChunk / kDropoutGroup;  // 16-byte vectors of dy a sample and step

template <class T, int kTiles, bool kFine>
__global__ void __launch_bounds__(kMmaThreads, 2)
    mma_grad_input(const __grid_constant__ DropConnectCall call, CudaKey cuda_key, T* grad_input,
                   float* partial) {
  constexpr int kSamples = kTiles * kMmaTileSamples;
  // 10 words of 16 bytes from sample to sample: what 16 lanes read together lies in 32 banks.
  constexpr int kVectors = kGroups + 2;
  __shared__ union {
    uint4 grad_output[2][kSamples][kVectors];
    float sums[kSamples][kMmaWidth + 4];
  } shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp / kColumnWarps, warp_column = warp % kColumnWarps * kWarpColumns;
  const uint4* const all_weights = static_cast<const uint4*>(call.weight);
  const uint4* const all_grads = static_cast<const uint4*>(call.grad_output);
  const uint32_t columns = static_cast<uint32_t>(call.in_features / kDropoutGroup);
  const int64_t chunks = (call.out_features + kChunk - 1) / kChunk;
  const int64_t first = chunks * blockIdx.y / gridDim.y * kChunk;
  const int64_t past = min(chunks * (blockIdx.y + 1) / gridDim.y * kChunk, call.out_features);
  int left = static_cast<int>(past - first);  // rows of W
  const Key key = cuda_key.load();

  // This lane's group of 8 columns in the first of its rows. Groups past the last repeat it; their
  // sums go nowhere.
  const int row = part * kWarpRows + lane % 4 * kLaneRows;
  const int64_t column = (int64_t(blockIdx.x) * kMmaWidth + warp_column) / kDropoutGroup + lane / 4;
  uint32_t group = static_cast<uint32_t>(first + row) * columns +
                   static_cast<uint32_t>(min(column, int64_t(columns) - 1));
  // A thread brings one vector of dy a step.
  const int sample = threadIdx.x / kGroups, vector = threadIdx.x % kGroups;
  const bool brings = sample < kSamples;
  const bool exists = brings && sample < call.samples;
  const uint4* grads =
      all_grads + ((exists ? sample : 0) * call.out_features + first) / kDropoutGroup + vector;

  uint4 weight[kLaneRows];
#pragma unroll
  for (int i = 0; i < kLaneRows; ++i) weight[i] = all_weights[row < left ? group + i * columns : 0];
  const uint4 start = load(grads, 0, exists && vector * kDropoutGroup < left);
  if (brings) shared.grad_output[0][sample][vector] = start;
  __syncthreads();

  float sum[4][kTiles][4] = {};
  int buffer = 0;
#pragma unroll 1
  while (left > 0) {
    const bool here = row < left, more = row + kChunk < left;
    grads += kGroups;
    const uint4 next = load(grads, 0, exists && vector * kDropoutGroup + kChunk < left);
    uint4 w[kLaneRows];
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      const uint32_t at = group + i * columns;
      w[i] = masked<kFine>(weight[i], here, key, at, call.rule.threshold);
      weight[i] = all_weights[more ? at + kChunk * columns : 0];
    }
    group += kChunk * columns;
    left -= kChunk;

    uint2 b[kTiles];  // dy of this lane's rows
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto* from = reinterpret_cast<const uint2*>(
          shared.grad_output[buffer][tile * kMmaTileSamples + lane / 4]);
      b[tile] = from[row / kLaneRows];
    }
    const uint32_t words[kLaneRows][4] = {{w[0].x, w[0].y, w[0].z, w[0].w},
                                          {w[1].x, w[1].y, w[1].z, w[1].w},
                                          {w[2].x, w[2].y, w[2].z, w[2].w},
                                          {w[3].x, w[3].y, w[3].z, w[3].w}};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // Columns 2 j and 2 j + 1, of rows 0 and 1, and 2 and 3.
      const uint32_t even = __byte_perm(words[0][j], words[1][j], 0x5410);
      const uint32_t odd = __byte_perm(words[0][j], words[1][j], 0x7632);
      const uint32_t even2 = __byte_perm(words[2][j], words[3][j], 0x5410);
      const uint32_t odd2 = __byte_perm(words[2][j], words[3][j], 0x7632);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply<T>(sum[j][tile], even, odd, even2, odd2, b[tile].x, b[tile].y);
      }
    }
    buffer ^= 1;
    if (brings) shared.grad_output[buffer][sample][vector] = next;
    __syncthreads();
  }

#pragma unroll 1
  for (int turn = 0; turn < kParts; ++turn) {
    if (part == turn) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = warp_column + lane / 4 * 8 + 2 * j + i / 2;
            float& to = shared.sums[tile * kMmaTileSamples + 2 * (lane % 4) + i % 2][at];
            to = turn == 0 ? sum[j][tile][i] : to + sum[j][tile][i];
          }
        }
      }
    }
    __syncthreads();
  }
  add_up<false>(shared.sums, static_cast<int>(call.samples), call.in_features, call.rule.scale,
                grad_input, partial);
}

int splits_of(const DropConnectCall& call) {
  return mma_splits(call.in_features, ceil_divide(call.out_features, kChunk), 2);
}

template <class T, int kTiles>
int launch(const DropConnectCall& call, const CudaKey& key, T* grad_input, void* workspace,
           cudaStream_t stream) {
  const auto kernel =
      call.rule.fine ? mma_grad_input<T, kTiles, true> : mma_grad_input<T, kTiles, false>;
  return launch_mma<false>(kernel, call, key, grad_input, call.in_features, splits_of(call),
                           workspace, stream);
}

template <class T>
int launch_tiles(DropConnectCall call, const CudaKey& key, void* to, void* workspace,
                 cudaStream_t stream) {
  T* grad_input = static_cast<T*>(to);
  for (int64_t samples = call.samples; samples > 0; samples -= kMostSamples) {
    call.samples = std::min<int64_t>(samples, kMostSamples);
    const auto chosen = call.samples <= 8    ? launch<T, 1>
                        : call.samples <= 16 ? launch<T, 2>
                                             : launch<T, 4>;
    const int error = chosen(call, key, grad_input, workspace, stream);
    if (error != 0) return error;
    call.grad_output = static_cast<const T*>(call.grad_output) + call.samples * call.out_features;
    grad_input += call.samples * call.in_features;
  }
  return 0;
}

}  // namespace

bool dropconnect_mma_serves_grad_input(const DropConnectCall& call) {
  // Groups of weights are counted in 32 bits.
  const int64_t groups = (call.out_features + kChunk) * (call.in_features / kDropoutGroup);
  return mma_half(call.dtype) && call.samples <= kDropConnectFewSamples &&
         groups < int64_t(1) << 32 && call.in_features % kDropoutGroup == 0 &&
         call.out_features % kDropoutGroup == 0 && is_aligned(call.grad_output) &&
         is_aligned(call.weight);
}

int64_t dropconnect_mma_grad_input_bytes(const DropConnectCall& call) {
  if (!mma_half(call.dtype)) return 0;
  const int64_t samples = std::min<int64_t>(call.samples, kMostSamples);
  return mma_partial_bytes(splits_of(call), samples, call.in_features);
}

int dropconnect_mma_grad_input(const DropConnectCall& call, const CudaKey& key, void* grad_input,
                               void* workspace, cudaStream_t stream) {
  const auto chosen =
      call.dtype == DType::float16 ? launch_tiles<__half> : launch_tiles<__nv_bfloat16>;
  return chosen(call, key, grad_input, workspace, stream);
}

}  // namespace regops
