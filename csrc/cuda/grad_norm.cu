// The 2-norm of all gradients together: one read of each.
//
// A block sums the squares of its chunk to a number of its own, and one block adds those: two runs
// give the same bits, as atomics would not. Sums are in double, where no square of a float
// overflows; an inf or nan goes through to the norm. The double arithmetic hides behind the reads
// where double is half as fast as float; GPUs without (1/64) read bfloat16 at half speed.
#include <cuda_runtime.h>

#include "cuda/optimizer_step.h"
#include "cuda/reduce.cuh"
#include "cuda/tensor_table.cuh"
#include "cuda/vector.cuh"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // vectors of 16 bytes in flight a thread
constexpr int kTotalThreads = 1024;
constexpr int64_t kChunk = 16384;  // elements: partial sums are 1/8192 of float32 gradients' bytes
constexpr int kCapacity = 120;

struct NormCall {
  double* partial;  // of the table's first block
  int64_t blocks;
  TensorTable<CudaGradient, kCapacity> table;
};
static_assert(sizeof(NormCall) <= kParameterBytes);

template <class T>
__device__ __forceinline__ double chunk_squares(const T* from, int size) {
  constexpr int kSize = kVectorSize<T>;
  const bool vectors = is_aligned(from);  // the order of additions is the same without
  double sum = 0.0;
  const auto add = [&](const typename Element<T>::Compute(&x)[kSize]) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const double wide = static_cast<double>(x[k]);
      sum += wide * wide;
    }
  };
  int i = threadIdx.x * kSize;
  constexpr int kStep = kThreads * kSize;
  for (; i + (kUnroll - 1) * kStep + kSize <= size; i += kUnroll * kStep) {
    typename Element<T>::Compute x[kUnroll][kSize];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      load_elements<T, kSize>(from + i + u * kStep, 1, vectors, x[u]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) add(x[u]);
  }
  for (; i + kSize <= size; i += kStep) {
    typename Element<T>::Compute x[kSize];
    load_elements<T, kSize>(from + i, 1, vectors, x);
    add(x);
  }
  for (; i < size; ++i) {
    const double wide = static_cast<double>(Element<T>::widen(from[i]));
    sum += wide * wide;
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) sum_squares(const __grid_constant__ NormCall call) {
  __shared__ double shared[32];
  const int64_t block = block_number();
  if (block >= call.blocks) return;
  const int t = call.table.tensor_of(block);
  const CudaGradient& gradient = call.table.entry[t];
  const int64_t begin = (block - call.table.first_block[t]) * kChunk;
  const int size = static_cast<int>(min(gradient.numel - begin, kChunk));
  double sum = 0.0;
  switch (gradient.dtype) {
    case DType::float64:
      sum = chunk_squares(static_cast<const double*>(gradient.values) + begin, size);
      break;
    case DType::float32:
      sum = chunk_squares(static_cast<const float*>(gradient.values) + begin, size);
      break;
    case DType::bfloat16:
      sum = chunk_squares(static_cast<const __nv_bfloat16*>(gradient.values) + begin, size);
      break;
    case DType::float16:
      sum = chunk_squares(static_cast<const __half*>(gradient.values) + begin, size);
      break;
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) call.partial[block] = sum;
}

__global__ void __launch_bounds__(kTotalThreads)
    total_norm(const double* partial, int64_t count, double* norm) {
  __shared__ double shared[32];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += partial[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) norm[0] = sqrt(sum);
}

int64_t chunks_of(const CudaGradient& gradient) { return (gradient.numel + kChunk - 1) / kChunk; }

}  // namespace
}  // namespace regops

extern "C" int64_t regops_grad_norm_partials(const regops::CudaGradient* gradients, int64_t count) {
  int64_t partials = 0;
  for (int64_t t = 0; t < count; ++t) partials += regops::chunks_of(gradients[t]);
  return partials;
}

extern "C" int regops_grad_norm_cuda(const regops::CudaGradient* gradients, int64_t count,
                                     double* partial, double* norm, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  regops::NormCall call;
  int64_t partials = 0;
  const auto fill = [&](regops::CudaGradient& to, int64_t t) {
    to = gradients[t];
    return regops::chunks_of(to);
  };
  regops::for_each_table(call.table, count, fill, [&](int64_t, int64_t blocks) {
    call.partial = partial + partials;
    call.blocks = blocks;
    regops::sum_squares<<<regops::grid_of(blocks), regops::kThreads, 0, on>>>(call);
    partials += blocks;
  });
  regops::total_norm<<<1, regops::kTotalThreads, 0, on>>>(partial, partials, norm);
  return static_cast<int>(cudaGetLastError());
}
