// Cross-entropy of rows that fit on chip: each logit is read once and each gradient written once,
// 2 x itemsize bytes an element for loss and gradient together.
//
// A row is held in registers by 8 threads (up to 32 classes), a warp (4 KiB), a block of 128 or 512
// threads (16 or 64 KiB) or, from compute capability 9.0 on, a cluster of 2 to 8 blocks (512 KiB),
// which exchange their sums through distributed shared memory. Rows start anywhere: the elements
// before the first and after the last 16-byte boundary, at most 14, go one each to the first
// threads of the row, so that misaligned rows cost one narrow access a thread more.
#include <type_traits>

#include "cuda/cross_entropy_held.cuh"
#include "cuda/cross_entropy_launch.h"

namespace regops {
namespace {

constexpr int kShortRow = 32;         // classes of the longest row for a part of a warp
constexpr int kShortThreads = 8;      // threads of such a row
constexpr int kVectors = 8;           // 16-byte vectors a thread: 128 bytes in flight
constexpr int kClusterThreads = 512;  // two blocks of 64 KiB on a multiprocessor, so that one can
                                      // load while the other waits for its cluster
constexpr unsigned kMostBlocks = 8;   // of a cluster; more than 8 are not portable
constexpr bool kAssign = true;        // see store_elements; otherwise threads spill 8 bytes

constexpr __host__ __device__ int block_threads(int threads) {
  return threads < 128 ? 128 : threads;
}

// kThreads of a block share a row; with kCluster all blocks of a cluster do.
template <class T, int kSize, int kHeld, int kThreads, bool kCluster>
__global__ void __launch_bounds__(block_threads(kThreads), 1024 / block_threads(kThreads))
    on_chip(const __grid_constant__ CrossEntropyCall call) {
#if __CUDA_ARCH__ < 900
  if constexpr (kCluster) return;  // never launched; see clusters_work
#endif
  using Real = RealOf<T>;
  using Pack = Vector<T, kSize>;
  using Held = HeldPart<kThreads, kSize>;
  constexpr int kLanes = kThreads < 32 ? kThreads : 32;
  constexpr int kRows = block_threads(kThreads) / kThreads;
  const int rank = kCluster ? blockIdx.z : 0;
  const int thread = threadIdx.x % kThreads;
  const int64_t row = block_number() * kRows + threadIdx.x / kThreads;
  // All threads of a row leave together, so the others need not wait for them.
  if (row >= call.outer * call.inner) return;
  const unsigned mask = lanes_mask<kLanes>();
  __shared__ SharedRow<T> shared_rows[kRows];
  SharedRow<T>& shared = shared_rows[threadIdx.x / kThreads];

  // Read.
  const RowPlace place = place_of_row(call, row);
  const T* input = row_of<T>(call.input, call.input_strides, place);
  const int64_t to = place.offset(call.gradient_strides);
  if (thread == 0) shared.output = to;
  const RowPieces<T, kSize, int> pieces(input, static_cast<int>(call.classes));
  const Held held(pieces, thread, rank, kCluster ? gridDim.z : 1);
  const bool ignored = load_row_labels(call, row).ignored();
  const bool reads = reads_row(call, ignored);
  Pack pack[kHeld];
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    if (reads && u * kThreads < held.count) {
      pack[u] = *reinterpret_cast<const Pack*>(input + held.first + u * Held::kStep);
    }
  }
  Real x_single[1] = {minus_infinity<Real>()};
  if (reads && held.single >= 0) x_single[0] = Element<T>::widen(input[held.single]);
  if (call.gradient != nullptr && has_zero_gradient(call, ignored)) {
    T* output = static_cast<T*>(call.gradient) + to;
#pragma unroll 1
    for (int u = 0; u * kThreads < held.count; ++u) {
      const Real zeros[kSize] = {};
      store_elements<T, kSize, kAssign>(
          output + held.first + u * Held::kStep, 1,
          reinterpret_cast<uintptr_t>(output + held.first) % sizeof(Pack) == 0, zeros);
    }
    if (held.single >= 0) output[held.single] = Element<T>::round(0);
  }
  if (!reads) {
    if (thread == 0 && rank == 0 && call.loss != nullptr) static_cast<Real*>(call.loss)[row] = 0;
    return;
  }
  if (thread == 0) shared.load_target(call, row);
  if (thread == kThreads / 2) shared.load_others(call, row, input);

