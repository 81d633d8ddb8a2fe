// How csrc/cuda/dropconnect_linear.cu reaches the tensor-core kernels: one mask for few samples of
// 16-bit floats.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/key.h"
#include "dropconnect_linear_call.h"

namespace regops {

// Whether they serve a call with one mask for all samples.
bool dropconnect_mma_serves(const DropConnectCall& call);

// Bytes of device memory that dropconnect_mma_output needs in `workspace`; 0 with clusters.
int64_t dropconnect_mma_workspace_bytes(const DropConnectCall& call);

// output[i, n] += s sum_k M[n, k] W[n, k] x[i, k]; returns a cudaError_t as int.
int dropconnect_mma_output(const DropConnectCall& call, const CudaKey& key, void* output,
                           void* workspace, cudaStream_t stream);

}  // namespace regops
