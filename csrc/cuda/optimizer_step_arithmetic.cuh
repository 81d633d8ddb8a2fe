// What optimizer_step_general.cu computes of a group of elements, by options known at run time.
#pragma once

#include <type_traits>

#include "cuda/optimizer_step_group.cuh"
#include "math/adamw.h"
#include "math/optimizer_step.h"
#include "math/sgdw.h"

namespace regops {

// Scalars as Real, kept in registers.
template <class Real>
struct Factors {
  AdamWFactors<Real> adamw;
  SgdwFactors<Real> sgdw;
  Real unscale, grad, noise, threshold;

  __device__ Factors(const StepOptions& options, const StepScalars& scalars)
      : adamw(adamw_factors<Real>(options, scalars)),
        sgdw(sgdw_factors<Real>(options, scalars)),
        unscale(static_cast<Real>(scalars.unscale)),
        grad(static_cast<Real>(scalars.grad_factor)),
        noise(static_cast<Real>(scalars.noise)),
        threshold(static_cast<Real>(scalars.threshold)) {}
};

// A group's elements, in the type computed in.
template <class Real, int kSize>
struct Elements {
  Real w[kSize], g[kSize], first[kSize], second[kSize], largest[kSize], ema[kSize];
};

// From gradients as they came to the new weights and states, before max_norm.
template <class Real, int kSize>
__device__ __forceinline__ void update(const StepOptions& options, bool has_first, bool has_largest,
                                       const Factors<Real>& factors, const Key& noise_key,
                                       uint64_t index, Elements<Real, kSize>& x) {
  const Real limit = static_cast<Real>(options.clip_value), l2 = static_cast<Real>(options.l2);
#pragma unroll
  for (int k = 0; k < kSize; ++k) x.g[k] = clip_value(x.g[k] * factors.grad, limit);
  if (options.noise_variance != 0.0) add_noise(noise_key, index, factors.noise, x.g);
  if (l2 != Real(0)) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) x.g[k] += l2 * x.w[k];
  }

  const auto each = [&](auto rule) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) x.w[k] = rule(k);
  };
  if (options.rule == StepRule::adamw) {
    const auto adamw = [&](auto amsgrad, int k) {
      return adamw_update<decltype(amsgrad)::value>(x.w[k], x.g[k], x.first[k], x.second[k],
                                                    x.largest[k], factors.adamw);
    };
    if (has_largest) {
      each([&](int k) { return adamw(std::true_type(), k); });
    } else {
      each([&](int k) { return adamw(std::false_type(), k); });
    }
  } else if (!has_first) {
    each(
        [&](int k) { return sgdw_update<false, false>(x.w[k], x.g[k], x.first[k], factors.sgdw); });
  } else if (options.nesterov) {
    each([&](int k) { return sgdw_update<true, true>(x.w[k], x.g[k], x.first[k], factors.sgdw); });
  } else {
    each([&](int k) { return sgdw_update<true, false>(x.w[k], x.g[k], x.first[k], factors.sgdw); });
  }

  if (options.l1 != 0.0) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) x.w[k] = soft_threshold(x.w[k], factors.threshold);
  }
}

}  // namespace regops
