// One step of an optimizer: what the ops of every update rule share.
#pragma once

#include <optional>
#include <string_view>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "optimizer_step_call.h"

namespace regops {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of regops::adamw_step_ and regops::sgdw_step_; see their docstrings.
struct StepArguments {
  const char* op;
  StepRule rule;
  const at::Tensor& lr;
  const OptionalTensor &grad_norm, &grad_scale, &found_inf, &key;
  at::TensorList params = {}, grads = {};
  at::TensorList first = {};  // exp_avgs, or momentum_buffers
  at::TensorList second = {}, largest = {};
  at::TensorList state_steps = {}, masters = {}, emas = {};
  double beta1 = 0.0, beta2 = 0.0, eps = 0.0;
  double momentum = 0.0, dampening = 0.0;
  bool nesterov = false;
  double weight_decay = 0.0;
  bool maximize = false;
  std::optional<double> max_grad_norm = {}, clip_value = {};
  double l1 = 0.0, l2 = 0.0, noise_variance = 0.0, noise_decay = 0.0;
  std::optional<double> max_norm = {}, ema_decay = {};
  bool zero_grad = false;
  std::string_view master = "none";
  at::IntArrayRef streams = {}, first_indices = {};
};

// Throws unless the step can be done; writes nothing.
void check_step(const StepArguments& arguments);

// Check, then step.
void step_cpu(const StepArguments& arguments);
#ifdef REGOPS_WITH_CUDA
void step_cuda(const StepArguments& arguments);
#endif

// Counts up the versions of all that a step writes.
void increment_versions(const StepArguments& arguments);

// What the arguments come to.
inline bool is_half(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }
inline at::ScalarType real_of(at::ScalarType type) {
  return type == at::kDouble ? type : at::kFloat;
}
Master master_of(const StepArguments& arguments);
at::ScalarType state_type(const StepArguments& arguments);
bool draws_random_numbers(const StepArguments& arguments);
bool writes_gradients(const StepArguments& arguments);

// What the kernels are told of the options, and of parameter k.
StepOptions step_options(const StepArguments& arguments);
StepTensors step_tensors(const StepArguments& arguments, size_t k);

// Whether all tensors of parameter k can be walked in one order of memory.
bool in_one_piece(const StepArguments& arguments, size_t k);

// How to walk them otherwise.
StepLayout step_layout(const StepArguments& arguments, size_t k);

// A dispatcher's op as a C++ function, of the type of `like`.
template <const char* name, auto* like>
struct StepOp;
template <const char* name, class... Arguments, void (*like)(Arguments...)>
struct StepOp<name, like> {
  static void call(Arguments... arguments) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<void(Arguments...)>();
    op.call(arguments...);
  }

  // For the key ADInplaceOrView; `like` counts the versions up.
  static void call_with_versions(Arguments... arguments) {
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      call(arguments...);
    }
    like(arguments...);
  }
};

}  // namespace regops
