// Groups of neighbouring elements of an optimizer step: what one thread loads, draws random numbers
// for and stores at a time, of element types known at run time.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/vector.cuh"
#include "math/normal.h"
#include "math/philox.h"
#include "math/stochastic_rounding.h"
#include "optimizer_step_call.h"

namespace regops {

// kSize elements in the logical order, of which [first, last) are there.
template <int kSize, bool kStrided>
struct Group {
  static_assert(!kStrided || kSize == 1);
  uint64_t index;  // of element 0 in the (global) parameter; a multiple of kSize
  int first, last;
  bool vectors;
  int64_t offset[kStrided ? kStepOperands : 1];

  __device__ __forceinline__ bool has(int k) const { return k >= first && k < last; }
  __device__ __forceinline__ int64_t at(StepOperand operand) const {
    return offset[kStrided ? operand : 0];
  }
};

// Elements [begin, end) of a tensor: a block's, in the logical order.
struct Range {
  int64_t begin, end;
};

// Of tensors in one piece.
struct NoLayout {};

// The group whose element 0 is `start`, which may lie before the range.
template <int kSize>
__device__ __forceinline__ Group<kSize, false> group_at(uint64_t first_index, Range range,
                                                        int64_t start, bool aligned,
                                                        const NoLayout&) {
  const int first = static_cast<int>(max(range.begin - start, int64_t(0)));
  const int last = static_cast<int>(min(range.end - start, int64_t(kSize)));
  const bool whole = first == 0 && last == kSize;
  return {first_index + static_cast<uint64_t>(start), first, last, aligned && whole, {start}};
}

template <int kSize>
__device__ __forceinline__ Group<1, true> group_at(uint64_t first_index, Range, int64_t start, bool,
                                                   const StepLayout& layout) {
  Group<1, true> group = {first_index + static_cast<uint64_t>(start), 0, 1, false, {}};
  const auto walk = [&](int d, int64_t i) {
#pragma unroll
    for (int o = 0; o < kStepOperands; ++o) group.offset[o] += i * layout.stride[o][d];
  };
  int64_t rest = start;
  for (int d = layout.dims - 1; d > 0; --d) {
    const int64_t above = rest / layout.size[d];
    walk(d, rest - above * layout.size[d]);
    rest = above;
  }
  // The outermost needs no division of 64 bits, some 100 instructions.
  if (layout.dims > 0) walk(0, rest);
  return group;
}

// Calls function(T()) for a parameter's, gradient's or state's element type: those that a step
// computed in Real can have.
template <class Real, class Function>
__device__ __forceinline__ void for_param(DType dtype, Function function) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    function(double());
  } else {
    switch (dtype) {
      case DType::bfloat16:
        return function(__nv_bfloat16());
      case DType::float16:
        return function(__half());
      default:
        return function(float());
    }
  }
}
template <class Real, class Function>
__device__ __forceinline__ void for_grad(DType dtype, Function function) {
  if (sizeof(Real) != sizeof(double) && dtype == DType::float64) return function(double());
  if (sizeof(Real) == sizeof(double) && dtype != DType::float64) {
    return for_param<float>(dtype, function);
  }
  for_param<Real>(dtype, function);
}
template <class Real, class Function>
__device__ __forceinline__ void for_state(DType dtype, Function function) {
  if (dtype == DType::bfloat16) return function(__nv_bfloat16());
  function(Real());
}

// Elements as they came from memory. Widening waits for a load, so all tensors' loads come first.
template <class Real, int kSize>
struct RawGroup {
  uint32_t word[kSize * sizeof(Real) / sizeof(uint32_t)];
};

// As what it is kept until then: 16-bit types as such beside float, all else as Real, which is what
// it mostly is.
template <class T, class Real>
using Raw = std::conditional_t<(sizeof(T) < sizeof(Real) && sizeof(Real) == 4), T, Real>;

template <class Real, class T>
__device__ __forceinline__ Raw<T, Real> as_raw(T value) {
  if constexpr (std::is_same_v<Raw<T, Real>, T>) {
    return value;
  } else {
    return static_cast<Real>(Element<T>::widen(value));
  }
}

