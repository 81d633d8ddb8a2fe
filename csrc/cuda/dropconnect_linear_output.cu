// Forward products of a DropConnect layer, and the moments over masks.
//
// A warp takes 4 outputs and a tile of samples; its lanes stride over chunks of k, the weights are
// masked in registers and read once for all samples of the tile, and the lanes' sums meet at the
// end. Warps of a block take neighbouring outputs, so that x comes from the first-level cache for
// all but one, or, where outputs are too few to fill the device, parts of the same sums.
//
// One mask for all reads each weight once. Of 4096 x 4096 at 8 samples on an H200, by counts of
// bytes (at 4.3 TB/s) and of instructions (128 a clock and multiprocessor): float32 15.6 us of
// memory beside 10.5 us of instructions, bfloat16 7.8 us beside 13 us, 4.6 us of them for the mask:
// 68 instructions a Philox block with its 8 decisions. A mask for each sample takes as many for 8
// multiply-adds: integer pipes bound it, and its tiles are small since reuse gains little.
#include "cuda/dropconnect_linear_chunk.cuh"
#include "cuda/dropconnect_linear_launch.h"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Of a warp's tile. 32 samples by 4 outputs are 128 sums a thread.
constexpr int kTileOuts = 4, kFewSamples = 8, kManySamples = 32;

enum class Masks { batch, sample, none };  // none: mean and variance in place of the output

// Adds kCount values over the lanes, kCount a power of two up to 32 a lane: lane l gets the totals
// l kCount / 32 and on, in the array's first places. Each step halves what a lane holds, so that
// all take about kCount shuffles, not 5 kCount.
template <int kStep, int kCount, class Real, int kSize>
__device__ __forceinline__ void scatter_sums(Real (&x)[kSize]) {
  if constexpr (kStep > 0 && kCount > 1) {
    const bool upper = threadIdx.x & kStep;
#pragma unroll
    for (int j = 0; j < kCount / 2; ++j) {
      const Real given = upper ? x[j] : x[j + kCount / 2];
      const Real held = upper ? x[j + kCount / 2] : x[j];
      x[j] = held + __shfl_xor_sync(~0u, given, kStep);
    }
    scatter_sums<kStep / 2, kCount / 2>(x);
  } else if constexpr (kStep > 0) {
    x[0] += __shfl_xor_sync(~0u, x[0], kStep);
    scatter_sums<kStep / 2, 1>(x);
  }
}

// How warps and blocks share the work.
struct Shares {
  int k_parts;  // warps of a block that add to the same outputs: 1, 2, 4 or 8
  int64_t sample_tiles, blocks;
};

// Blocks that shall fit a multiprocessor: two where memory matters most, for twice the loads in
// flight. 0 leaves the number to the compiler.
template <Masks kMasks, bool kFast, int kSamples>
constexpr int kLeastBlocks = kFast && kMasks != Masks::sample && kSamples == kFewSamples ? 2 : 0;

