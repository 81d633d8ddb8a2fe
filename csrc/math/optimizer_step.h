// What every update rule has around it, as functions of one element: the gradient on its way in,
// the weight on its way out, and the scalars of a step.
// In this order, the update rule between l2 and l1:
// - norm clipping: g <- g min(1, c / (|g| + 1e-6)), |g| over all gradients (Pascanu et al. 2013);
// - value clipping: g <- min(max(g, -c), c);
// - noise: g <- g + N(0, eta / (1 + t)^gamma) (Neelakantan et al. 2015);
// - l2: g <- g + l2 w, decay inside the gradient, as Adam's, for comparison;
// - l1: w <- sign(w) max(|w| - lr l1, 0), the proximal step (Parikh and Boyd 2014);
// - max_norm: row <- row min(1, c / |row|) (Srivastava et al. 2014);
// - ema: e <- d e + (1 - d) w (Polyak and Juditsky 1992).
#pragma once

#include <cmath>

#include "math/host_device.h"
#include "optimizer_step_call.h"

namespace regops {

// base^exponent for base >= 0. nvcc makes a call of its pow; this is off by an ulp of 1, where the
// result is no more than that, and is used once a parameter.
REGOPS_HOST_DEVICE double power(double base, double exponent) {
#ifdef __CUDA_ARCH__
  return std::exp(exponent * std::log(base));
#else
  return std::pow(base, exponent);
#endif
}

// `step` counts from 1; grad_norm is that of the unscaled gradients; grad_scale and found_inf are
// GradScaler's, 1 and 0 without one.
REGOPS_HOST_DEVICE StepScalars step_scalars(const StepOptions& options, double step, double lr,
                                            double grad_norm, double grad_scale, double found_inf,
                                            Key key, uint64_t stream) {
  StepScalars scalars;
  scalars.skip = found_inf != 0.0;
  scalars.unscale = 1.0 / grad_scale;
  scalars.grad_factor = options.maximize ? -scalars.unscale : scalars.unscale;
  if (!std::isinf(options.max_grad_norm)) {
    // As torch's clip_grad_norm_, in the gradients' precision, so that the same gradients clip
    // alike: nan norms make all nan, infinite ones make 0 of what is finite and nan of what is not.
    // A norm that only float64 holds is still clipped to what it should be.
    const float norm = static_cast<float>(grad_norm);
    const double coefficient =
        options.grad == DType::float64 || std::isinf(norm)
            ? options.max_grad_norm / (grad_norm + 1e-6)
            : static_cast<double>(static_cast<float>(options.max_grad_norm) / (norm + 1e-6f));
    if (!(coefficient >= 1.0)) scalars.grad_factor *= coefficient;
  }
  scalars.decay = 1.0 - lr * options.weight_decay;
  scalars.rate = lr;
  scalars.root_factor = 1.0;
  if (options.rule == StepRule::adamw) {
    scalars.rate = lr / (1.0 - power(options.beta1, step));
    scalars.root_factor = 1.0 / std::sqrt(1.0 - power(options.beta2, step));
  }
  scalars.inflow = step == 1.0 ? 1.0 : 1.0 - options.dampening;
  scalars.threshold = lr * options.l1;
  scalars.noise = std::sqrt(options.noise_variance / power(step, options.noise_decay));
  const Key of_tensor = fold_in(fold_in(key, static_cast<uint64_t>(step)), stream);
  for (int use = 0; use < kStepStreams; ++use) scalars.keys[use] = fold_in(of_tensor, use);
  return scalars;
}

// nan stays nan.
template <class Real>
REGOPS_HOST_DEVICE Real clip_value(Real g, Real limit) {
  g = g > limit ? limit : g;
  return g < -limit ? -limit : g;
}

// argmin_u |u - w|^2 / 2 + threshold |u|: exactly 0 within the threshold.
template <class Real>
REGOPS_HOST_DEVICE Real soft_threshold(Real w, Real threshold) {
  const Real magnitude = w < Real(0) ? -w : w;
  const Real shrunk = w < Real(0) ? w + threshold : w - threshold;
  return magnitude <= threshold ? Real(0) : shrunk;
}

template <class Real>
REGOPS_HOST_DEVICE Real average(Real ema, Real w, Real decay, Real rest) {
  return decay * ema + rest * w;
}

// What Kahan's compensation keeps of w beside its rounded image; nothing of what overflowed.
template <class Real>
REGOPS_HOST_DEVICE Real rounding_error(Real w, Real image) {
  const Real error = w - image;
  return error - error == Real(0) ? error : Real(0);
}

// Factor that brings a row of this sum of squares back to the limit.
REGOPS_HOST_DEVICE double row_factor(double sum_of_squares, double max_norm) {
  const double norm = std::sqrt(sum_of_squares);
  return norm > max_norm ? max_norm / norm : 1.0;
}

}  // namespace regops
