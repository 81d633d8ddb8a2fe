// Cross-entropy over a class dimension whose elements lie apart, as in (N, C, d1, ...): a thread a
// row. Neighbouring threads take neighbouring elements of the inner dimension, so a warp's accesses
// to one class are contiguous. One pass for all sums, a second one, in part from L2, for the
// gradient: 3 x itemsize bytes an element.
//
// A thread touches no other row, so that in place nothing is read after it was written.
#include "cuda/cross_entropy_classes.cuh"
#include "cuda/cross_entropy_launch.h"

namespace regops {
namespace {

constexpr int kThreads = 128;
template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 4 : 8;  // classes in flight a thread

template <class T, class Q>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 6)
    columns(const __grid_constant__ CrossEntropyCall call) {
  using Real = RealOf<T>;
  const int64_t row = block_number() * kThreads + threadIdx.x;
  if (row >= call.outer * call.inner) return;
  const RowClasses<T, Q> classes(call, place_of_row(call, row));
  const RowTarget<Real> target = load_row_target(call, row, weight_sum_of<Real>(call));

  const auto for_classes = [&](auto visit) {
    int64_t c = 0;
#pragma unroll 1
    for (; c + kUnroll<T> <= call.classes; c += kUnroll<T>) {
      Real x[kUnroll<T>];
      load_elements(classes.input + c * classes.input_stride, classes.input_stride, false, x);
      visit(c, x);
    }
#pragma unroll 1
    for (; c < call.classes; ++c) {
      const Real x[1] = {classes.logit(c)};
      visit(c, x);
    }
  };

  SoftmaxSums<Real> sums;
  if (target.reads) {
    for_classes([&](int64_t c, const auto& x) { classes.add(c, x, sums); });
  }
  store_loss(call, row, target, classes.logit(target.labels.a.c), classes.logit(target.labels.b.c),
             sums);

  if (call.gradient == nullptr && call.probability_gradient == nullptr) return;
  if (target.zero_gradient) {
#pragma unroll 1
    for (int64_t c = 0; c < call.classes; ++c) {
      const Real zero[1] = {};
      classes.store_gradient(c, zero);
    }
    return;
  }
  const RowGradient<Real> gradient =
      row_gradient(call, target, load_row_upstream<Real>(call, row, target.ignored), sums);
  for_classes([&](int64_t c, const auto& x) { classes.store(c, x, target, gradient); });
}

}  // namespace

int cross_entropy_columns(const CrossEntropyCall& call, cudaStream_t stream) {
  return for_types(call, [&](auto type, auto probability_type) {
    const int64_t blocks = (call.outer * call.inner + kThreads - 1) / kThreads;
    columns<decltype(type), decltype(probability_type)>
        <<<grid_of(blocks), kThreads, 0, stream>>>(call);
    return static_cast<int>(cudaGetLastError());
  });
}

}  // namespace regops
