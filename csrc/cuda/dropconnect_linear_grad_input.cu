// The input's gradient of a DropConnect layer.
//
// A thread owns a chunk of k and a tile of samples, and adds over outputs n; the warps of a block
// own the same and take different n, as do blocks, whose sums go to memory and are added by
// another kernel. Weights are read once a tile of samples, 16 bytes of bfloat16 a thread and n;
// the output's gradient lies in shared memory, where all lanes read the same word.
//
// One mask for all, 4096 x 4096 at 8 samples on an H200, by counts: 33.6 MB of bfloat16 weights and
// 2 MB of partial sums, written and read, are 8.8 us at 4.3 TB/s beside 11 us of instructions;
// float32 16.6 us beside 9.5 us. With a mask for each sample random numbers are the bound.
#include "cuda/dropconnect_linear_chunk.cuh"
#include "cuda/dropconnect_linear_launch.h"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 32 * kChunk;  // k of a block, as many as its threads
constexpr int kRows = 64;              // n for which the output's gradient is in shared memory
constexpr int kFewSamples = 8;
constexpr int kManySamples = 16;  // 128 sums a thread

// Blocks that shall fit a multiprocessor: two where memory matters most, for twice the loads in
// flight. 0 leaves the number to the compiler.
template <bool kPerSample, bool kFast, int kSamples>
constexpr int kLeastBlocks = kFast && !kPerSample && kSamples == kFewSamples ? 2 : 0;

template <class T, bool kPerSample, bool kFast, int kSamples>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<kPerSample, kFast, kSamples>)
    sum_over_outputs(const DropConnectCall call, const CudaKey cuda_key,
                     const DropConnectSplit split, int64_t sample_tiles, int64_t blocks,
                     T* grad_input, Sum<T>* partial) {
  using Real = Sum<T>;
  __shared__ Real dy[kRows][kSamples];
  __shared__ Real warp_sums[kWarps][kColumns];
  const int64_t block = block_number();
  if (block >= blocks) return;

  const Key key = cuda_key.load();
  const int64_t in_features = call.in_features, out_features = call.out_features;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Blocks that share weights are neighbours.
  const int64_t first_sample = block % sample_tiles * kSamples;
  const int64_t part = block / sample_tiles % split.parts;
  const int64_t column = block / sample_tiles / split.parts * kColumns;
  const int64_t k = column + lane * kChunk;
  const int samples = static_cast<int>(min(call.samples - first_sample, int64_t{kSamples}));
  const T* w_rows = static_cast<const T*>(call.weight);
  const T* dy_rows = static_cast<const T*>(call.grad_output) + first_sample * out_features;

  Real sum[kSamples][kChunk] = {};
  const int64_t end = min((part + 1) * split.size, out_features);
  for (int64_t step = part * split.size; step < end; step += kRows) {
    const int rows = static_cast<int>(min(end - step, int64_t{kRows}));
    __syncthreads();
    for (int e = threadIdx.x; e < kRows * kSamples; e += kThreads) {
      const int row = e % kRows, i = e / kRows;
      const bool inside = row < rows && i < samples;
      dy[row][i] = inside ? Element<T>::widen(dy_rows[i * out_features + step + row]) : Real(0);
    }
    __syncthreads();
    if (k >= in_features) continue;
#pragma unroll(kPerSample ? 1 : 2)  // loads in flight; 4 took more registers than 128
    for (int row = warp; row < rows; row += kWarps) {
      const int64_t n = step + row;
      Real w[kChunk];
      load_chunk<T, kFast>(w_rows + n * in_features, k, in_features, w);
      if constexpr (!kPerSample) {
        const uint64_t index = dropconnect_index(0, n, k, out_features, in_features);
        mask_chunk(keep_chunk<kFast>(key, index, call.rule), w, w);
      }
#pragma unroll
      for (int i = 0; i < kSamples; ++i) {
        if constexpr (kPerSample) {
          if (i >= samples) break;
          const uint64_t index =
              dropconnect_index(first_sample + i, n, k, out_features, in_features);
          Real masked[kChunk];
          mask_chunk(keep_chunk<kFast>(key, index, call.rule), w, masked);
#pragma unroll
          for (int j = 0; j < kChunk; ++j) sum[i][j] += masked[j] * dy[row][i];
        } else {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) sum[i][j] += w[j] * dy[row][i];
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kSamples; ++i) {
    if (i >= samples) break;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kChunk; ++j) warp_sums[warp][lane * kChunk + j] = sum[i][j];
    __syncthreads();
    Real total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += warp_sums[w][threadIdx.x];
    if (column + threadIdx.x >= in_features) continue;
    const int64_t at = (first_sample + i) * in_features + column + threadIdx.x;
    if (split.parts > 1) {
      partial[part * call.samples * in_features + at] = total;
    } else {
      grad_input[at] = Element<T>::round(scale_of<T>(call.rule) * total);
    }
  }
}

int64_t columns_of(const DropConnectCall& call) { return ceil_divide(call.in_features, kColumns); }

template <class T, bool kPerSample, bool kFast, int kSamples>
int launch(const DropConnectCall& call, const CudaKey& key, void* grad_input, void* partial,
           cudaStream_t stream) {
  const DropConnectSplit split = dropconnect_grad_input_split(call, kPerSample);
  const int64_t sample_tiles = ceil_divide(call.samples, kSamples);
  const int64_t blocks = sample_tiles * split.parts * columns_of(call);
  sum_over_outputs<T, kPerSample, kFast, kSamples><<<grid_of(blocks), kThreads, 0, stream>>>(
      call, key, split, sample_tiles, blocks, static_cast<T*>(grad_input),
      static_cast<Sum<T>*>(partial));
  return static_cast<int>(cudaGetLastError());
}

constexpr int kMaskedSamples = 4;  // of a tile with a mask for each

}  // namespace

DropConnectSplit dropconnect_grad_input_split(const DropConnectCall& call, bool per_sample) {
  const int tile = per_sample                    ? kMaskedSamples
                   : call.samples <= kFewSamples ? kFewSamples
                                                 : kManySamples;
  // Two blocks a multiprocessor; a warp has 4 rows or more.
  return dropconnect_split(call.out_features, 4 * kWarps,
                           ceil_divide(call.samples, tile) * columns_of(call),
                           2 * kDropConnectProcessors);
}

int dropconnect_grad_input(const DropConnectCall& call, bool per_sample, const CudaKey& key,
                           void* grad_input, void* partial, cudaStream_t stream) {
  return for_dtype(static_cast<int>(call.dtype), [&](auto type) {
    using T = decltype(type);
    auto chosen = per_sample ? launch<T, true, false, 2> : launch<T, false, false, kFewSamples>;
    if constexpr (sizeof(T) < 8) {
      if (dropconnect_is_fast(call, grad_input) && !call.rule.fine) {
        chosen = per_sample                    ? launch<T, true, true, kMaskedSamples>
                 : call.samples <= kFewSamples ? launch<T, false, true, kFewSamples>
                                               : launch<T, false, true, kManySamples>;
      }
    }
    return chosen(call, key, grad_input, partial, stream);
  });
}

}  // namespace regops
