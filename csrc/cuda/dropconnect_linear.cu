// Launchers of a DropConnect layer: which kernel serves a product, and the addition of partial
// sums where a product is split among blocks. No sum is made by atomics: two runs give the same
// bits.
#include "cuda/dropconnect_linear.h"

#include "cuda/dropconnect_linear_chunk.cuh"
#include "cuda/dropconnect_linear_launch.h"
#include "cuda/dropconnect_mma.h"

namespace regops {
namespace {

constexpr int kThreads = 256;

// result[i] = s sum_part partial[part, i]
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts(const Sum<T>* partial, T* result, int64_t n, int64_t parts, DropoutRule rule) {
  const int64_t i = block_number() * kThreads + threadIdx.x;
  if (i >= n) return;
  Sum<T> total = 0;
#pragma unroll 4  // loads in flight
  for (int64_t part = 0; part < parts; ++part) total += partial[part * n + i];
  result[i] = Element<T>::round(scale_of<T>(rule) * total);
}

int launch_add_parts(const DropConnectCall& call, const void* partial, void* result, int64_t n,
                     int64_t parts, cudaStream_t stream) {
  if (parts == 1) return static_cast<int>(cudaSuccess);  // it is the result
  return for_dtype(static_cast<int>(call.dtype), [&](auto type) {
    using T = decltype(type);
    add_parts<T><<<grid_of(ceil_divide(n, kThreads)), kThreads, 0, stream>>>(
        static_cast<const Sum<T>*>(partial), static_cast<T*>(result), n, parts, call.rule);
    return static_cast<int>(cudaGetLastError());
  });
}

}  // namespace
}  // namespace regops

extern "C" int64_t regops_dropconnect_workspace_bytes(const regops::DropConnectCall* call,
                                                      int per_sample,
                                                      regops::DropConnectProduct product) {
  const int64_t real = call->dtype == regops::DType::float64 ? 8 : 4;
  int64_t parts = 1, size = 0;
  switch (product) {
    case regops::DropConnectProduct::output:
      return per_sample ? 0 : regops::dropconnect_mma_output_bytes(*call);
    case regops::DropConnectProduct::grad_input:
      parts = regops::dropconnect_grad_input_split(*call, per_sample).parts;
      size = call->samples * call->in_features;
      break;
    case regops::DropConnectProduct::grad_weight:
      parts = regops::dropconnect_grad_weight_split(*call, per_sample).parts;
      size = call->out_features * call->in_features;
      break;
  }
  const int64_t bytes = parts > 1 ? parts * size * real : 0;
  if (per_sample || product != regops::DropConnectProduct::grad_input) return bytes;
  return std::max(bytes, regops::dropconnect_mma_grad_input_bytes(*call));
}

extern "C" int regops_dropconnect_output_cuda(const regops::DropConnectCall* call, int per_sample,
                                              const regops::CudaKey* key, void* output,
                                              void* workspace, void* stream) {
  // Nothing to add to, or nothing to add.
  if (call->samples == 0 || call->out_features == 0 || call->in_features == 0) return 0;
  const auto on = static_cast<cudaStream_t>(stream);
  if (!per_sample && regops::dropconnect_mma_serves_output(*call)) {
    return regops::dropconnect_mma_output(*call, *key, output, workspace, on);
  }
  return regops::dropconnect_output(*call, per_sample, *key, output, on);
}

extern "C" int regops_dropconnect_grad_input_cuda(const regops::DropConnectCall* call,
                                                  int per_sample, const regops::CudaKey* key,
                                                  void* grad_input, void* workspace, void* stream) {
  const int64_t n = call->samples * call->in_features;
  if (n == 0) return 0;
  const auto on = static_cast<cudaStream_t>(stream);
  if (!per_sample && regops::dropconnect_mma_serves_grad_input(*call)) {
    return regops::dropconnect_mma_grad_input(*call, *key, grad_input, workspace, on);
  }
  const int error =
      regops::dropconnect_grad_input(*call, per_sample, *key, grad_input, workspace, on);
  if (error != 0) return error;
  const int64_t parts = regops::dropconnect_grad_input_split(*call, per_sample).parts;
  return regops::launch_add_parts(*call, workspace, grad_input, n, parts, on);
}

extern "C" int regops_dropconnect_grad_weight_cuda(const regops::DropConnectCall* call,
                                                   int per_sample, const regops::CudaKey* key,
                                                   void* grad_weight, void* workspace,
                                                   void* stream) {
  const int64_t n = call->out_features * call->in_features;
  if (n == 0) return 0;
  const auto on = static_cast<cudaStream_t>(stream);
  const int error =
      regops::dropconnect_grad_weight(*call, per_sample, *key, grad_weight, workspace, on);
  if (error != 0) return error;
  const int64_t parts = regops::dropconnect_grad_weight_split(*call, per_sample).parts;
  return regops::launch_add_parts(*call, workspace, grad_weight, n, parts, on);
}

extern "C" int regops_dropconnect_moments_cuda(const regops::DropConnectCall* call, void* mean,
                                               void* variance, void* stream) {
  if (call->samples == 0 || call->out_features == 0 || call->in_features == 0) return 0;
  return regops::dropconnect_moments(*call, mean, variance, static_cast<cudaStream_t>(stream));
}
