// regops::sgdw_step_ as a C++ function.
#pragma once

#include "ops/optimizer_step.h"

namespace regops {

// Calls `function` with the op's arguments in one struct.
template <void (*function)(const StepArguments&)>
void sgdw_step(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers,
               at::TensorList state_steps, at::TensorList masters, at::TensorList emas,
               const at::Tensor& lr, const OptionalTensor& grad_norm,
               const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
               const OptionalTensor& key, double momentum, double dampening, bool nesterov,
               double weight_decay, bool maximize, std::optional<double> max_grad_norm,
               std::optional<double> clip_value, double l1, double l2, double noise_variance,
               double noise_decay, std::optional<double> max_norm, std::optional<double> ema_decay,
               bool zero_grad, std::string_view master, at::IntArrayRef streams,
               at::IntArrayRef first_indices) {
  StepArguments a = {"sgdw_step_", StepRule::sgdw, lr, grad_norm, grad_scale, found_inf, key};
  a.params = params;
  a.grads = grads;
  a.first = momentum_buffers;
  a.state_steps = state_steps;
  a.masters = masters;
  a.emas = emas;
  a.momentum = momentum;
  a.dampening = dampening;
  a.nesterov = nesterov;
  a.weight_decay = weight_decay;
  a.maximize = maximize;
  a.max_grad_norm = max_grad_norm;
  a.clip_value = clip_value;
  a.l1 = l1;
  a.l2 = l2;
  a.noise_variance = noise_variance;
  a.noise_decay = noise_decay;
  a.max_norm = max_norm;
  a.ema_decay = ema_decay;
  a.zero_grad = zero_grad;
  a.master = master;
  a.streams = streams;
  a.first_indices = first_indices;
  function(a);
}

inline constexpr char kSgdwStep[] = "regops::sgdw_step_";
using SgdwOp = StepOp<kSgdwStep, &sgdw_step<&increment_versions>>;

}  // namespace regops
