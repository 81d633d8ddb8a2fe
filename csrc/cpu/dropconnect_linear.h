// Serial kernels of a DropConnect layer with a mask for each sample, of the instruction set in use.
// The caller splits the work over threads. float32 and float64.
#pragma once

#include <cstdint>

#include "dropconnect_linear_call.h"

namespace regops::cpu {

// Samples [sample_begin, sample_end) by outputs [out_begin, out_end): the weights and masks that a
// call walks.
struct DropConnectCell {
  int64_t sample_begin, sample_end, out_begin, out_end;
};

// output[i, n] += s sum_k M[i, n, k] W[n, k] x[i, k], for the cell's samples and outputs.
void dropconnect_forward(const DropConnectCall& call, Key key, void* output, DropConnectCell cell);

// Sums over the cell's outputs and samples; either may be null:
//   grad_input[i, k] += s sum_n M[i, n, k] W[n, k] dy[i, n]
//   grad_weight[n, k] += s sum_i M[i, n, k] dy[i, n] x[i, k]
void dropconnect_backward(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight,
                          DropConnectCell cell);

}  // namespace regops::cpu
