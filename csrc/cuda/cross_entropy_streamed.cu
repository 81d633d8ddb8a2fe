// Cross-entropy of rows of any length, of class indices or probabilities: one pass for all sums, a
// second one, for which up to 50 MB of the rows are still in L2, for the gradient. Moves 3 x
// itemsize bytes an element for class indices; probabilities are read twice, too.
//
// The elements before the first and after the last 16-byte boundary of a row's logits go one each
// to its first threads; probabilities and gradients that are aligned otherwise are read and written
// one by one.
#include "cuda/cross_entropy_classes.cuh"
#include "cuda/cross_entropy_launch.h"

namespace regops {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kUnroll = 2;  // vectors in flight a thread: 32 bytes, 16 KiB a multiprocessor or more

// blockDim.x threads share a row, 32 or more; with more than 32 a block has one row.
template <class T, class Q>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 1 : 2)
    streamed(const __grid_constant__ CrossEntropyCall call) {
  using Real = RealOf<T>;
  const int thread = threadIdx.x, threads = blockDim.x;
  const int64_t row = block_number() * blockDim.y + threadIdx.y;
  if (row >= call.outer * call.inner) return;  // all threads of a warp, or of the block

  RowClasses<T, Q> classes(call, place_of_row(call, row));
  const RowTarget<Real> target = load_row_target(call, row, weight_sum_of<Real>(call));
  const typename RowClasses<T, Q>::Pieces pieces(classes.input, call.classes);
  classes.find_vectors(pieces.head);

  const auto for_classes = [&](auto visit) {
    classes.template for_each<kUnroll>(pieces, thread, threads, visit);
  };

  const Real logit_a = thread == 0 ? classes.logit(target.labels.a.c) : Real(0);
  const Real logit_b = thread == 0 ? classes.logit(target.labels.b.c) : Real(0);
  SoftmaxSums<Real> sums;
  if (target.reads) {
    for_classes([&](int64_t first, const auto& x) { classes.add(first, x, sums); });
  }
  merge_lanes<32>(sums, ~0u);
  if (threads > 32) {
    sums = merge_warps(sums);
  } else {
    __syncwarp();  // the labels' logits were read before their gradients replace them
  }
  if (thread == 0) store_loss(call, row, target, logit_a, logit_b, sums);

  if (call.gradient == nullptr && call.probability_gradient == nullptr) return;
  if (target.zero_gradient) {
    classes.store_zeros(pieces, thread, threads);
    return;
  }
  const RowGradient<Real> gradient =
      row_gradient(call, target, load_row_upstream<Real>(call, row, target.ignored), sums);
  for_classes([&](int64_t first, const auto& x) { classes.store(first, x, target, gradient); });
}

template <class T, class Q>
int launch(const CrossEntropyCall& call, cudaStream_t stream) {
  const int64_t rows = call.outer * call.inner;
  const int64_t vectors = call.classes / kVectorSize<T>;
  // A warp up to 8 vectors a thread, a small block up to 16.
  const int threads = vectors <= 256 ? 32 : vectors <= 2048 ? 128 : kBlockThreads;
  const int rows_in_block = threads == 32 ? 4 : 1;
  const dim3 block(threads, rows_in_block);
  streamed<T, Q><<<grid_of((rows + rows_in_block - 1) / rows_in_block), block, 0, stream>>>(call);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int cross_entropy_streamed(const CrossEntropyCall& call, cudaStream_t stream) {
  return for_types(call, [&](auto type, auto probability_type) {
    return launch<decltype(type), decltype(probability_type)>(call, stream);
  });
}

}  // namespace regops
