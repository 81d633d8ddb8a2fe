// What the optimizer steps accept. All of it is checked before anything is written.
#include <array>
#include <cmath>
#include <string>

#include <ATen/MemoryOverlap.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/flat_hash_map.h>

#include "ops/optimizer_step.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;
using at::TensorList;

namespace {

std::string type_name(at::ScalarType type) { return std::string(c10::getDtypeNames(type).first); }

void check_count(const StepArguments& a, const char* name, TensorList list, bool wanted,
                 const char* why) {
  const size_t count = wanted ? a.params.size() : 0;
  TORCH_CHECK_VALUE(list.size() == count, "regops.", a.op, ": expected ", count, " ", name, " ",
                    why, ", got ", list.size());
}

void check_tensor(const StepArguments& a, const char* name, size_t k, const Tensor& tensor) {
  TORCH_CHECK(tensor.defined(), "regops.", a.op, ": expected a tensor as ", name, "[", k,
              "], got None");
  TORCH_CHECK(tensor.layout() == at::kStrided && !tensor.is_nested(), "regops.", a.op,
              ": expected strided tensors, got ",
              tensor.is_nested() ? "a nested one" : c10::str(tensor.layout()), " as ", name, "[", k,
              "]");
}

// Torch would refuse to count up the version of such a tensor, which is after the step.
bool is_writable(const Tensor& tensor) {
  return !tensor.is_inference() || c10::InferenceMode::is_enabled();
}

void check_writable(const StepArguments& a, const char* name, size_t k, const Tensor& tensor) {
  TORCH_CHECK(is_writable(tensor), "regops.", a.op, ": expected ", name, "[", k,
              "] to be writable, got a tensor made in inference mode: clone it outside");
}

// What is wrong with a tensor of a list, which must be as large as its parameter and beside it.
[[noreturn]] void refuse(const StepArguments& a, const char* name, size_t k, const Tensor& tensor,
                         at::ScalarType type) {
  const Tensor& param = a.params[k];
  check_tensor(a, name, k, tensor);
  TORCH_CHECK(tensor.scalar_type() == type, "regops.", a.op, ": expected ", name, " of dtype ",
              type_name(type), ", got ", type_name(tensor.scalar_type()), " at index ", k);
  TORCH_CHECK(tensor.device() == param.device(), "regops.", a.op, ": expected ", name, "[", k,
              "] on ", param.device(), ", got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.sym_sizes() == param.sym_sizes(), "regops.", a.op, ": expected ", name,
                    "[", k, "] of shape ", param.sym_sizes(), ", got ", tensor.sym_sizes());
  check_writable(a, name, k, tensor);
  TORCH_CHECK(false, "regops.", a.op, ": expected ", name, "[", k,
              "] without overlapping memory, got an expanded tensor");
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  const bool symbols = a.unsafeGetTensorImpl()->has_symbolic_sizes_strides() ||
                       b.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  return symbols ? a.sym_sizes() == b.sym_sizes() : a.sizes() == b.sizes();
}

void check_list(const StepArguments& a, const char* name, TensorList list, at::ScalarType type,
                bool written) {
  for (size_t k = 0; k < list.size(); ++k) {
    const Tensor &tensor = list[k], &param = a.params[k];
    const bool fits =
        tensor.defined() && tensor.layout() == at::kStrided && !tensor.is_nested() &&
        tensor.scalar_type() == type && tensor.device() == param.device() &&
        same_sizes(tensor, param) &&
        (!written ||
         (is_writable(tensor) &&
          (tensor.is_contiguous() || at::has_internal_overlap(tensor) != at::MemOverlap::Yes)));
    if (!fits) refuse(a, name, k, tensor, type);
  }
}

// Threads would step a tensor that is there twice at the same time. 1000 tensors take 10 us.
void check_distinct(const StepArguments& a, const char* name, TensorList list) {
  ska::flat_hash_set<const c10::TensorImpl*> seen;
  seen.reserve(list.size());
  for (size_t k = 0; k < list.size(); ++k) {
    if (seen.insert(list[k].unsafeGetTensorImpl()).second) continue;
    size_t first = 0;
    while (!list[first].is_same(list[k])) ++first;
    TORCH_CHECK_VALUE(false, "regops.", a.op, ": expected each of ", name,
                      " once, got the same tensor at indices ", first, " and ", k);
  }
}

// A step begins after the caches have seen all parameters: what is known of 1000 tensors is asked
// for at once here, not one after the other below.
void prefetch(const StepArguments& a) {
  for (const TensorList list :
       {a.params, a.grads, a.first, a.second, a.largest, a.state_steps, a.masters, a.emas}) {
    for (const Tensor& tensor : list) {
      const char* impl = reinterpret_cast<const char*>(tensor.unsafeGetTensorImpl());
      for (size_t line = 0; line < sizeof(c10::TensorImpl); line += 64) {
        __builtin_prefetch(impl + line);
      }
    }
  }
}

void check_numbers(const StepArguments& a) {
  const auto check = [&](const char* name, double value, bool fits, const char* range) {
    TORCH_CHECK_VALUE(fits, "regops.", a.op, ": expected ", name, " ", range, ", got ", value);
  };
  const auto at_least_0 = [&](const char* name, double value) {
    check(name, value, value >= 0.0 && !std::isinf(value),
          std::isinf(value) ? "to be finite" : "of at least 0");
  };
  const auto limit = [&](const char* name, std::optional<double> value) {
    if (value) check(name, *value, *value >= 0.0, "of at least 0");
  };
  check("beta1", a.beta1, a.beta1 >= 0.0 && a.beta1 < 1.0, "in [0, 1)");
  check("beta2", a.beta2, a.beta2 >= 0.0 && a.beta2 < 1.0, "in [0, 1)");
  at_least_0("eps", a.eps);
  at_least_0("momentum", a.momentum);
  check("dampening", a.dampening, std::isfinite(a.dampening), "to be finite");
  TORCH_CHECK_VALUE(!a.nesterov || (a.momentum > 0.0 && a.dampening == 0.0), "regops.", a.op,
                    ": expected a positive momentum and no dampening with nesterov, got momentum ",
                    a.momentum, " and dampening ", a.dampening);
  at_least_0("weight_decay", a.weight_decay);
  limit("max_grad_norm", a.max_grad_norm);
  limit("clip_value", a.clip_value);
  at_least_0("l1", a.l1);
  at_least_0("l2", a.l2);
  at_least_0("eta of gradient_noise", a.noise_variance);
  check("gamma of gradient_noise", a.noise_decay, std::isfinite(a.noise_decay), "to be finite");
  limit("max_norm", a.max_norm);
  if (a.ema_decay) {
    check("ema_decay", *a.ema_decay, *a.ema_decay >= 0.0 && *a.ema_decay <= 1.0, "in [0, 1]");
  }
  for (const int64_t first : a.first_indices) {
    TORCH_CHECK_VALUE(first >= 0, "regops.", a.op, ": expected first_indices of at least 0, got ",
                      first);
  }
}

void check_scalar(const StepArguments& a, const char* name, const OptionalTensor& tensor) {
  if (!tensor) return;
  TORCH_CHECK_VALUE(tensor->numel() == 1, "regops.", a.op, ": expected ", name,
                    " of one element, got shape ", tensor->sym_sizes());
  TORCH_CHECK_TYPE(tensor->is_floating_point(), "regops.", a.op, ": expected ", name,
                   " of a floating-point dtype, got ", type_name(tensor->scalar_type()));
}

}  // namespace

