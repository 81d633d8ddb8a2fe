// SGDW, as a function of one element.
//
// I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, with the momentum
// of torch.optim.SGD, where the learning rate stays outside of the buffer:
//   w <- (1 - lr wd) w
//   b <- momentum b + (1 - dampening) g;    in the first step b = g
//   w <- w - lr b;    nesterov: w <- w - lr (g + momentum b);    momentum = 0: w <- w - lr g
#pragma once

#include "math/host_device.h"
#include "optimizer_step_call.h"

namespace regops {

template <class Real>
struct SgdwFactors {
  Real decay, rate, momentum, inflow;
};

template <class Real>
REGOPS_HOST_DEVICE SgdwFactors<Real> sgdw_factors(const StepOptions& options,
                                                  const StepScalars& scalars) {
  return {Real(scalars.decay), Real(scalars.rate), Real(options.momentum), Real(scalars.inflow)};
}

// Returns the new weight.
template <bool kMomentum, bool kNesterov, class Real>
REGOPS_HOST_DEVICE Real sgdw_update(Real w, Real g, Real& buffer, const SgdwFactors<Real>& f) {
  Real direction = g;
  if constexpr (kMomentum) {
    buffer = f.momentum * buffer + f.inflow * g;
    direction = kNesterov ? g + f.momentum * buffer : buffer;
  }
  return w * f.decay - f.rate * direction;
}

}  // namespace regops
