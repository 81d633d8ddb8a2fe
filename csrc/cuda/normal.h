// Launcher of standard normal numbers. See launch.h for the conventions.
#pragma once

#include <cstdint>

#include "cuda/key.h"

extern "C" {

// output[0 : n) <- the normal numbers of elements 0, 1, ... of the key's stream.
int regops_normal_cuda(const regops::CudaKey* key, float* output, int64_t n, void* stream);

}  // extern "C"
