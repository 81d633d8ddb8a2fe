// Sums over the classes of a row, in one pass, and their reduction over lanes, a block and a
// cluster: every sum is relative to the largest logit seen so far, and changes with it ("online
// softmax": M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018).
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "cuda/reduce.cuh"

namespace regops {

template <class Real>
__device__ __forceinline__ Real minus_infinity() {
  if constexpr (sizeof(Real) == 8) {
    return __longlong_as_double(0xfff0000000000000ll);
  } else {
    return __int_as_float(0xff800000);
  }
}

// exp(d), d <= 0. In float the relative error is below 1.4e-7 |d| + 1.8e-7: d and its product with
// log2 e are rounded once each (2^-24), and log2 e is (1.3e-8); ex2.approx adds 2^-22.4 or less. So
// it is below 1e-6 for every exp(d) over 0.003, and below 2.4e-7 of the largest one for all.
// Under 2^-126 the result is 0.
__device__ __forceinline__ float exponential(float d) {
  constexpr float kLog2E = 1.4426950408889634f;
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(d * kLog2E));
  return result;
}
__device__ __forceinline__ double exponential(double d) { return exp(d); }

// What logits are counted from: the largest of them, or 0 where all are -inf.
template <class Real>
__device__ __forceinline__ Real reference_of(Real max) {
  return max == minus_infinity<Real>() ? Real(0) : max;
}

template <class Real>
struct SoftmaxSums {
  Real max = minus_infinity<Real>();  // m, of the logits counted so far; nan ones do not count
  Real sum = 0;                       // sum_c exp(x_c - m)
  Real mass = 0;                      // sum_c v_c
  Real cross = 0;                     // sum_c v_c (x_c - m)
  Real entropy = 0;                   // sum_c exp(x_c - m) (x_c - m)

  // Makes `top`, no less than max, the largest logit.
  __device__ __forceinline__ void raise(Real top) {
    // With m = -inf nothing finite was counted: there is nothing to rescale, and 0 x inf to avoid.
    const Real step = max == minus_infinity<Real>() ? Real(0) : max - top;
    const Real factor = exponential(step);
    entropy = factor * (entropy + step * sum);
    sum *= factor;
    cross += step * mass;
    max = top;
  }

  // Counts logits none of which is larger than max. Without kGeneral, v is 1 and the entropy is not
  // asked for.
  template <bool kGeneral, int kSize>
  __device__ __forceinline__ void add(const Real (&x)[kSize], const Real (&v)[kSize]) {
    const Real reference = reference_of(max);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const Real d = x[k] - reference;
      const Real e = exponential(d);
      sum += e;
      if constexpr (kGeneral) {
        mass += v[k];
        cross += v[k] * d;
        if (e != Real(0)) entropy += e * d;  // p log p = 0 where p = 0, though log p is -inf
      } else {
        cross += d;
      }
    }
    if constexpr (!kGeneral) mass += Real(kSize);
  }

  // Counts any logits.
  template <bool kGeneral, int kSize>
  __device__ __forceinline__ void add_online(const Real (&x)[kSize], const Real (&v)[kSize]) {
    Real top = max;
#pragma unroll
    for (int k = 0; k < kSize; ++k) top = maximum(top, x[k]);
    if (top > max) raise(top);
    add<kGeneral>(x, v);
  }
};

// Sums of all lanes whose bits are in the mask: kLanes neighbours, with one and the same max.
template <int kLanes, class Real>
__device__ __forceinline__ void add_lanes(SoftmaxSums<Real>& sums, unsigned mask) {
  sums.sum = lanes_sum<kLanes>(sums.sum, mask);
  sums.mass = lanes_sum<kLanes>(sums.mass, mask);
  sums.cross = lanes_sum<kLanes>(sums.cross, mask);
  sums.entropy = lanes_sum<kLanes>(sums.entropy, mask);
}

// The same of any sums.
template <int kLanes, class Real>
__device__ __forceinline__ void merge_lanes(SoftmaxSums<Real>& sums, unsigned mask) {
  sums.raise(lanes_max<kLanes>(sums.max, mask));
  add_lanes<kLanes>(sums, mask);
}

// Sums of the block, in every thread, from each warp's sums. Called once in a kernel.
template <class Real>
__device__ __forceinline__ SoftmaxSums<Real> merge_warps(const SoftmaxSums<Real>& sums) {
  // No initial values: the compiler allows none in shared memory.
  __shared__ alignas(SoftmaxSums<Real>) char storage[32 * sizeof(SoftmaxSums<Real>)];
  auto* of_warp = reinterpret_cast<SoftmaxSums<Real>*>(storage);
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) of_warp[threadIdx.x / 32] = sums;
  __syncthreads();
  SoftmaxSums<Real> merged;
  if (lane < blockDim.x / 32) merged = of_warp[lane];
  merge_lanes<32>(merged, ~0u);
  return merged;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Sums of the cluster, in every thread, from each block's sums. Called once in a kernel, which must
// call `leave_cluster` before it ends: other blocks read this one's shared memory.
template <class Real>
__device__ __forceinline__ SoftmaxSums<Real> merge_blocks(const SoftmaxSums<Real>& sums) {
  __shared__ alignas(SoftmaxSums<Real>) char storage[sizeof(SoftmaxSums<Real>)];
  auto* of_block = reinterpret_cast<SoftmaxSums<Real>*>(storage);
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) *of_block = sums;
  cluster.sync();
  SoftmaxSums<Real> merged;
  const unsigned lane = threadIdx.x % 32;
  if (lane < cluster.num_blocks()) merged = *cluster.map_shared_rank(of_block, lane);
  cluster.barrier_arrive();
  merge_lanes<32>(merged, ~0u);
  return merged;
}

__device__ __forceinline__ void leave_cluster() {
  cooperative_groups::this_cluster().barrier_wait();
}
#endif

}  // namespace regops
