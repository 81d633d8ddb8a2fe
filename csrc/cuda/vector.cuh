// 16-byte accesses and element types, for every kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

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

inline bool is_aligned(const void* pointer) {
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
