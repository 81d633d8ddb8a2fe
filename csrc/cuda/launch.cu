// Questions to the CUDA runtime, for files that include no CUDA header.
#include "cuda/launch.h"

#include <cuda_runtime.h>

extern "C" const char* regops_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int regops_cuda_is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  if (error != cudaSuccess) return -static_cast<int>(error);
  return status != cudaStreamCaptureStatusNone;
}

extern "C" int regops_cuda_version() { return CUDART_VERSION; }