// A warp's tile is of kSamples by kOuts sums.
template <class T, Masks kMasks, bool kFast, int kSamples, int kOuts>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<kMasks, kFast, kSamples>)
    sum_products(const DropConnectCall call, const CudaKey cuda_key, const Shares shares, T* output,
                 Sum<T>* variance) {
  using Real = Sum<T>;
  // Samples whose x is loaded together; past the last, that is loaded again and its sums are
  // forgotten. Masks are too dear for that, and the largest tile has no registers for it.
  constexpr bool kAlone = kMasks == Masks::sample || (kSamples == kManySamples && sizeof(T) > 2);
  constexpr int kTogether = kAlone ? 1 : 2;
  constexpr int kOfMean = kSamples * kOuts;
  constexpr int kCount = kMasks == Masks::none ? 2 * kOfMean : kOfMean;
  __shared__ Real partial[kWarps][kCount];
  const int64_t block = block_number();
  if (block >= shares.blocks) return;

  const Key key = kMasks == Masks::none ? Key{} : cuda_key.load();
  const int64_t in_features = call.in_features, out_features = call.out_features;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int out_tiles = kWarps / shares.k_parts;
  // Blocks that share weights are neighbours: one of them reads memory, the others the cache.
  const int64_t first_sample = block % shares.sample_tiles * kSamples;
  const int64_t block_out = block / shares.sample_tiles * out_tiles * kOuts;
  const int64_t first_out = block_out + warp / shares.k_parts * kOuts;
  const int samples = static_cast<int>(min(call.samples - first_sample, int64_t{kSamples}));
  const T* x_rows = static_cast<const T*>(call.input) + first_sample * in_features;
  const T* w_rows = static_cast<const T*>(call.weight);

  Real sum[kCount] = {};
  for (int64_t k = (warp % shares.k_parts * 32 + lane) * kChunk; k < in_features;
       k += shares.k_parts * 32 * kChunk) {
    Real w[kOuts][kChunk];
#pragma unroll
    for (int o = 0; o < kOuts; ++o) {
      const int64_t n = min(first_out + o, out_features - 1);
      load_chunk<T, kFast>(w_rows + n * in_features, k, in_features, w[o]);
    }
    if constexpr (kMasks == Masks::batch) {
#pragma unroll
      for (int o = 0; o < kOuts; ++o) {
        const uint64_t index = dropconnect_index(0, first_out + o, k, out_features, in_features);
        mask_chunk(keep_chunk<kFast>(key, index, call.rule), w[o], w[o]);
      }
    }
    // One pointer walks from row to row: 32 of them would take 64 registers.
    const T* x_row = x_rows;
#pragma unroll
    for (int begin = 0; begin < kSamples; begin += kTogether) {
      if (begin >= samples) break;
      Real x[kTogether][kChunk];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        load_chunk<T, kFast>(x_row, k, in_features, x[i]);
        if (begin + i + 1 < samples) x_row += in_features;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
#pragma unroll
        for (int o = 0; o < kOuts; ++o) {
          const int at = (begin + i) * kOuts + o;
          if constexpr (kMasks == Masks::sample) {
            const uint64_t index = dropconnect_index(first_sample + begin + i, first_out + o, k,
                                                     out_features, in_features);
            Real masked[kChunk];
            mask_chunk(keep_chunk<kFast>(key, index, call.rule), w[o], masked);
#pragma unroll
            for (int j = 0; j < kChunk; ++j) sum[at] += masked[j] * x[i][j];
          } else if constexpr (kMasks == Masks::batch) {
#pragma unroll
            for (int j = 0; j < kChunk; ++j) sum[at] += w[o][j] * x[i][j];
          } else {
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
              const Real term = w[o][j] * x[i][j];
              sum[at] += term;
              sum[kOfMean + at] += term * term;
            }
          }
        }
      }
    }
  }

  scatter_sums<16, kCount>(sum);
  constexpr int kHeld = kCount > 32 ? kCount / 32 : 1;
  constexpr int kLanes = kCount > 32 ? 1 : 32 / kCount;  // that hold the same total
  if (lane % kLanes == 0) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) partial[warp][lane / kLanes * kHeld + j] = sum[j];
  }
  __syncthreads();
  for (int v = threadIdx.x; v < out_tiles * kCount; v += kThreads) {
    const int tile = v / kCount, e = v % kCount;
    Real total = 0;
    for (int part = 0; part < shares.k_parts; ++part) {
      total += partial[tile * shares.k_parts + part][e];
    }
    const int i = e / kOuts % kSamples;
    const int64_t n = block_out + tile * kOuts + e % kOuts;
    if (i >= samples || n >= out_features) continue;
    const int64_t at = (first_sample + i) * out_features + n;
    if constexpr (kMasks == Masks::none) {
      if (e >= kOfMean) {
        variance[at] += static_cast<Real>(dropconnect_variance(call.rule)) * total;
        continue;
      }
    } else {
      total *= scale_of<T>(call.rule);
    }
    output[at] = Element<T>::round(Element<T>::widen(output[at]) + total);
  }
}

template <class T, Masks kMasks, bool kFast, int kSamples, int kOuts>
int launch(const DropConnectCall& call, const CudaKey& key, void* output, void* variance,
           cudaStream_t stream) {
  Shares shares;
  shares.sample_tiles = ceil_divide(call.samples, kSamples);
  // Two blocks on most multiprocessors, if the sums can be cut that often: with 4096 outputs and 8
  // samples, 256 blocks.
  for (shares.k_parts = 1;; shares.k_parts *= 2) {
    const int64_t outs = kWarps / shares.k_parts * kOuts;
    shares.blocks = shares.sample_tiles * ceil_divide(call.out_features, outs);
    if (shares.k_parts == kWarps || 2 * shares.blocks >= 3 * kDropConnectProcessors) break;
  }
  sum_products<T, kMasks, kFast, kSamples, kOuts><<<grid_of(shares.blocks), kThreads, 0, stream>>>(
      call, key, shares, static_cast<T*>(output), static_cast<Sum<T>*>(variance));
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int dropconnect_output(const DropConnectCall& call, bool per_sample, const CudaKey& key,
                       void* output, cudaStream_t stream) {
  return for_dtype(static_cast<int>(call.dtype), [&](auto type) {
    using T = decltype(type);
    auto chosen = per_sample
                      // Each mask costs the code of three Philox blocks here: a smaller tile.
                      ? launch<T, Masks::sample, false, 2, 2>
                      : launch<T, Masks::batch, false, kFewSamples, kTileOuts>;
    if constexpr (sizeof(T) < 8) {
      if (dropconnect_is_fast(call, nullptr) && !call.rule.fine) {
        if (per_sample) {
          chosen = launch<T, Masks::sample, true, 4, kTileOuts>;
        } else if constexpr (sizeof(T) == 4) {  // 16-bit floats that are fast go to tensor cores
          chosen = call.samples <= kFewSamples
                       ? launch<T, Masks::batch, true, kFewSamples, kTileOuts>
                       : launch<T, Masks::batch, true, kManySamples, kTileOuts>;
        }
      }
    }
    return chosen(call, key, output, nullptr, stream);
  });
}

int dropconnect_moments(const DropConnectCall& call, void* mean, void* variance,
                        cudaStream_t stream) {
  return for_dtype(static_cast<int>(call.dtype), [&](auto type) {
    using T = decltype(type);
    auto chosen = launch<T, Masks::none, false, kFewSamples, kTileOuts>;
    if constexpr (sizeof(T) < 8) {
      if (dropconnect_is_fast(call, nullptr)) {
        chosen = launch<T, Masks::none, true, kFewSamples, kTileOuts>;
      }
    }
    return chosen(call, CudaKey{}, mean, variance, stream);
  });
}

}  // namespace regops