  // Add up, first relative to the warp's largest logit, then to the row's.
  SoftmaxSums<Real> sums;
  sums.max = x_single[0];
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    if (u * kThreads >= held.count) continue;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      sums.max = maximum(sums.max, Element<T>::widen(pack[u].element[k]));
    }
  }
  sums.max = lanes_max<kLanes>(sums.max, mask);
  keep_packed(pack);
  const auto add_all = [&](auto general) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (u * kThreads >= held.count) continue;
      Real x[kSize], w[kSize];
      widen_all(pack[u], x);
      load_weights<general.value>(call, held.first + u * Held::kStep, w);
      sums.template add<general.value>(x, w);
    }
    if (held.single >= 0) {
      Real w[1];
      load_weights<general.value>(call, held.single, w);
      sums.template add<general.value>(x_single, w);
    }
  };
  if (is_general(call)) {
    add_all(std::true_type());
  } else {
    add_all(std::false_type());
  }
  add_lanes<kLanes>(sums, mask);
  if constexpr (kThreads > 32) {
    sums = merge_warps(sums);
  } else {
    __syncwarp(mask);  // for `shared`, and before gradients replace logits that it was loaded from
  }
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) sums = merge_blocks(sums);
#endif
  if (thread == 0 && rank == 0) {
    store_loss(call, row, shared.target, shared.logit_a, shared.logit_b, sums);
  }

  // Write.
  keep_packed(pack);
  T* output = static_cast<T*>(call.gradient) + shared.output;
  const bool aligned = reinterpret_cast<uintptr_t>(output + held.first) % sizeof(Pack) == 0;
  const auto write_all = [&](auto gradients_of) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (u * kThreads >= held.count) continue;
      Real x[kSize];
      widen_all(pack[u], x);
      gradients_of(held.first + u * Held::kStep, x);
      store_elements<T, kSize, kAssign>(output + held.first + u * Held::kStep, 1, aligned, x);
    }
    if (held.single >= 0) {
      gradients_of(held.single, x_single);
      output[held.single] = Element<T>::round(x_single[0]);
    }
  };
  const RowGradient<Real> gradient = row_gradient(call, shared.target, shared.upstream, sums);
  const int a = static_cast<int>(shared.target.labels.a.c);
  const int b = static_cast<int>(shared.target.labels.b.c);
  const auto gradients_of = [&](int first, auto general, auto& x) {
    constexpr int kCount = sizeof(x) / sizeof(Real);
    Real w[kCount];
    load_weights<general.value>(call, first, w);
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = gradient.template at<general.value>(x[k], w[k]);
    if (static_cast<unsigned>(a - first) < kCount || static_cast<unsigned>(b - first) < kCount) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] -= gradient.at_label(first + k, a, b);
    }
  };
  if (call.gradient == nullptr || shared.target.zero_gradient) {
    // Nothing is left to write.
  } else if (is_general(call)) {
    write_all([&](int first, auto& x) { gradients_of(first, std::true_type(), x); });
  } else {
    write_all([&](int first, auto& x) { gradients_of(first, std::false_type(), x); });
  }
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) leave_cluster();
#endif
}

// Threads of a block for a row, and blocks of its cluster; 0 where it does not fit.
struct Shape {
  int threads;
  unsigned blocks;
};

Shape shape_of(int64_t vectors, int capability) {
  for (const int threads : {32, 128, kClusterThreads}) {
    if (vectors <= int64_t(threads) * kVectors) return {threads, 1};
  }
  for (unsigned blocks = 2; clusters_work(capability) && blocks <= kMostBlocks; blocks *= 2) {
    if (vectors <= int64_t(blocks) * kClusterThreads * kVectors) return {kClusterThreads, blocks};
  }
  return {0, 0};
}

template <class T, int kSize, int kHeld, int kThreads>
int launch(const CrossEntropyCall& call, cudaStream_t stream) {
  constexpr int kRows = block_threads(kThreads) / kThreads;
  const int64_t rows = call.outer * call.inner;
  on_chip<T, kSize, kHeld, kThreads, false>
      <<<grid_of((rows + kRows - 1) / kRows), block_threads(kThreads), 0, stream>>>(call);
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int launch_cluster(const CrossEntropyCall& call, unsigned blocks, cudaStream_t stream) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {1, 1, blocks};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid_of(call.outer * call.inner);
  config.gridDim.z = blocks;
  config.blockDim = kClusterThreads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const auto kernel = on_chip<T, kVectorSize<T>, kVectors, kClusterThreads, true>;
  cudaLaunchKernelEx(&config, kernel, call);
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int launch_fitting(const CrossEntropyCall& call, cudaStream_t stream) {
  constexpr int kSize = kVectorSize<T>;
  if (call.classes <= kShortRow) {
    return launch<T, 1, kShortRow / kShortThreads, kShortThreads>(call, stream);
  }
  const Shape shape = shape_of(call.classes / kSize, current_cuda_device().capability);
  if (shape.blocks > 1) return launch_cluster<T>(call, shape.blocks, stream);
  switch (shape.threads) {
    case 32:
      return launch<T, kSize, kVectors, 32>(call, stream);
    case 128:
      return launch<T, kSize, kVectors, 128>(call, stream);
    case kClusterThreads:
      return launch<T, kSize, kVectors, kClusterThreads>(call, stream);
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace

bool cross_entropy_fits_on_chip(const CrossEntropyCall& call) {
  if (call.probability != nullptr) return false;
  switch (call.dtype) {
    case DType::float64:  // two fp64 exponentials an element take longer than reading it again
      return false;
    case DType::float32:
      return shape_of(call.classes / kVectorSize<float>, current_cuda_device().capability).blocks;
    default:
      return shape_of(call.classes / kVectorSize<__half>, current_cuda_device().capability).blocks;
  }
}

int cross_entropy_on_chip(const CrossEntropyCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case DType::float32:
      return launch_fitting<float>(call, stream);
    case DType::bfloat16:
      return launch_fitting<__nv_bfloat16>(call, stream);
    case DType::float16:
      return launch_fitting<__half>(call, stream);
    default:
      return static_cast<int>(cudaErrorInvalidValue);
  }
}

}  // namespace regops
