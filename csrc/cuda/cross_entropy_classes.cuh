// A row's classes in kernels that pass over them twice: adding up neighbouring ones, and storing
// their gradients.
#pragma once

#include <type_traits>

#include "cuda/cross_entropy_row.cuh"

namespace regops {

// In place of the probabilities' type where targets are class indices.
struct ByLabel {};

template <class T, class Q>
struct RowClasses {
  using Real = RealOf<T>;
  static constexpr bool kByLabel = std::is_same_v<Q, ByLabel>;
  using Probability = std::conditional_t<kByLabel, T, Q>;
  using Pieces = RowPieces<T, kVectorSize<T>, int64_t>;

  const T* input;
  T* gradient;
  const Probability* probability;
  Probability* probability_gradient;
  const Real* weight;
  int64_t input_stride, gradient_stride, probability_stride;  // from class to class
  // Whether `head` classes into the row 16-byte accesses are aligned, and classes are neighbours.
  bool gradient_vectors, probability_vectors, probability_gradient_vectors;
  bool general;  // whether a class needs more than its logit: its own weight, or the entropy
  Real keep, off;

  __device__ __forceinline__ RowClasses(const CrossEntropyCall& call, const RowPlace& place)
      : input(row_of<T>(call.input, call.input_strides, place)),
        gradient(row_of<T>(call.gradient, call.gradient_strides, place)),
        probability(row_of<Probability>(call.probability, call.probability_strides, place)),
        probability_gradient(
            row_of<Probability>(call.probability_gradient, call.probability_strides, place)),
        weight(static_cast<const Real*>(call.weight)),
        input_stride(call.input_strides.classes),
        gradient_stride(call.gradient_strides.classes),
        probability_stride(call.probability_strides.classes),
        gradient_vectors(false),
        probability_vectors(false),
        probability_gradient_vectors(false),
        general(!kByLabel || is_general(call)),
        keep(static_cast<Real>(call.keep)),
        off(static_cast<Real>(call.off)) {}

  // Allows 16-byte accesses from class `head` on, where they are aligned; strides are 1.
  __device__ __forceinline__ void find_vectors(int64_t head) {
    gradient_vectors = is_aligned(gradient + head);
    probability_vectors = is_aligned(probability + head);
    probability_gradient_vectors = is_aligned(probability_gradient + head);
  }

  __device__ __forceinline__ Real logit(int64_t c) const {
    return c < 0 ? Real(0) : Element<T>::widen(input[c * input_stride]);
  }

  // Calls visit(first class, logits) for a thread's vectors, kUnroll of them in flight, and for its
  // single element; classes are neighbours.
  template <int kUnroll, class Visit>
  __device__ __forceinline__ void for_each(const Pieces& pieces, int thread, int threads,
                                           Visit visit) const {
    constexpr int kSize = kVectorSize<T>;
    const auto* packs = reinterpret_cast<const Vector<T, kSize>*>(input + pieces.head);
#pragma unroll 1
    for (int64_t v = thread; v < pieces.vectors; v += kUnroll * threads) {
      Vector<T, kSize> pack[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (v + u * threads < pieces.vectors) pack[u] = packs[v + u * threads];
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (v + u * threads >= pieces.vectors) break;
        Real x[kSize];
#pragma unroll
        for (int k = 0; k < kSize; ++k) x[k] = Element<T>::widen(pack[u].element[k]);
        visit(pieces.head + (v + u * threads) * kSize, x);
      }
    }
    if (pieces.has_single(thread)) {
      const Real x[1] = {logit(pieces.single(thread))};
      visit(pieces.single(thread), x);
    }
  }

  // The gradient of a row that is 0, by the same threads.
  __device__ __forceinline__ void store_zeros(const Pieces& pieces, int thread, int threads) const {
#pragma unroll 1
    for (int64_t v = thread; v < pieces.vectors; v += threads) {
      const Real zeros[kVectorSize<T>] = {};
      store_gradient(pieces.head + v * kVectorSize<T>, zeros);
    }
    const Real zero[1] = {};
    if (pieces.has_single(thread)) store_gradient(pieces.single(thread), zero);
  }

  // Adds kCount neighbouring classes.
  template <int kCount>
  __device__ __forceinline__ void add(int64_t first, const Real (&x)[kCount],
                                      SoftmaxSums<Real>& sums) const {
    Real w[kCount], v[kCount];
    if (general) {
      load_v(first, w, v);
      sums.template add_online<true>(x, v);
    } else if constexpr (kByLabel) {
      sums.template add_online<false>(x, v);
    }
  }

  // Stores the gradients of kCount neighbouring classes.
  template <int kCount>
  __device__ __forceinline__ void store(int64_t first, const Real (&x)[kCount],
                                        const RowTarget<Real>& target,
                                        const RowGradient<Real>& of) const {
    Real g[kCount], w[kCount], v[kCount];
    if (general) {
      load_v(first, w, v);
#pragma unroll
      for (int k = 0; k < kCount; ++k) g[k] = of.template at<true>(x[k], v[k]);
    } else if constexpr (kByLabel) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) g[k] = of.template at<false>(x[k], Real(1));
    }
    if constexpr (kByLabel) {
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        g[k] -= of.at_label(first + k, target.labels.a.c, target.labels.b.c);
    }
    store_gradient(first, g);
    if constexpr (!kByLabel) {
      if (probability_gradient == nullptr) return;
#pragma unroll
      for (int k = 0; k < kCount; ++k) w[k] = of.at_probability(x[k], w[k]);
      store_at(probability_gradient, probability_stride, probability_gradient_vectors, first, w);
    }
  }

  template <int kCount>
  __device__ __forceinline__ void store_gradient(int64_t first, const Real (&g)[kCount]) const {
    if (gradient != nullptr) store_at(gradient, gradient_stride, gradient_vectors, first, g);
  }

 private:
  // w, and v as in SoftmaxSums: w, or the target t.
  template <int kCount>
  __device__ __forceinline__ void load_v(int64_t first, Real (&w)[kCount],
                                         Real (&v)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) w[k] = weight == nullptr ? Real(1) : weight[first + k];
    if constexpr (kByLabel) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] = w[k];
    } else {
      load_elements(probability + first * probability_stride, probability_stride,
                    kCount > 1 && probability_vectors, v);
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] = w[k] * (keep * v[k] + off);
    }
  }

  template <class Element, int kCount>
  __device__ __forceinline__ void store_at(Element* row, int64_t stride, bool vectors,
                                           int64_t first, const Real (&x)[kCount]) const {
    store_elements(row + first * stride, stride, kCount > 1 && vectors, x);
  }
};

// Calls function(T(), Q()) for the types of a call's logits and of its probabilities.
template <class Function>
int for_types(const CrossEntropyCall& call, Function function) {
  return for_dtype(static_cast<int>(call.dtype), [&](auto type) {
    using T = decltype(type);
    if (call.probability == nullptr) return function(T(), ByLabel());
    if (call.probability_dtype == call.dtype) return function(T(), T());
    if constexpr (sizeof(T) == 2) {
      if (call.probability_dtype == DType::float32) return function(T(), float());
    }
    return static_cast<int>(cudaErrorInvalidValue);
  });
}

}  // namespace regops
