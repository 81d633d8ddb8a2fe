// CPU kernels of optimizer steps. Serial: the op spreads ranges over threads.
#pragma once

#include <cstdint>

#include "optimizer_step_call.h"

namespace regops::cpu {

// Elements [begin, end) of a parameter, each tensor's in one piece. `begin` is a multiple of 8;
// with max_norm they are whole rows.
void optimizer_step_run(const StepOptions& options, const StepTensors& tensors,
                        const StepScalars& scalars, int64_t begin, int64_t end);

// The same in the logical order, of tensors with strides of their own.
void optimizer_step_strided(const StepOptions& options, const StepTensors& tensors,
                            const StepScalars& scalars, const StepLayout& layout, int64_t begin,
                            int64_t end);

// Sum of the squares of elements [begin, end), in an order that depends on nothing else.
double sum_of_squares(DType dtype, const void* values, int64_t begin, int64_t end);

}  // namespace regops::cpu
