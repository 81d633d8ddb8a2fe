// The weight's gradient of a DropConnect layer.
//
// A thread owns a chunk of k for 4 or 8 outputs n, and adds over samples; x comes through the
// caches, for warps of a block have the same k, and the output's gradient from shared memory. Each
// gradient is written once, 16 bytes of bfloat16 a thread and n.
//
// One mask for all is applied to the sums: of 4096 x 4096 at 8 samples on an H200, by counts, 7.8
// us at 4.3 TB/s to write bfloat16 beside 12 us of instructions, float32 15.6 us beside 11 us. A
// mask for each sample selects which of its products are added; random numbers are the bound.
#include "cuda/dropconnect_linear_chunk.cuh"
#include "cuda/dropconnect_linear_launch.h"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 32 * kChunk;  // k of a block
constexpr int kSamples = 32;           // whose gradients are in shared memory

template <class T, bool kPerSample, bool kFast, int kOuts>
__global__ void __launch_bounds__(kThreads)
    sum_over_samples(const DropConnectCall call, const CudaKey cuda_key,
                     const DropConnectSplit split, int64_t out_tiles, int64_t blocks,
                     T* grad_weight, Sum<T>* partial) {
  using Real = Sum<T>;
  constexpr int kBlockOuts = kWarps * kOuts;
  __shared__ Real dy[kSamples][kBlockOuts];
  const int64_t block = block_number();
  if (block >= blocks) return;

  const Key key = cuda_key.load();
  const int64_t in_features = call.in_features, out_features = call.out_features;
  const int warp_out = threadIdx.x / 32 * kOuts;
  const int64_t block_out = block % out_tiles * kBlockOuts;
  const int64_t part = block / out_tiles % split.parts;
  const int64_t k = block / out_tiles / split.parts * kColumns + threadIdx.x % 32 * kChunk;
  const T* x_rows = static_cast<const T*>(call.input);
  const T* dy_rows = static_cast<const T*>(call.grad_output);

  Real sum[kOuts][kChunk] = {};
  const int64_t end = min((part + 1) * split.size, call.samples);
  for (int64_t step = part * split.size; step < end; step += kSamples) {
    const int samples = static_cast<int>(min(end - step, int64_t{kSamples}));
    __syncthreads();
    for (int e = threadIdx.x; e < samples * kBlockOuts; e += kThreads) {
      const int i = e / kBlockOuts, o = e % kBlockOuts;
      const bool inside = block_out + o < out_features;
      dy[i][o] =
          inside ? Element<T>::widen(dy_rows[(step + i) * out_features + block_out + o]) : Real(0);
    }
    __syncthreads();
    if (k >= in_features) continue;
#pragma unroll(kPerSample || !kFast ? 1 : 2)  // loads in flight; 4 took more registers than 128
    for (int i = 0; i < samples; ++i) {
      Real x[kChunk];
      load_chunk<T, kFast>(x_rows + (step + i) * in_features, k, in_features, x);
#pragma unroll
      for (int o = 0; o < kOuts; ++o) {
        const Real d = dy[i][warp_out + o];
        if constexpr (kPerSample) {
          const uint64_t index =
              dropconnect_index(step + i, block_out + warp_out + o, k, out_features, in_features);
          const uint32_t keep = keep_chunk<kFast>(key, index, call.rule);
#pragma unroll
          for (int j = 0; j < kChunk; ++j) {
            if (keep >> j & 1u) sum[o][j] += d * x[j];
          }
        } else {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) sum[o][j] += d * x[j];
        }
      }
    }
  }
  if (k >= in_features) return;

#pragma unroll
  for (int o = 0; o < kOuts; ++o) {
    const int64_t n = block_out + warp_out + o;
    if (n >= out_features) break;
    if (kPerSample && split.parts > 1) {
      Real* to = partial + (part * out_features + n) * in_features;
      store_chunk<Real, kFast>(to, k, in_features, sum[o]);
      continue;
    }
    if constexpr (!kPerSample) {
      const uint64_t index = dropconnect_index(0, n, k, out_features, in_features);
      mask_chunk(keep_chunk<kFast>(key, index, call.rule), sum[o], sum[o]);
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) sum[o][j] *= scale_of<T>(call.rule);
    store_chunk<T, kFast>(grad_weight + n * in_features, k, in_features, sum[o]);
  }
}

int64_t columns_of(const DropConnectCall& call) { return ceil_divide(call.in_features, kColumns); }

template <class T, bool kPerSample, bool kFast, int kOuts>
int launch(const DropConnectCall& call, const CudaKey& key, void* grad_weight, void* partial,
           cudaStream_t stream) {
  const DropConnectSplit split = dropconnect_grad_weight_split(call, kPerSample);
  const int64_t out_tiles = ceil_divide(call.out_features, kWarps * kOuts);
  const int64_t blocks = out_tiles * split.parts * columns_of(call);
  sum_over_samples<T, kPerSample, kFast, kOuts><<<grid_of(blocks), kThreads, 0, stream>>>(
      call, key, split, out_tiles, blocks, static_cast<T*>(grad_weight),
      static_cast<Sum<T>*>(partial));
  return static_cast<int>(cudaGetLastError());
}

constexpr int kOuts = 8, kMaskedOuts = 4;

}  // namespace

DropConnectSplit dropconnect_grad_weight_split(const DropConnectCall& call, bool per_sample) {
  if (!per_sample) return {1, call.samples};  // few, and not worth the traffic of partial sums
  // One block a multiprocessor: its 8 warps with 4 chains of random numbers each fill the pipes.
  return dropconnect_split(call.samples, 8,
                           ceil_divide(call.out_features, kWarps * kMaskedOuts) * columns_of(call),
                           kDropConnectProcessors);
}

int dropconnect_grad_weight(const DropConnectCall& call, bool per_sample, const CudaKey& key,
                            void* grad_weight, void* partial, cudaStream_t stream) {
  return for_dtype(static_cast<int>(call.dtype), [&](auto type) {
    using T = decltype(type);
    auto chosen = per_sample ? launch<T, true, false, 2> : launch<T, false, false, kMaskedOuts>;
    if constexpr (sizeof(T) < 8) {
      if (dropconnect_is_fast(call, grad_weight) && is_aligned(partial) && !call.rule.fine) {
        chosen = per_sample ? launch<T, true, true, kMaskedOuts> : launch<T, false, true, kOuts>;
      }
    }
    return chosen(call, key, grad_weight, partial, stream);
  });
}

}  // namespace regops
