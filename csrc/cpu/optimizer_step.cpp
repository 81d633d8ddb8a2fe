// Optimizer steps on the CPU: one read of each tensor and one write of those that change.
//
// A parameter is done in blocks that stay in L1. Where a tensor has the type that is computed in,
// the block is its own memory, so that a plain step is one vectorized loop; other types, and
// options, add loops over the block that find it in L1. 16M float32 elements of AdamW are as fast
// as a bare stream of 4 reads and 3 writes.
#include "cpu/optimizer_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"
#include "dtype.h"
#include "math/adamw.h"
#include "math/normal.h"
#include "math/optimizer_step.h"
#include "math/philox.h"
#include "math/sgdw.h"
#include "math/stochastic_rounding.h"

#define REGOPS_ISA_FILE "cpu/optimizer_step.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/half_floats.h"
#include "cpu/philox_lanes.h"
#include "cpu/reals.h"
#include "cpu/squares.h"
#include "cpu/step_variates.h"
#include "cpu/step_block.h"
#include "cpu/step_strided.h"

namespace regops::cpu::REGOPS_ISA {

// Rows that max_norm limits are computed twice: for their norm, then to be stored. The random
// numbers are the same both times, and the second time the row is mostly in the cache.
template <class Real, class Blocks>
static void over_blocks(const StepOptions& options, const StepTensors& tensors, int64_t begin,
                        int64_t end, Blocks blocks) {
  if (!limits_rows(options, tensors)) {
    blocks(begin, end, Pass::plain, Real(1));
    return;
  }
  for (int64_t row = begin; row < end; row += tensors.row) {
    const double squares = blocks(row, row + tensors.row, Pass::measure, Real(1));
    const Real factor = static_cast<Real>(row_factor(squares, options.max_norm));
    blocks(row, row + tensors.row, Pass::scaled, factor);
  }
}

template <class Real>
static void run(const StepOptions& options, const StepTensors& tensors, const StepScalars& scalars,
                int64_t begin, int64_t end) {
  Scratch<Real> scratch;
  const Step<Real> step(options, scalars, scratch);
  const auto blocks = [&](int64_t from, int64_t to, Pass pass, Real factor) {
    double squares = 0.0;
    for (int64_t i = from; i < to;) {
      const bool longer = step.needs_no_scratch(tensors) && to - i >= kLongBlock;
      const int64_t n = longer ? kLongBlock : std::min(kStepBlock, to - i);
      squares += step.block(tensors, i, n, pass, factor);
      i += n;
    }
    return squares;
  };
  over_blocks<Real>(options, tensors, begin, end, blocks);
}

template <class Real>
static void run_strided(const StepOptions& options, const StepTensors& tensors,
                        const StepScalars& scalars, const StepLayout& layout, int64_t begin,
                        int64_t end) {
  Scratch<Real> scratch;
  StridedBlock strided(options, tensors, scalars, layout);
  const Step<Real> step(options, scalars, scratch);
  const auto blocks = [&](int64_t from, int64_t to, Pass pass, Real factor) {
    double squares = 0.0;
    for (int64_t i = from; i < to; i += kStepBlock) {
      const int64_t n = std::min(kStepBlock, to - i);
      strided.gather(i, n);
      squares += step.block(strided.tensors(), 0, n, pass, factor);
      if (pass != Pass::measure) strided.scatter(i, n);
    }
    return squares;
  };
  over_blocks<Real>(options, tensors, begin, end, blocks);
}

void optimizer_step_run(const StepOptions& options, const StepTensors& tensors,
                        const StepScalars& scalars, int64_t begin, int64_t end) {
  if (options.param == DType::float64) {
    run<double>(options, tensors, scalars, begin, end);
  } else {
    run<float>(options, tensors, scalars, begin, end);
  }
}

void optimizer_step_strided(const StepOptions& options, const StepTensors& tensors,
                            const StepScalars& scalars, const StepLayout& layout, int64_t begin,
                            int64_t end) {
  if (options.param == DType::float64) {
    run_strided<double>(options, tensors, scalars, layout, begin, end);
  } else {
    run_strided<float>(options, tensors, scalars, layout, begin, end);
  }
}

double sum_of_squares(DType dtype, const void* values, int64_t begin, int64_t end) {
  if (dtype == DType::float64) {
    return squares_of(static_cast<const double*>(values) + begin, end - begin);
  }
  if (dtype == DType::float32) {
    return squares_of(static_cast<const float*>(values) + begin, end - begin);
  }
  double sum = 0.0;
  alignas(64) float wide[kStepBlock];
  for (int64_t i = begin; i < end; i += kStepBlock) {
    const int64_t n = std::min(kStepBlock, end - i);
    read_reals(dtype, values, i, n, wide);
    sum += squares_of(wide, n);
  }
  return sum;
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void optimizer_step_run(const StepOptions& options, const StepTensors& tensors,
                        const StepScalars& scalars, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(optimizer_step_run, options, tensors, scalars, begin, end);
}

void optimizer_step_strided(const StepOptions& options, const StepTensors& tensors,
                            const StepScalars& scalars, const StepLayout& layout, int64_t begin,
                            int64_t end) {
  REGOPS_DISPATCH_ISA(optimizer_step_strided, options, tensors, scalars, layout, begin, end);
}

double sum_of_squares(DType dtype, const void* values, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(sum_of_squares, dtype, values, begin, end);
}

}  // namespace regops::cpu

#endif
