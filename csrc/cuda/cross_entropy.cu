// Cross-entropy on the device: the choice of a kernel, and the small ones around it: the divisor of
// a mean before, the sum of losses and the scaling of gradients after.
#include "cuda/cross_entropy.h"

#include <algorithm>

#include "cuda/cross_entropy_launch.h"
#include "cuda/cross_entropy_row.cuh"

namespace regops {
namespace {

constexpr int kSumThreads = 1024;
constexpr int kScaleThreads = 256;
constexpr int kScaleUnroll = 4;

// One block, so that the order of additions does not depend on the device. Sums are in double,
// which adds 2^28 float weights without a visible error.
template <class Real>
__global__ void __launch_bounds__(kSumThreads)
    prepare(const __grid_constant__ CrossEntropyCall call, bool mean, const Real* num_items,
            Real* totals) {
  __shared__ double of_rows[32], of_classes[32];
  const int64_t rows = call.outer * call.inner;
  double divisor = 0, weights = 0;
  if (mean && num_items == nullptr && call.target != nullptr) {
    for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) {
      divisor += load_row_target(call, row, Real(0)).weights.row_weight;
    }
  }
  if (call.weight != nullptr) {
    for (int64_t c = threadIdx.x; c < call.classes; c += kSumThreads) {
      weights += static_cast<const Real*>(call.weight)[c];
    }
  }
  divisor = block_sum(divisor, of_rows);
  weights = block_sum(weights, of_classes);
  if (threadIdx.x != 0) return;
  if (!mean) {
    totals[0] = Real(1);
  } else if (num_items != nullptr) {
    totals[0] = *num_items;
  } else {
    totals[0] = static_cast<Real>(call.target != nullptr ? divisor : static_cast<double>(rows));
  }
  totals[1] = call.weight != nullptr ? static_cast<Real>(weights) : static_cast<Real>(call.classes);
}

// One block, for the same reason.
template <class Real>
__global__ void __launch_bounds__(kSumThreads)
    add_losses(const Real* losses, int64_t rows, const Real* totals, Real* total) {
  __shared__ double partial[32];
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) sum += losses[row];
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) total[0] = static_cast<Real>(sum / (totals == nullptr ? 1 : totals[0]));
}

// The grid is no larger than the device, so that it ends at once where the factor is 1.
template <class T>
__global__ void __launch_bounds__(kScaleThreads)
    scale(T* values, int64_t n, const RealOf<T>* factor_pointer) {
  using Real = RealOf<T>;
  constexpr int kSize = kVectorSize<T>;
  const Real factor = *factor_pointer;
  if (factor == Real(1)) return;
  const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(values) % 16);
  const int64_t to_boundary = misaligned == 0 ? 0 : (16 - misaligned) / sizeof(T);
  const int64_t head = to_boundary < n ? to_boundary : n;
  const int64_t vectors = (n - head) / kSize;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kScaleThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kScaleThreads;

  auto* packs = reinterpret_cast<Vector<T, kSize>*>(values + head);
  for (int64_t v = thread; v < vectors; v += kScaleUnroll * threads) {
    Vector<T, kSize> pack[kScaleUnroll];
#pragma unroll
    for (int u = 0; u < kScaleUnroll; ++u) {
      if (v + u * threads < vectors) pack[u] = packs[v + u * threads];
    }
#pragma unroll
    for (int u = 0; u < kScaleUnroll; ++u) {
      if (v + u * threads >= vectors) break;
      Real x[kSize];
#pragma unroll
      for (int k = 0; k < kSize; ++k) x[k] = Element<T>::widen(pack[u].element[k]) * factor;
      store_elements(values + head + (v + u * threads) * kSize, 1, true, x);
    }
  }
  const int64_t tail = n - head - vectors * kSize;
  if (thread < head + tail) {
    T& value = values[thread < head ? thread : n - tail + thread - head];
    value = Element<T>::round(Element<T>::widen(value) * factor);
  }
}

template <class Function>
int for_real(DType dtype, Function function) {
  return dtype == DType::float64 ? function(double()) : function(float());
}

// Whether all tensors' rows lie in one piece.
bool is_rows(const CrossEntropyCall& call) {
  const auto in_one_piece = [&](const void* tensor, const ClassStrides& strides) {
    return tensor == nullptr || strides.classes == 1;
  };
  return in_one_piece(call.input, call.input_strides) &&
         in_one_piece(call.gradient, call.gradient_strides) &&
         in_one_piece(call.probability, call.probability_strides) &&
         in_one_piece(call.probability_gradient, call.probability_strides);
}

}  // namespace

}  // namespace regops

extern "C" int regops_cross_entropy_prepare_cuda(const regops::CrossEntropyCall* call, bool mean,
                                                 const void* num_items, void* totals,
                                                 void* stream) {
  return regops::for_real(call->dtype, [&](auto real) {
    using Real = decltype(real);
    regops::prepare<<<1, regops::kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        *call, mean, static_cast<const Real*>(num_items), static_cast<Real*>(totals));
    return static_cast<int>(cudaGetLastError());
  });
}

extern "C" int regops_cross_entropy_cuda(const regops::CrossEntropyCall* call, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (call->outer * call->inner == 0) return 0;
  if (!regops::is_rows(*call)) return regops::cross_entropy_columns(*call, cuda_stream);
  if (regops::cross_entropy_fits_on_chip(*call)) {
    return regops::cross_entropy_on_chip(*call, cuda_stream);
  }
  return regops::cross_entropy_streamed(*call, cuda_stream);
}

extern "C" int regops_cross_entropy_total_cuda(const regops::CrossEntropyCall* call, void* total,
                                               void* stream) {
  return regops::for_real(call->dtype, [&](auto real) {
    using Real = decltype(real);
    regops::add_losses<<<1, regops::kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const Real*>(call->loss), call->outer * call->inner,
        static_cast<const Real*>(call->totals), static_cast<Real*>(total));
    return static_cast<int>(cudaGetLastError());
  });
}

extern "C" int regops_cross_entropy_scale_cuda(int dtype, void* values, int64_t n,
                                               const void* factor, void* stream) {
  if (n == 0) return 0;
  return regops::for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int64_t kOfBlock =
        regops::kScaleThreads * regops::kScaleUnroll * regops::kVectorSize<T>;
    const int64_t resident =
        2048 / regops::kScaleThreads * int64_t(regops::current_cuda_device().multiprocessors);
    const auto blocks = static_cast<unsigned>(std::min((n + kOfBlock - 1) / kOfBlock, resident));
    regops::scale<<<blocks, regops::kScaleThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<T*>(values), n, static_cast<const regops::RealOf<T>*>(factor));
    return static_cast<int>(cudaGetLastError());
  });
}
