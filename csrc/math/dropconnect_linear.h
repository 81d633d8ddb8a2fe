// DropConnect: a linear layer whose weights are dropped, each with probability p.
//
// L. Wan, M. Zeiler, S. Zhang, Y. LeCun, R. Fergus, "Regularization of Neural Networks using
// DropConnect", ICML 2013, with the scale of inverted dropout, s = 1 / (1 - p):
//   y = s x (M o W)^T + b          one mask for all samples, or
//   y[i] = s x[i] (M[i] o W)^T + b  one for each;
//   dx[i] = s dy[i] (M[i] o W),    dW = s sum_i M[i] o (dy[i]^T x[i]).
// The products sum unscaled weights, and s multiplies the sum: a masked weight is exact in any
// type.
//
// Over masks, a unit's input has
//   mean = x W^T + b,              variance = p / (1 - p) x^2 (W^2)^T.
#pragma once

#include <cstdint>

#include "math/dropout.h"
#include "math/host_device.h"

namespace regops {

// Logical index of a weight, in a mask of shape (out_features, in_features) or (samples,
// out_features, in_features): with one mask for all, sample is 0.
REGOPS_HOST_DEVICE uint64_t dropconnect_index(int64_t sample, int64_t out, int64_t in,
                                              int64_t out_features, int64_t in_features) {
  return (static_cast<uint64_t>(sample) * out_features + out) * in_features + in;
}

// Masks of biases, of shape (out_features) or (samples, out_features), begin at this index, which
// no weight reaches.
constexpr uint64_t kDropConnectBiasIndex = uint64_t{1} << 63;

// Variance of a weight's mask with its scale: p / (1 - p) for the p in force. scale - 1, which it
// equals, would lose 17 of 53 bits at p = 2^-17.
REGOPS_HOST_DEVICE double dropconnect_variance(const DropoutRule& rule) {
  const double range = rule.fine ? 4294967296.0 : 65536.0;
  return rule.threshold / (range - rule.threshold);
}

}  // namespace regops
