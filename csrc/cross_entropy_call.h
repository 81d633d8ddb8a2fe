// One call of cross-entropy as its kernels see it, the same for every device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace regops {

// Where element (outer, class, inner) of a tensor stands, counted in elements. Row
// r = outer * inner_size + inner is one softmax. Either `classes` is 1 (a row lies in one piece:
// "rows") or `inner` is 1 (neighbouring rows stand side by side: "columns").
struct ClassStrides {
  int64_t outer, classes, inner;
};

// "Real" below is double for float64 input and float for every other: weights, losses, upstream
// gradients and all sums are in it. Pointers are to host memory on the CPU, else to device memory;
// a null pointer is an absent argument.
struct CrossEntropyCall {
  DType dtype;                    // of input and gradient
  int64_t outer, classes, inner;  // rows = outer x inner; classes >= 1
  const void* input;              // logits
  ClassStrides input_strides;
  void* gradient;  // d loss / d input; may be `input` itself
  ClassStrides gradient_strides;

  // Targets as class indices, one a row.
  const int64_t* target;
  const int64_t* target_b;  // the second of a pair
  const void* lam;          // Real [rows / rows_per_lam]: share of the first of the pair
  int64_t rows_per_lam;
  int64_t ignore_index;

  // Or as probabilities, in place of `target`.
  DType probability_dtype;  // dtype, or float32 where that is bfloat16 or float16
  const void* probability;
  void* probability_gradient;        // d loss / d probability, of probability_dtype
  ClassStrides probability_strides;  // of both

  const void* weight;  // Real [classes]
  // Real [2], which regops_cross_entropy_prepare fills on CUDA: what the sum of the rows' losses is
  // divided by, and the sum of all class weights.
  const void* totals;

  const void* upstream;      // Real [1] or [rows]: d final loss / d loss; absent: 1
  int64_t upstream_stride;   // 0 or 1
  const void* upstream_lse;  // Real [rows]: d final loss / d lse; absent: 0

  double keep, off;  // q = keep onehot + off, the smoothed target
  double z_loss, entropy_weight;

  void* loss;   // Real [rows], not divided
  void* lse;    // Real [rows]; where it is present, ignored rows have one too
  bool stream;  // CPU: store the gradient past the cache
};

}  // namespace regops
