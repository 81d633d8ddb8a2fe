// Label-smoothed cross-entropy of one row, from sums over its classes.
//
// C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception Architecture
// for Computer Vision", CVPR 2016 (smoothing); G. Pereyra, G. Tucker, J. Chorowski, L. Kaiser,
// G. Hinton, "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017
// (entropy); A. Chowdhery et al., "PaLM", JMLR 24 (2023), section 5 (z-loss); H. Zhang, M. Cisse,
// Y. Dauphin, D. Lopez-Paz, "mixup", ICLR 2018 (pairs of labels).
//
// With logits x, p = softmax(x), log-probabilities lp = x - lse, class weights w, labels a and b
// mixed by lambda, smoothed by q = keep onehot + off:
//   l    = sum_c t_c (-lp_c) + omega (z lse^2 - beta H)
//   t_c  = w_c (keep (lambda [c = a] + (1 - lambda) [c = b]) + off u),  H = -sum_c p_c lp_c,
//   dl/dx_c = p_c (T + omega (2 z lse + beta (lp_c + H))) - t_c,        T = sum_c t_c,
// where omega is the weight of the row's labels and u the share of them that is not ignored. For
// probabilities q in place of labels, t_c = w_c (keep q_c + off), omega = 1, dl/dq_c = -keep w_c
// lp_c.
#pragma once

#include "math/host_device.h"

