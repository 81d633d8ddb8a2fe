// Launchers of dropout on the device. `dtype` is a regops::DType; 0 < p < 1 is in `rule`.
#pragma once

#include <cstdint>

#include "cuda/key.h"
#include "layout.h"
#include "math/dropout.h"

extern "C" {

// n contiguous elements whose logical indices are first_index, first_index + 1, ...
// `output` may be `input`.
int regops_dropout_cuda(int dtype, const void* input, void* output, int64_t n, uint64_t first_index,
                        const regops::CudaKey* key, const regops::DropoutRule* rule, void* stream);

// The same from index 0 on with p on the device: 0 keeps all, 1 none, what is no probability gives
// nan.
int regops_dropout_tensor_p_cuda(int dtype, const void* input, void* output, int64_t n,
                                 const regops::CudaKey* key, const double* p, void* stream);

// A dense tensor in another memory order, maybe a slice of a larger one.
int regops_dropout_permuted_cuda(int dtype, const void* input, void* output,
                                 const regops::PermutedLayout* layout, const regops::CudaKey* key,
                                 const regops::DropoutRule* rule, void* stream);

}  // extern "C"
