// Cross-entropy over classes that are split over processes: one pass for a shard's statistics and,
// when those of all shards are known, a second one for its gradient: 3 x itemsize bytes an element.
// Between them a kernel of a thread a row, on kShardStatistics numbers a row and process.
//
// Rows are shared by threads as in cuda/cross_entropy_streamed.cu.
#include "cuda/vocab_parallel_cross_entropy.h"

#include "cuda/cross_entropy_classes.cuh"
#include "cuda/grid.h"

namespace regops {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kLossThreads = 128;
// Vectors in flight a thread: 32 KiB a multiprocessor or more, for the statistics, which have the
// registers.
constexpr int kStatisticsUnroll = 4;
constexpr int kGradientUnroll = 2;

__device__ __forceinline__ bool is_lost(const VocabParallelCall& call, bool ignored) {
  return ignored && !call.reads_ignored;
}

// blockDim.x threads share a row, 32 or more; with more than 32 a block has one row.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 1 : 2)
    statistics(const __grid_constant__ VocabParallelCall call) {
  using Real = RealOf<T>;
  using Classes = RowClasses<T, ByLabel>;
  static_assert(sizeof(CrossEntropyShard<Real>) == kShardStatistics * sizeof(Real));
  const int thread = threadIdx.x, threads = blockDim.x;
  const int64_t row = block_number() * blockDim.y + threadIdx.y;
  if (row >= call.all.outer) return;  // all threads of a warp, or of the block

  const Classes classes(call.shard, {row, 0});
  const typename Classes::Pieces pieces(classes.input, call.shard.classes);
  const RowLabels labels = load_row_labels(call.all, row);
  SoftmaxSums<Real> sums;
  if (!is_lost(call, labels.ignored())) {
    classes.template for_each<kStatisticsUnroll>(
        pieces, thread, threads,
        [&](int64_t first, const auto& x) { classes.add(first, x, sums); });
  }
  merge_lanes<32>(sums, ~0u);
  if (threads > 32) sums = merge_warps(sums);
  if (thread != 0) return;
  const int64_t label = labels.a.c < 0 ? -1 : labels.a.c - call.first_class;
  const bool has_label = label >= 0 && label < call.shard.classes;
  static_cast<CrossEntropyShard<Real>*>(call.statistics)[row] = {
      sums.max,
      sums.sum,
      sums.cross,
      sums.mass,
      has_label ? classes.logit(label) : Real(0),
      static_cast<Real>(call.shard.classes)};
}

// Every process adds up the shards in the same order, and so has the same bits.
template <class Real>
__global__ void __launch_bounds__(kLossThreads)
    losses(const __grid_constant__ VocabParallelCall call) {
  const int64_t row = block_number() * kLossThreads + threadIdx.x;
  if (row >= call.all.outer) return;
  const auto* of_row = static_cast<const CrossEntropyShard<Real>*>(call.gathered) + row;
  CrossEntropyShard<Real> all = {minus_infinity<Real>(), 0, 0, 0, 0, 0};
#pragma unroll 1
  for (int64_t k = 0; k < call.shards; ++k) {
    all.max = maximum(all.max, of_row[k * call.all.outer].max);
  }
#pragma unroll 1
  for (int64_t k = 0; k < call.shards; ++k) {
    const CrossEntropyShard<Real> shard = of_row[k * call.all.outer];
    const Real d = shard.max == minus_infinity<Real>() ? Real(0) : shard.max - all.max;
    cross_entropy_add_shard(shard, d, exponential(d), &all);
  }
  SoftmaxSums<Real> sums;
  sums.max = all.max;
  sums.sum = all.sum;
  sums.cross = all.cross;
  if (!cross_entropy_adds_up(all.classes, static_cast<Real>(call.all.classes))) {
    sums.sum = minus_infinity<Real>() - minus_infinity<Real>();
  }
  const RowTarget<Real> target = load_row_target(call.all, row, weight_sum_of<Real>(call.all));
  store_loss(call.all, row, target, all.label, Real(0), sums);
  Real* normalizers = static_cast<Real*>(call.normalizers) + row * kNormalizers;
  normalizers[0] = sums.max;
  normalizers[1] = sums.sum;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 1 : 2)
    gradient(const __grid_constant__ VocabParallelCall call) {
  using Real = RealOf<T>;
  using Classes = RowClasses<T, ByLabel>;
  const int thread = threadIdx.x, threads = blockDim.x;
  const int64_t row = block_number() * blockDim.y + threadIdx.y;
  if (row >= call.all.outer) return;

  Classes classes(call.shard, {row, 0});
  const typename Classes::Pieces pieces(classes.input, call.shard.classes);
  classes.find_vectors(pieces.head);
  RowTarget<Real> target = load_row_target(call.all, row, weight_sum_of<Real>(call.all));
  if (target.zero_gradient) {
    classes.store_zeros(pieces, thread, threads);
    return;
  }
  const Real* normalizers = static_cast<const Real*>(call.normalizers) + row * kNormalizers;
  SoftmaxSums<Real> sums;
  sums.max = normalizers[0];
  sums.sum = normalizers[1];
  const RowGradient<Real> of =
      row_gradient(call.all, target, load_row_upstream<Real>(call.all, row, target.ignored), sums);
  // One of another shard is then none of this one's classes.
  if (target.labels.a.c >= 0) target.labels.a.c -= call.first_class;
  classes.template for_each<kGradientUnroll>(
      pieces, thread, threads,
      [&](int64_t first, const auto& x) { classes.store(first, x, target, of); });
}

struct Launch {
  dim3 grid, block;
};

template <class T>
Launch launch_of(const VocabParallelCall& call) {
  const int64_t rows = call.all.outer, vectors = call.shard.classes / kVectorSize<T>;
  // A warp up to 8 vectors a thread, a small block up to 16.
  const int threads = vectors <= 256 ? 32 : vectors <= 2048 ? 128 : kBlockThreads;
  const int rows_in_block = threads == 32 ? 4 : 1;
  return {grid_of((rows + rows_in_block - 1) / rows_in_block), dim3(threads, rows_in_block)};
}

}  // namespace
}  // namespace regops

