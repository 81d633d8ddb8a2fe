// What every cross-entropy kernel does for a row: its target before, and its loss and the
// coefficients of its gradient after the pass over its classes.
#pragma once

#include "cross_entropy_call.h"
#include "cuda/softmax_sums.cuh"
#include "cuda/vector.cuh"
#include "math/cross_entropy.h"

namespace regops {

template <class T>
using RealOf = typename Element<T>::Compute;

struct RowPlace {
  int64_t outer, inner;

  __device__ __forceinline__ int64_t offset(const ClassStrides& strides) const {
    return outer * strides.outer + inner * strides.inner;
  }
};

__device__ __forceinline__ RowPlace place_of_row(const CrossEntropyCall& call, int64_t row) {
  if (call.inner == 1) return {row, 0};  // spares a 64-bit division
  return {row / call.inner, row % call.inner};
}

// Where a row's tensors begin; null where there is none.
template <class T>
__device__ __forceinline__ T* row_of(const void* tensor, const ClassStrides& strides,
                                     const RowPlace& place) {
  if (tensor == nullptr) return nullptr;
  return static_cast<T*>(const_cast<void*>(tensor)) + place.offset(strides);
}

// How a row's elements are shared by its threads: whole vectors of kSize elements between 16-byte
// boundaries, and the elements before and after them, one each, to the first threads.
template <class T, int kSize, class Index>
struct RowPieces {
  Index head, vectors, tail;

  RowPieces() = default;
  __device__ __forceinline__ RowPieces(const T* row, Index classes) {
    constexpr int kBytes = kSize * sizeof(T);
    const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row) % kBytes);
    const Index to_boundary = misaligned == 0 ? 0 : (kBytes - misaligned) / sizeof(T);
    head = kSize == 1 ? 0 : to_boundary < classes ? to_boundary : classes;
    vectors = (classes - head) / kSize;
    tail = classes - head - vectors * kSize;
  }

  // Whether a thread has an element outside of vectors, and which.
  __device__ __forceinline__ bool has_single(int thread) const {
    return kSize > 1 && thread < head + tail;
  }
  __device__ __forceinline__ Index single(int thread) const {
    return thread < head ? thread : vectors * kSize + thread;
  }
};

// Element i of an array of Real, or `absent` where there is no array.
template <class Real>
__device__ __forceinline__ Real load_or(const void* array, int64_t i, Real absent) {
  return array == nullptr ? absent : static_cast<const Real*>(array)[i];
}

struct RowLabel {
  int64_t c;    // the class, -1 where it is none or does not count
  bool counts;  // whether it is there and not ignored
};

struct RowLabels {
  RowLabel a, b;

  __device__ __forceinline__ bool ignored() const { return !a.counts && !b.counts; }
};

__device__ __forceinline__ RowLabel load_label(const CrossEntropyCall& call, const int64_t* labels,
                                               int64_t row) {
  if (labels == nullptr) return {-1, false};
  const int64_t label = labels[row];
  if (label == call.ignore_index) return {-1, false};
  return {label >= 0 && label < call.classes ? label : -1, true};
}

__device__ __forceinline__ RowLabels load_row_labels(const CrossEntropyCall& call, int64_t row) {
  return {load_label(call, call.target, row), load_label(call, call.target_b, row)};
}

template <class Real>
struct RowTarget {
  RowLabels labels;
  CrossEntropyTarget<Real> weights;
  bool ignored;        // whether the loss is 0, whatever the logits
  bool zero_gradient;  // and so is the gradient
  bool reads;          // whether any result depends on the logits
};

template <class Real>
__device__ __forceinline__ Real weight_sum_of(const CrossEntropyCall& call) {
  if (call.weight == nullptr) return static_cast<Real>(call.classes);
  return load_or(call.totals, 1, Real(1));
}

// Whether the gradient of a row is 0, whatever its logits.
__device__ __forceinline__ bool has_zero_gradient(const CrossEntropyCall& call, bool ignored) {
  return ignored && call.upstream_lse == nullptr;
}

// Whether any result of a row depends on its logits.
__device__ __forceinline__ bool reads_row(const CrossEntropyCall& call, bool ignored) {
  return !has_zero_gradient(call, ignored) || call.lse != nullptr;
}

// w of a label: nan where it is no class, which makes the row's results nan.
template <class Real>
__device__ __forceinline__ Real label_weight(const CrossEntropyCall& call, const RowLabel& label) {
  if (label.c >= 0) return load_or(call.weight, label.c, Real(1));
  return label.counts ? minus_infinity<Real>() - minus_infinity<Real>() : Real(0);
}

// For probabilities, a target that weighs nothing.
template <class Real>
__device__ __forceinline__ RowTarget<Real> load_row_target(const CrossEntropyCall& call,
                                                           int64_t row, Real weight_sum) {
  RowTarget<Real> target;
  target.labels = load_row_labels(call, row);
  const RowLabel &a = target.labels.a, &b = target.labels.b;
  Real share_a = 1, share_b = 0;
  if (call.target_b != nullptr) {
    const int64_t at = call.rows_per_lam == 1 ? row : row / call.rows_per_lam;
    share_a = load_or(call.lam, at, Real(1));
    share_b = Real(1) - share_a;
  }
  target.weights = cross_entropy_target(share_a, label_weight<Real>(call, a), !a.counts, share_b,
                                        label_weight<Real>(call, b), !b.counts, weight_sum,
                                        static_cast<Real>(call.keep), static_cast<Real>(call.off));
  target.ignored = call.target != nullptr && target.labels.ignored();
  target.zero_gradient = has_zero_gradient(call, target.ignored);
  target.reads = reads_row(call, target.ignored);
  return target;
}

