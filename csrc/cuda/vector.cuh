// 16-byte accesses and element types, for every kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace regops {

// kSize elements that one load or store instruction moves.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T element[kSize];
};

template <class T>
constexpr int kVectorSize = 16 / sizeof(T);

// The type a kernel computes in, and the one rounding back from it.
template <class T>
struct Element {
  using Compute = T;
  static __device__ __forceinline__ T widen(T value) { return value; }
  static __device__ __forceinline__ T round(T value) { return value; }
};

template <>
struct Element<__nv_bfloat16> {
  using Compute = float;
  static __device__ __forceinline__ float widen(__nv_bfloat16 value) {
    return __bfloat162float(value);
  }
  static __device__ __forceinline__ __nv_bfloat16 round(float value) {
    return __float2bfloat16_rn(value);
  }
};

template <>
struct Element<__half> {
  using Compute = float;
  static __device__ __forceinline__ float widen(__half value) { return __half2float(value); }
  static __device__ __forceinline__ __half round(float value) { return __float2half_rn(value); }
};

// Rounds two neighbours at once: one instruction where two and a merge would be.
__device__ __forceinline__ void round_pair(float a, float b, __nv_bfloat16* to) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  to[0] = pair.x, to[1] = pair.y;
}
__device__ __forceinline__ void round_pair(float a, float b, __half* to) {
  const __half2 pair = __floats2half2_rn(a, b);
  to[0] = __low2half(pair), to[1] = __high2half(pair);
}
template <class T>
__device__ __forceinline__ void round_pair(T a, T b, T* to) {
  to[0] = a, to[1] = b;
}

// kSize elements from memory, widened. `vectors`: they are neighbours and aligned, for accesses of
// up to 16 bytes; otherwise they are read one by one, `stride` elements apart.
template <class T, int kSize>
__device__ __forceinline__ void load_elements(const T* from, int64_t stride, bool vectors,
                                              typename Element<T>::Compute (&x)[kSize]) {
  constexpr int kPart = kSize < kVectorSize<T> ? kSize : kVectorSize<T>;
  if (vectors) {
#pragma unroll
    for (int part = 0; part < kSize; part += kPart) {
      const auto pack = *reinterpret_cast<const Vector<T, kPart>*>(from + part);
#pragma unroll
      for (int k = 0; k < kPart; ++k) x[part + k] = Element<T>::widen(pack.element[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) x[k] = Element<T>::widen(from[k * stride]);
  }
}

// Writes a vector by one instruction. Assigning it, or a uint4, leaves that to nvcc, which splits
// the assignment into elements and does not always join them again: in some unrolled loops 16 bytes
// took 4 stores of 4. (As one 128-bit integer, 16-bit floats went through local memory.)
template <class T, int kSize>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, kSize>& vector) {
  if constexpr (sizeof(vector) == sizeof(uint4)) {
    uint4 words;
    memcpy(&words, &vector, sizeof words);
    __stwb(reinterpret_cast<uint4*>(to), words);
  } else {
    *reinterpret_cast<Vector<T, kSize>*>(to) = vector;
  }
}

// The reverse of load_elements, each element rounded once. kAssign: vectors are assigned, which
// takes fewer registers where nvcc joins them by itself.
template <class T, int kSize, bool kAssign = false>
__device__ __forceinline__ void store_elements(T* to, int64_t stride, bool vectors,
                                               const typename Element<T>::Compute (&x)[kSize]) {
  constexpr int kPart = kSize < kVectorSize<T> ? kSize : kVectorSize<T>;
#pragma unroll
  for (int part = 0; part < kSize; part += kPart) {
    Vector<T, kPart> pack;
    if constexpr (kPart == 1) {
      pack.element[0] = Element<T>::round(x[part]);
    } else {
#pragma unroll
      for (int k = 0; k < kPart; k += 2) {
        round_pair(x[part + k], x[part + k + 1], pack.element + k);
      }
    }
    if (vectors && kAssign) {
      *reinterpret_cast<Vector<T, kPart>*>(to + part) = pack;
    } else if (vectors) {
      store_vector(to + part, pack);
    } else {
#pragma unroll
      for (int k = 0; k < kPart; ++k) to[(part + k) * stride] = pack.element[k];
    }
  }
}

__host__ __device__ inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Calls function(T()) for the element type, and returns what it returns.
template <class Function>
int for_dtype(int dtype, Function function) {
  switch (static_cast<DType>(dtype)) {
    case DType::float64:
      return function(double());
    case DType::float32:
      return function(float());
    case DType::bfloat16:
      return function(__nv_bfloat16());
    case DType::float16:
      return function(__half());
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace regops