extern "C" int regops_vocab_parallel_statistics_cuda(const regops::VocabParallelCall* call,
                                                     void* stream) {
  if (call->all.outer == 0) return 0;
  return regops::for_dtype(static_cast<int>(call->all.dtype), [&](auto type) {
    using T = decltype(type);
    const regops::Launch shape = regops::launch_of<T>(*call);
    regops::statistics<T><<<shape.grid, shape.block, 0, static_cast<cudaStream_t>(stream)>>>(*call);
    return static_cast<int>(cudaGetLastError());
  });
}

extern "C" int regops_vocab_parallel_losses_cuda(const regops::VocabParallelCall* call,
                                                 void* stream) {
  const int64_t rows = call->all.outer;
  if (rows == 0) return 0;
  const dim3 grid = regops::grid_of((rows + regops::kLossThreads - 1) / regops::kLossThreads);
  const auto on = static_cast<cudaStream_t>(stream);
  if (call->all.dtype == regops::DType::float64) {
    regops::losses<double><<<grid, regops::kLossThreads, 0, on>>>(*call);
  } else {
    regops::losses<float><<<grid, regops::kLossThreads, 0, on>>>(*call);
  }
  return static_cast<int>(cudaGetLastError());
}

extern "C" int regops_vocab_parallel_gradient_cuda(const regops::VocabParallelCall* call,
                                                   void* stream) {
  if (call->all.outer == 0 || call->shard.classes == 0) return 0;
  return regops::for_dtype(static_cast<int>(call->all.dtype), [&](auto type) {
    using T = decltype(type);
    const regops::Launch shape = regops::launch_of<T>(*call);
    regops::gradient<T><<<shape.grid, shape.block, 0, static_cast<cudaStream_t>(stream)>>>(*call);
    return static_cast<int>(cudaGetLastError());
  });
}
