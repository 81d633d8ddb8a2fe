// How csrc/cuda/dropconnect_linear.cu reaches the tensor-core kernels: one mask for few samples of
// 16-bit floats, in whole and aligned 16-byte vectors.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/key.h"
#include "dropconnect_linear_call.h"

namespace regops {

// Whether they serve a call with one mask for all samples.
bool dropconnect_mma_serves_output(const DropConnectCall& call);
bool dropconnect_mma_serves_grad_input(const DropConnectCall& call);

// Bytes of device memory that they need in `workspace`, whatever the alignment; 0 with clusters.
int64_t dropconnect_mma_output_bytes(const DropConnectCall& call);
int64_t dropconnect_mma_grad_input_bytes(const DropConnectCall& call);

// output[i, n] += s sum_k M[n, k] W[n, k] x[i, k]; both return a cudaError_t as int.
int dropconnect_mma_output(const DropConnectCall& call, const CudaKey& key, void* output,
                           void* workspace, cudaStream_t stream);

// grad_input[i, k] = s sum_n M[n, k] W[n, k] dy[i, n]
int dropconnect_mma_grad_input(const DropConnectCall& call, const CudaKey& key, void* grad_input,
                               void* workspace, cudaStream_t stream);

}  // namespace regops
