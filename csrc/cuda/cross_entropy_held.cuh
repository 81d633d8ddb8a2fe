// A row of cross-entropy in the registers of the threads that share it.
#pragma once

#include "cuda/cross_entropy_row.cuh"

namespace regops {

// Makes the compiler forget what it has computed from packs: widened elements that it kept for the
// next pass would take twice the registers of the packs.
template <class Pack, int kHeld>
__device__ __forceinline__ void keep_packed(Pack (&pack)[kHeld]) {
  if constexpr (sizeof(Pack) == 16) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      uint4& words = reinterpret_cast<uint4&>(pack[u]);
      asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
    }
  }
}

template <class T, int kSize>
__device__ __forceinline__ void widen_all(const Vector<T, kSize>& pack, RealOf<T> (&x)[kSize]) {
#pragma unroll
  for (int k = 0; k < kSize; ++k) x[k] = Element<T>::widen(pack.element[k]);
}

template <bool kGeneral, class Real, int kCount>
__device__ __forceinline__ void load_weights(const CrossEntropyCall& call, int first,
                                             Real (&w)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    w[k] = kGeneral ? load_or(call.weight, first + k, Real(1)) : Real(1);
  }
}

// What the threads of a row need only after the pass over its classes, in shared memory until then:
// in registers it would be in the way of the row.
template <class T>
struct SharedRow {
  using Real = RealOf<T>;
  RowTarget<Real> target;
  RowUpstream<Real> upstream;
  Real logit_a, logit_b;  // at the labels
  int64_t output;         // where the row's gradient begins

  // Called by two threads, which wait for memory at the same time.
  __device__ __forceinline__ void load_target(const CrossEntropyCall& call, int64_t row) {
    target = load_row_target(call, row, weight_sum_of<Real>(call));
  }
  __device__ __forceinline__ void load_others(const CrossEntropyCall& call, int64_t row,
                                              const T* input) {
    const RowLabels labels = load_row_labels(call, row);
    logit_a = labels.a.c < 0 ? Real(0) : Element<T>::widen(input[labels.a.c]);
    logit_b = labels.b.c < 0 ? Real(0) : Element<T>::widen(input[labels.b.c]);
    upstream = load_row_upstream<Real>(call, row, labels.ignored());
  }
};

// The part of a row that a thread holds: vectors u = 0, 1, ... from class `first` + u kStep on
// while u kThreads < count, and class `single` where that is not negative.
template <int kThreads, int kSize>
struct HeldPart {
  static constexpr int kStep = kThreads * kSize;
  int first, count, single;

  // Block `rank` of `blocks` takes one of as many equal parts of the vectors.
  template <class T>
  __device__ __forceinline__ HeldPart(const RowPieces<T, kSize, int>& pieces, int thread, int rank,
                                      int blocks) {
    const int share = (pieces.vectors + blocks - 1) / blocks;
    const int vector = rank * share + thread;
    first = pieces.head + vector * kSize;
    count = min(share - thread, pieces.vectors - vector);
    single = rank == 0 && pieces.has_single(thread) ? pieces.single(thread) : -1;
  }
};

}  // namespace regops