// Elements that are not there read as 0.
template <class T, class Real, int kSize, bool kStrided>
__device__ __forceinline__ void load_group(const void* base, StepOperand operand,
                                           const Group<kSize, kStrided>& group,
                                           RawGroup<Real, kSize>& raw) {
  const T* from = static_cast<const T*>(base) + group.at(operand);
  Raw<T, Real> element[kSize] = {};
  if (kSize > 1 && group.vectors) {
    constexpr int kPart = kSize < kVectorSize<T> ? kSize : kVectorSize<T>;
#pragma unroll
    for (int part = 0; part < kSize; part += kPart) {
      const auto pack = *reinterpret_cast<const Vector<T, kPart>*>(from + part);
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        element[part + k] = as_raw<Real>(pack.element[k]);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (group.has(k)) element[k] = as_raw<Real>(from[k]);
    }
  }
  memcpy(raw.word, element, sizeof element);
}

template <class T, class Real, int kSize>
__device__ __forceinline__ void widen_group(const RawGroup<Real, kSize>& raw, Real (&x)[kSize]) {
  Raw<T, Real> element[kSize];
  memcpy(element, raw.word, sizeof element);
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    x[k] = static_cast<Real>(Element<Raw<T, Real>>::widen(element[k]));
  }
}

template <class T, class Real, int kSize, bool kStrided>
__device__ __forceinline__ void store_group(void* base, StepOperand operand,
                                            const Group<kSize, kStrided>& group,
                                            const Real (&x)[kSize]) {
  using Compute = typename Element<T>::Compute;
  T* to = static_cast<T*>(base) + group.at(operand);
  Compute written[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) written[k] = static_cast<Compute>(x[k]);
  if (kSize > 1 && group.vectors) {
    store_elements<T, kSize>(to, 1, true, written);
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (group.has(k)) to[k] = Element<T>::round(written[k]);
    }
  }
}

// A word of a block by a number known at run time: indexed registers would be local memory.
__device__ __forceinline__ uint32_t word_of(const PhiloxBlock& block, unsigned i) {
  const uint32_t low = i == 0 ? block.word[0] : block.word[1];
  const uint32_t high = i == 2 ? block.word[2] : block.word[3];
  return i < 2 ? low : high;
}

// Rounds to what bfloat16 or float16 holds, at random: by block index div 8 of a stream.
template <int kSize, class Real>
__device__ __forceinline__ void round_at_random(DType dtype, const PhiloxBlock& block,
                                                uint64_t index, Real (&x)[kSize]) {
  const unsigned from = kSize == 8 ? 0 : static_cast<unsigned>(index % 8);
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    const uint32_t random16 = word_of(block, (from + k) / 2) >> ((from + k) % 2 * 16) & 0xFFFFu;
    const float value = static_cast<float>(x[k]);
    if (dtype == DType::bfloat16) {
      x[k] = __bfloat162float(__ushort_as_bfloat16(stochastic_bfloat16(value, random16)));
    } else {
      x[k] = __half2float(__ushort_as_half(stochastic_float16(value, random16)));
    }
  }
}

// g <- g + deviation N(0, 1)
template <int kSize, class Real>
__device__ __forceinline__ void add_noise(Key key, uint64_t index, Real deviation,
                                          Real (&g)[kSize]) {
  if constexpr (kSize == 1) {
    const PhiloxBlock block = variate_block(key, index / 4);
    const unsigned pair = static_cast<unsigned>(index % 4) / 2;
    const NormalPair z = normal_pair(word_of(block, 2 * pair), word_of(block, 2 * pair + 1));
    g[0] += deviation * (index % 2 == 0 ? z.first : z.second);
  } else {
#pragma unroll
    for (int k = 0; k < kSize; k += 4) {
      const PhiloxBlock block = variate_block(key, index / 4 + k / 4);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const NormalPair z = normal_pair(block.word[j], block.word[j + 1]);
        g[k + j] += deviation * z.first;
        g[k + j + 1] += deviation * z.second;
      }
    }
  }
}

}  // namespace regops