namespace regops {

// A row's target: how much it weighs. All 0 where the row is ignored.
template <class Real>
struct CrossEntropyTarget {
  Real of_a, of_b;  // keep lambda w_a, keep (1 - lambda) w_b
  Real smooth;      // off u
  Real row_weight;  // omega
  Real mass;        // T
};

// weight_a (weight_b): w of the label, 0 where it is ignored, nan where it is no class. share_a
// and share_b: lambda and 1 - lambda, or 1 and 0 without a pair. weight_sum: of all classes.
template <class Real>
REGOPS_HOST_DEVICE CrossEntropyTarget<Real> cross_entropy_target(Real share_a, Real weight_a,
                                                                 bool ignored_a, Real share_b,
                                                                 Real weight_b, bool ignored_b,
                                                                 Real weight_sum, Real keep,
                                                                 Real off) {
  const Real omega_a = ignored_a ? Real(0) : share_a * weight_a;
  const Real omega_b = ignored_b ? Real(0) : share_b * weight_b;
  const Real u = (ignored_a ? Real(0) : share_a) + (ignored_b ? Real(0) : share_b);
  CrossEntropyTarget<Real> target;
  target.of_a = keep * omega_a;
  target.of_b = keep * omega_b;
  target.smooth = off * u;
  target.row_weight = omega_a + omega_b;
  target.mass = target.of_a + target.of_b + target.smooth * weight_sum;
  return target;
}

// Sums over a row's classes, relative to its largest logit m for precision.
template <class Real>
struct CrossEntropySums {
  Real max;      // m
  Real log_sum;  // log sum_c exp(x_c - m), so that lse = m + log_sum
  Real cross;    // sum_c v_c (x_c - m): v is w for labels (0 is given where off = 0), t for
                 // probabilities
  Real entropy;  // H = log_sum - sum_c p_c (x_c - m), a class with p_c = 0 adding 0; 0 is
                 // given where entropy_weight = 0
};

template <class Real>
REGOPS_HOST_DEVICE Real cross_entropy_regularizers(const CrossEntropySums<Real>& sums,
                                                   Real row_weight, Real z_loss,
                                                   Real entropy_weight) {
  // omega (z lse^2 - beta H)
  const Real lse = sums.max + sums.log_sum;
  Real penalty = Real(0);
  if (z_loss != Real(0)) penalty += z_loss * lse * lse;
  if (entropy_weight != Real(0)) penalty -= entropy_weight * sums.entropy;
  return row_weight * penalty;
}

// a, b: the labels' x - m; not looked at where there is no such label.
template <class Real>
REGOPS_HOST_DEVICE Real cross_entropy_loss(const CrossEntropyTarget<Real>& target,
                                           const CrossEntropySums<Real>& sums, Real weight_sum,
                                           Real a, bool has_a, Real b, bool has_b, Real z_loss,
                                           Real entropy_weight) {
  // sum_c t_c (lse - x_c), with lse - x_c = log_sum - (x_c - m)
  Real loss = Real(0);
  if (has_a) loss += target.of_a * (sums.log_sum - a);
  if (has_b) loss += target.of_b * (sums.log_sum - b);
  if (target.smooth != Real(0)) {
    loss += target.smooth * (weight_sum * sums.log_sum - sums.cross);
  }
  return loss + cross_entropy_regularizers(sums, target.row_weight, z_loss, entropy_weight);
}

template <class Real>
REGOPS_HOST_DEVICE Real cross_entropy_probability_loss(const CrossEntropySums<Real>& sums,
                                                       Real mass, Real z_loss,
                                                       Real entropy_weight) {
  return mass * sums.log_sum - sums.cross +
         cross_entropy_regularizers(sums, Real(1), z_loss, entropy_weight);
}

// dl/dx_c = p_c (of_p + of_p_lp lp_c) - scale t_c, upstream gradients included.
template <class Real>
struct CrossEntropyGradient {
  Real of_p;     // s (T + omega (2 z lse + beta H)) + upstream of lse
  Real of_p_lp;  // s omega beta
};

// scale: upstream gradient of the loss, over the divisor.
template <class Real>
REGOPS_HOST_DEVICE CrossEntropyGradient<Real> cross_entropy_gradient(
    const CrossEntropySums<Real>& sums, Real mass, Real row_weight, Real scale, Real upstream_lse,
    Real z_loss, Real entropy_weight) {
  const Real lse = sums.max + sums.log_sum;
  Real regularizer = Real(0);
  if (z_loss != Real(0)) regularizer += Real(2) * z_loss * lse;
  if (entropy_weight != Real(0)) regularizer += entropy_weight * sums.entropy;
  CrossEntropyGradient<Real> gradient;
  gradient.of_p = scale * (mass + row_weight * regularizer) + upstream_lse;
  gradient.of_p_lp = scale * row_weight * entropy_weight;
  return gradient;
}

// Sums over a shard of a row's classes, as processes that hold one each exchange them. Relative to
// the shard's own largest logit m: with the sum of the logits as such, thousands of terms of the
// size of x would cancel against as many of lse.
template <class Real>
struct CrossEntropyShard {
  Real max;      // m, -inf where no logit is larger; the other sums are then relative to 0
  Real sum;      // sum_c exp(x_c - m)
  Real cross;    // sum_c w_c (x_c - m)
  Real mass;     // sum_c w_c
  Real label;    // the label's logit, 0 where it is in another shard
  Real classes;  // how many there are
};

// Adds a shard to sums whose `max` is the largest of all shards: with d = m_shard - m,
//   sum_c exp(x_c - m) = exp(d) sum_c exp(x_c - m_shard),
//   sum_c w_c (x_c - m) = sum_c w_c (x_c - m_shard) + d sum_c w_c.
// factor: exp(d).
template <class Real>
REGOPS_HOST_DEVICE void cross_entropy_add_shard(const CrossEntropyShard<Real>& shard, Real d,
                                                Real factor, CrossEntropyShard<Real>* all) {
  all->sum += factor * shard.sum;
  all->cross += shard.cross + d * shard.mass;
  all->mass += shard.mass;
  all->label += shard.label;
  all->classes += shard.classes;
}

// Whether shards have all classes between them. A float counts to 2^24; 2^21 are told apart.
template <class Real>
REGOPS_HOST_DEVICE bool cross_entropy_adds_up(Real found, Real classes) {
  const Real slack = classes * Real(0x1p-22);
  return found >= classes - slack && found <= classes + slack;
}

}  // namespace regops
