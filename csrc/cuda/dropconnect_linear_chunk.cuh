// What the kernels of a DropConnect layer share: a thread owns chunks, 8 neighbouring weights of a
// row, which are 16 bytes of bfloat16 and whose decisions are one Philox block. Loads, decisions
// and arithmetic are then private to the thread.
//
// kFast: rows begin at multiples of 16 bytes and of 8 indices, and a decision takes 16 bits. The
// same kernels with kFast = false serve all else (rows of odd length, misaligned tensors, the fine
// rule, float64): element by element, with two Philox blocks a chunk, or finely four.
#pragma once

#include "cuda/vector.cuh"
#include "dropconnect_linear_call.h"

namespace regops {

constexpr int kChunk = kDropoutGroup;

template <class T>
using Sum = typename Element<T>::Compute;

// Elements k, k + 1, ... of a row of `size`, 0 past its end.
template <class T, bool kFast>
__device__ __forceinline__ void load_chunk(const T* row, int64_t k, int64_t size,
                                           Sum<T> (&x)[kChunk]) {
  if constexpr (kFast) {
    load_elements<T, kChunk>(row + k, 1, true, x);
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      x[j] = k + j < size ? Element<T>::widen(row[k + j]) : Sum<T>(0);
    }
  }
}

template <class T, bool kFast>
__device__ __forceinline__ void store_chunk(T* row, int64_t k, int64_t size,
                                            const Sum<T> (&x)[kChunk]) {
  if constexpr (kFast) {
    store_elements<T, kChunk>(row + k, 1, true, x);
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (k + j < size) row[k + j] = Element<T>::round(x[j]);
    }
  }
}

// Bit j: whether the weight of logical index `index` + j is kept.
template <bool kFast>
__device__ __forceinline__ uint32_t keep_chunk(Key key, uint64_t index, const DropoutRule& rule) {
  const uint64_t group = index / kDropoutGroup;
  if constexpr (kFast) {
    return dropout_keep_bits<false>(key, group, rule.threshold);
  } else {
    const unsigned phase = index % kDropoutGroup;
    uint32_t keep = 0;
#pragma unroll 1  // code for two blocks would be twice as long
    for (unsigned g = 0; g < 2; ++g) {
      const uint32_t bits = rule.fine ? dropout_keep_bits<true>(key, group + g, rule.threshold)
                                      : dropout_keep_bits<false>(key, group + g, rule.threshold);
      keep |= bits << (kDropoutGroup * g) >> phase;
    }
    return keep;
  }
}

// A dropped weight is selected to 0: an inf or nan in it is gone.
template <class Real>
__device__ __forceinline__ void mask_chunk(uint32_t keep, const Real (&w)[kChunk],
                                           Real (&masked)[kChunk]) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) masked[j] = keep >> j & 1u ? w[j] : Real(0);
}

template <class T>
__device__ __forceinline__ Sum<T> scale_of(const DropoutRule& rule) {
  if constexpr (sizeof(T) == 8) {
    return rule.scale_f64;
  } else {
    return rule.scale;
  }
}

}  // namespace regops
