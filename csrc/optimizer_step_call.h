// One optimizer step as its kernels see it, the same for every device and every update rule.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "math/philox.h"

namespace regops {

enum class StepRule : int { adamw = 0, sgdw = 1 };

// How a bfloat16 or float16 parameter keeps what its own type cannot hold.
enum class Master : int {
  none = 0,        // it does not: every step rounds to nearest
  fp32 = 1,        // a float32 copy, of which the parameter is the rounded image
  kahan = 2,       // the rounding error in the parameter's own type: w = param + compensation
  stochastic = 3,  // rounded up or down at random, right on average
};

// What random numbers are drawn for. Each use of a tensor has a stream of its own. The two moments
// share one: each is unbiased, and rounded the same way they disturb their ratio less.
enum StepStream : int { kRoundParam = 0, kRoundMoments = 1, kGradientNoise = 2, kStepStreams = 3 };

// Options of a call, the same for all of its tensors. "Real" below is double for float64 parameters
// and float for every other: the type that is computed in.
struct StepOptions {
  StepRule rule;
  DType param;  // of parameters and compensations
  DType grad;
  DType state;  // of first, second and largest: Real, or bfloat16 rounded stochastically
  Master master;

  double beta1, beta2, eps;    // AdamW
  double momentum, dampening;  // SGDW
  bool nesterov;

  double weight_decay;  // w <- (1 - lr weight_decay) w
  double l1, l2;        // threshold lr l1 after the update; l2 w added to the gradient
  bool maximize;
  double max_grad_norm;  // infinity: no limit, as for the next
  double clip_value;
  double noise_variance;  // of the gradient's noise in step t = 0, 1, ...: over (1 + t)^noise_decay
  double noise_decay;
  double max_norm;  // of each row; infinity: no limit
  double ema_decay;
  bool zero_grad;
};

// A parameter and what belongs to it: `numel` elements each, at the same place in each.
struct StepTensors {
  void* param;
  void* grad;     // written where it is cleared or unscaled
  void* first;    // exp_avg, or the momentum buffer; null: SGD without momentum
  void* second;   // exp_avg_sq
  void* largest;  // max_exp_avg_sq; null: no amsgrad
  void* master;   // Real [numel], or the compensation
  void* ema;      // Real [numel]; null: none
  float* step;    // 0-d: how many steps were done
  int64_t numel;
  int64_t row;           // elements of a row, which max_norm limits; 0: it limits nothing here
  uint64_t stream;       // the parameter's number, for random numbers
  uint64_t first_index;  // of the first element, in the logical order of the (global) parameter
};

// What the step number, the learning rate and the norm of the gradients come down to.
struct StepScalars {
  bool skip;           // gradients were not finite: only zero_grad is done
  double unscale;      // 1 / grad_scale
  double grad_factor;  // unscale, the clipping coefficient and the sign of maximize in one
  double decay;        // 1 - lr weight_decay
  double rate;         // AdamW: lr / (1 - beta1^t); SGDW: lr
  double root_factor;  // AdamW: 1 / sqrt(1 - beta2^t)
  double inflow;       // SGDW: 1 - dampening, in the first step 1
  double threshold;    // lr l1
  double noise;        // standard deviation of the gradient's noise
  Key keys[kStepStreams];
};

// Where the elements of a parameter stand whose tensors differ in strides: sizes in the logical
// order, outermost first, dimensions merged where all tensors allow, and strides in elements.
enum StepOperand : int { kParam, kGrad, kFirst, kSecond, kLargest, kMaster, kEma, kStepOperands };
constexpr int kStepDims = 12;
struct StepLayout {
  int dims;
  int64_t size[kStepDims];
  int64_t stride[kStepOperands][kStepDims];
};

}  // namespace regops
