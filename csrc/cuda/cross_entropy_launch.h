// How csrc/cuda/cross_entropy.cu reaches the kernels in the files beside it. Each returns a
// cudaError_t as int.
#pragma once

#include <cuda_runtime.h>

#include "cross_entropy_call.h"
#include "cuda/current_device.h"
#include "cuda/grid.h"

namespace regops {

// Whether a row of class indices fits into the registers of a block, or of a cluster of blocks.
bool cross_entropy_fits_on_chip(const CrossEntropyCall& call);

// Rows that lie in one piece and fit on chip.
int cross_entropy_on_chip(const CrossEntropyCall& call, cudaStream_t stream);

// Any rows that lie in one piece.
int cross_entropy_streamed(const CrossEntropyCall& call, cudaStream_t stream);

// Rows of any strides; fast where neighbouring rows stand side by side.
int cross_entropy_columns(const CrossEntropyCall& call, cudaStream_t stream);

}  // namespace regops