void check_step(const StepArguments& a) {
  prefetch(a);
  const bool adamw = a.rule == StepRule::adamw;
  const Master master = master_of(a);
  check_numbers(a);
  check_scalar(a, "lr", a.lr);
  check_scalar(a, "grad_norm", a.grad_norm);
  check_scalar(a, "grad_scale", a.grad_scale);
  check_scalar(a, "found_inf", a.found_inf);
  TORCH_CHECK_VALUE(!a.max_grad_norm || a.grad_norm, "regops.", a.op,
                    ": expected grad_norm beside max_grad_norm, got none");
  const char* each = "(one each of params)";
  check_count(a, "grads", a.grads, true, each);
  check_count(a, "state_steps", a.state_steps, true, each);
  if (adamw) {
    check_count(a, "exp_avgs", a.first, true, each);
    check_count(a, "exp_avg_sqs", a.second, true, each);
    check_count(a, "max_exp_avg_sqs", a.largest, !a.largest.empty(), each);
  } else {
    check_count(a, "momentum_buffers", a.first, a.momentum != 0.0,
                a.momentum != 0.0 ? each : "without momentum");
  }
  check_count(a, "emas", a.emas, a.ema_decay.has_value(),
              a.ema_decay ? "(one each of params) with ema_decay" : "without ema_decay");
  TORCH_CHECK_VALUE(a.streams.empty() || a.streams.size() == a.params.size(), "regops.", a.op,
                    ": expected ", a.params.size(), " streams, got ", a.streams.size());
  TORCH_CHECK_VALUE(a.first_indices.empty() || a.first_indices.size() == a.params.size(), "regops.",
                    a.op, ": expected ", a.params.size(), " first_indices, got ",
                    a.first_indices.size());
  if (a.params.empty()) return;

  check_tensor(a, "params", 0, a.params[0]);
  const at::ScalarType param = a.params[0].scalar_type(), real = real_of(param);
  TORCH_CHECK(param == real || is_half(param), "regops.", a.op,
              ": expected params of dtype float64, float32, bfloat16 or float16, got ",
              type_name(param));
  const bool keeps = is_half(param) && (master == Master::fp32 || master == Master::kahan);
  check_count(a, "masters", a.masters, keeps,
              keeps ? "(one each of params)" : "with this master and params of this dtype");
  check_tensor(a, "grads", 0, a.grads[0]);
  const at::ScalarType grad = a.grads[0].scalar_type();
  TORCH_CHECK(grad == param || grad == real, "regops.", a.op, ": expected grads of dtype ",
              type_name(param), param == real ? "" : " or float32", ", got ", type_name(grad));
  const at::ScalarType state = state_type(a);
  TORCH_CHECK(state == real || (state == at::kBFloat16 && real == at::kFloat), "regops.", a.op,
              ": expected states of dtype ", type_name(real),
              real == at::kFloat ? " or bfloat16" : "", ", got ", type_name(state));
  const at::Device device = a.params[0].device();
  for (const Tensor& other : a.params) {
    TORCH_CHECK(!other.defined() || other.device() == device, "regops.", a.op,
                ": expected all params on one device, got ", device, " and ", other.device());
  }
  check_list(a, "params", a.params, param, true);
  check_list(a, "grads", a.grads, grad, writes_gradients(a));
  check_list(a, adamw ? "exp_avgs" : "momentum_buffers", a.first, state, true);
  check_list(a, "exp_avg_sqs", a.second, state, true);
  check_list(a, "max_exp_avg_sqs", a.largest, state, true);
  check_list(a, "masters", a.masters, master == Master::kahan ? param : at::kFloat, true);
  check_list(a, "emas", a.emas, real, true);
  for (size_t k = 0; k < a.state_steps.size(); ++k) {
    const Tensor& step = a.state_steps[k];
    check_tensor(a, "state_steps", k, step);
    TORCH_CHECK(step.scalar_type() == at::kFloat && step.numel() == 1, "regops.", a.op,
                ": expected state_steps of dtype float32 and one element, got ",
                type_name(step.scalar_type()), " of shape ", step.sym_sizes(), " at index ", k);
    TORCH_CHECK(step.device() == device, "regops.", a.op, ": expected state_steps[", k, "] on ",
                device, ", got ", step.device());
    check_writable(a, "state_steps", k, step);
  }
  check_distinct(a, "params", a.params);
  check_distinct(a, "state_steps", a.state_steps);
  if (writes_gradients(a)) check_distinct(a, "grads", a.grads);
  for (size_t k = 0; k < a.params.size(); ++k) {
    if (a.params[k].dim() > kStepDims && !in_one_piece(a, k)) step_layout(a, k);
  }
  if (draws_random_numbers(a)) {
    TORCH_CHECK_VALUE(a.key, "regops.", a.op,
                      ": expected a key for gradient noise or stochastic rounding, got none");
  }
  if (a.key) check_key(a.op, *a.key, a.params[0]);
}

}  // namespace regops
