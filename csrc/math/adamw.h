// AdamW, as a function of one element.
//
// I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, as torch computes
// it; amsgrad of S. Reddi, S. Kale, S. Kumar, "On the Convergence of Adam and Beyond", ICLR 2018:
//   w <- (1 - lr wd) w
//   m <- m + (1 - beta1) (g - m)
//   v <- beta2 v + (1 - beta2) g^2;    amsgrad: u <- max(u, v), otherwise u = v
//   w <- w - lr / (1 - beta1^t) m / (sqrt(u) / sqrt(1 - beta2^t) + eps)
#pragma once

#include <cmath>

#include "math/host_device.h"
#include "optimizer_step_call.h"

namespace regops {

template <class Real>
struct AdamWFactors {
  Real decay, beta1, beta2, rest1, rest2, rate, root_factor, eps;  // rest = 1 - beta
  bool nearer_gradient;  // than the mean so far: beta1 < 1/2
};

template <class Real>
REGOPS_HOST_DEVICE AdamWFactors<Real> adamw_factors(const StepOptions& options,
                                                    const StepScalars& scalars) {
  return {Real(scalars.decay),       Real(options.beta1),       Real(options.beta2),
          Real(1.0 - options.beta1), Real(1.0 - options.beta2), Real(scalars.rate),
          Real(scalars.root_factor), Real(options.eps),         options.beta1 < 0.5};
}

// Returns the new weight.
template <bool kAmsgrad, class Real>
REGOPS_HOST_DEVICE Real adamw_update(Real w, Real g, Real& m, Real& v, Real& largest,
                                     const AdamWFactors<Real>& f) {
  // As torch.lerp, from the nearer end: with beta1 = 0 a large m would leave its rounding errors in
  // a small g.
  m = f.nearer_gradient ? g - f.beta1 * (g - m) : m + f.rest1 * (g - m);
  v = f.beta2 * v + f.rest2 * g * g;
  Real u = v;
  if constexpr (kAmsgrad) {
    // As torch.maximum: nan where either is.
    largest = largest >= v || largest != largest ? largest : v;
    u = largest;
  }
  return w * f.decay - f.rate * (m / (std::sqrt(u) * f.root_factor + f.eps));
}

}  // namespace regops