// The upstream gradients of a row's loss, over the divisor, and of its lse.
template <class Real>
struct RowUpstream {
  Real scale, lse;
};

template <class Real>
__device__ __forceinline__ RowUpstream<Real> load_row_upstream(const CrossEntropyCall& call,
                                                               int64_t row, bool ignored) {
  RowUpstream<Real> upstream = {Real(0), load_or(call.upstream_lse, row, Real(0))};
  // An ignored row's part of the loss is selected to 0: the divisor may be 0, too.
  if (!ignored) {
    upstream.scale = load_or(call.upstream, row * call.upstream_stride, Real(1)) /
                     load_or(call.totals, 0, Real(1));
  }
  return upstream;
}

// Of the gradient g_c = e_c (of_e + of_e_lp lp_c) - of_v v_c of a row, less of_a and of_b at its
// labels; e_c = exp(x_c - reference), and v as in SoftmaxSums.
template <class Real>
struct RowGradient {
  Real reference, log_sum;
  Real of_e, of_e_lp, of_v, of_a, of_b;
  Real of_probability;  // dl/dq_c = -of_probability w_c lp_c

  template <bool kGeneral>
  __device__ __forceinline__ Real at(Real x, Real v) const {
    const Real d = x - reference;
    const Real e = exponential(d);
    if constexpr (!kGeneral) return e * of_e - of_v;
    const Real lp = e == Real(0) ? Real(0) : d - log_sum;
    return e * (of_e + of_e_lp * lp) - of_v * v;
  }

  // What is subtracted at class c.
  template <class Class>
  __device__ __forceinline__ Real at_label(Class c, Class a, Class b) const {
    return (c == a ? of_a : Real(0)) + (c == b ? of_b : Real(0));
  }

  __device__ __forceinline__ Real at_probability(Real x, Real weight) const {
    return -of_probability * weight * (x - reference - log_sum);
  }
};

template <class Real>
__device__ __forceinline__ CrossEntropySums<Real> final_sums(const CrossEntropyCall& call,
                                                             const SoftmaxSums<Real>& sums) {
  CrossEntropySums<Real> final;
  final.max = reference_of(sums.max);
  final.log_sum = log(sums.sum);
  final.cross = sums.cross;  // which has no part in the loss where off = 0
  final.entropy = call.entropy_weight != 0.0 ? final.log_sum - sums.entropy / sums.sum : Real(0);
  return final;
}

// Stores the loss and lse of a row, from one thread. logit_a and logit_b: at its labels.
template <class Real>
__device__ __forceinline__ void store_loss(const CrossEntropyCall& call, int64_t row,
                                           const RowTarget<Real>& target, Real logit_a,
                                           Real logit_b, const SoftmaxSums<Real>& sums) {
  const CrossEntropySums<Real> final = final_sums(call, sums);
  const Real z_loss = static_cast<Real>(call.z_loss);
  const Real entropy_weight = static_cast<Real>(call.entropy_weight);
  if (call.loss != nullptr) {
    Real loss = 0;
    if (call.probability != nullptr) {
      loss = cross_entropy_probability_loss(final, sums.mass, z_loss, entropy_weight);
    } else if (!target.ignored) {
      loss = cross_entropy_loss(target.weights, final, weight_sum_of<Real>(call),
                                logit_a - final.max, target.labels.a.counts, logit_b - final.max,
                                target.labels.b.counts, z_loss, entropy_weight);
    }
    static_cast<Real*>(call.loss)[row] = loss;
  }
  if (call.lse != nullptr) {
    // A logit of +inf makes the differences above nan, but not lse.
    const bool infinite = sums.max == -minus_infinity<Real>();
    static_cast<Real*>(call.lse)[row] = infinite ? sums.max : final.max + final.log_sum;
  }
}

template <class Real>
__device__ __forceinline__ RowGradient<Real> row_gradient(const CrossEntropyCall& call,
                                                          const RowTarget<Real>& target,
                                                          const RowUpstream<Real>& upstream,
                                                          const SoftmaxSums<Real>& sums) {
  const CrossEntropySums<Real> final = final_sums(call, sums);
  const bool by_probability = call.probability != nullptr;
  const CrossEntropyGradient<Real> of = cross_entropy_gradient(
      final, by_probability ? sums.mass : target.weights.mass,
      by_probability ? Real(1) : target.weights.row_weight, upstream.scale, upstream.lse,
      static_cast<Real>(call.z_loss), static_cast<Real>(call.entropy_weight));
  RowGradient<Real> gradient;
  gradient.reference = final.max;
  gradient.log_sum = final.log_sum;
  gradient.of_e = of.of_p / sums.sum;
  gradient.of_e_lp = of.of_p_lp / sums.sum;
  gradient.of_v = by_probability ? upstream.scale : upstream.scale * target.weights.smooth;
  gradient.of_a = upstream.scale * target.weights.of_a;
  gradient.of_b = upstream.scale * target.weights.of_b;
  gradient.of_probability = upstream.scale * static_cast<Real>(call.keep);
  return gradient;
}

// Whether a class needs more than its logit: its own weight, or the entropy.
__device__ __forceinline__ bool is_general(const CrossEntropyCall& call) {
  return call.entropy_weight != 0.0 || (call.weight != nullptr && call.off != 0.0);
}

}  // namespace regops
