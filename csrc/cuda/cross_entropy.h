// Launchers of the cross-entropy kernels: see cuda/launch.h for the conventions.
#pragma once

#include <cstdint>

#include "cross_entropy_call.h"

extern "C" {

// Fills `totals` (Real [2]) for the other kernels: what the sum of losses is divided by, and the
// sum of class weights. `mean`: divide by the sum of the rows' weights (for probabilities: by the
// number of rows), or by `num_items` (Real [1]) where that is not null; otherwise by 1.
int regops_cross_entropy_prepare_cuda(const regops::CrossEntropyCall* call, bool mean,
                                      const void* num_items, void* totals, void* stream);

// Losses, lse and gradients of all rows, each where asked for. A row whose target is neither a
// class nor ignored is nan throughout, and nothing out of bounds is read for it.
int regops_cross_entropy_cuda(const regops::CrossEntropyCall* call, void* stream);

// total (Real [1]) = sum of losses / divisor, from `call->loss` and `call->totals`.
int regops_cross_entropy_total_cuda(const regops::CrossEntropyCall* call, void* total,
                                    void* stream);

// values *= factor (Real [1]), in place; when the factor is 1 nothing is read or written but it.
int regops_cross_entropy_scale_cuda(int dtype, void* values, int64_t n, const void* factor,
                                    void* stream);

}  // extern "C"
