// What launchers share: plain C names, raw pointers, a cudaStream_t passed as void*. A launcher
// returns a cudaError_t as int; 0 is success.
#pragma once

#include <cstdint>

extern "C" {

// Text for an error that a launcher returned.
const char* regops_cuda_error(int error);

// Whether `stream` is recording a CUDA graph: 1 or 0, or minus an error.
int regops_cuda_is_capturing(void* stream);

// The CUDA version compiled with, as in 13000.
int regops_cuda_version();

}  // extern "C"
