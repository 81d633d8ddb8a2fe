// CUDA launchers of a DropConnect layer. See launch.h for the conventions.
//
// With a mask for each sample these are all there is; with one mask for all they serve batches of
// up to kDropConnectFewSamples, and larger ones go to the BLAS, a masked panel of weights at a
// time. Sums are float32, of float64 tensors float64.
#pragma once

#include <cstdint>

#include "cuda/key.h"
#include "dropconnect_linear_call.h"

namespace regops {

constexpr int64_t kDropConnectFewSamples = 64;

enum class DropConnectProduct : int { output = 0, grad_input = 1, grad_weight = 2 };

}  // namespace regops

extern "C" {

// Bytes of device memory that a product needs in `workspace`, maybe 0.
int64_t regops_dropconnect_workspace_bytes(const regops::DropConnectCall* call, int per_sample,
                                           regops::DropConnectProduct product);

// output[i, n] += s sum_k M[i, n, k] W[n, k] x[i, k]; the caller has put the bias, or 0, there.
int regops_dropconnect_output_cuda(const regops::DropConnectCall* call, int per_sample,
                                   const regops::CudaKey* key, void* output, void* workspace,
                                   void* stream);

// grad_input[i, k] = s sum_n M[i, n, k] W[n, k] dy[i, n]
int regops_dropconnect_grad_input_cuda(const regops::DropConnectCall* call, int per_sample,
                                       const regops::CudaKey* key, void* grad_input,
                                       void* workspace, void* stream);

// grad_weight[n, k] = s sum_i M[i, n, k] dy[i, n] x[i, k]
int regops_dropconnect_grad_weight_cuda(const regops::DropConnectCall* call, int per_sample,
                                        const regops::CudaKey* key, void* grad_weight,
                                        void* workspace, void* stream);

// mean[i, n] += sum_k W[n, k] x[i, k], variance[i, n] += v sum_k W[n, k]^2 x[i, k]^2 with
// v = p / (1 - p), W read once. Up to kDropConnectFewSamples samples. `variance` is float32, of
// float64 tensors float64.
int regops_dropconnect_moments_cuda(const regops::DropConnectCall* call, void* mean, void* variance,
                                    void* stream);

}  // extern "C"
