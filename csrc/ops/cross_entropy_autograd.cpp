// What the autograd functions of cross_entropy and linear_cross_entropy share.
#include "ops/cross_entropy_autograd.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/graph_task.h>

namespace regops {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

variable_list save_arguments(AutogradContext* context, const CrossEntropyArguments& a) {
  auto& data = context->saved_data;
  data["ignore_index"] = a.ignore_index;
  data["reduction"] = a.reduction;
  data["label_smoothing"] = a.label_smoothing;
  data["smoothing"] = a.smoothing;
  data["z_loss"] = a.z_loss;
  data["entropy_weight"] = a.entropy_weight;
  data["return_lse"] = a.return_lse;
  data["inplace_backward"] = a.inplace_backward;
  return {a.input,
          a.target,
          a.weight.value_or(Tensor()),
          a.target_b.value_or(Tensor()),
          a.lam.value_or(Tensor()),
          a.num_items.value_or(Tensor())};
}

CrossEntropyArguments saved_arguments(AutogradContext* context, const variable_list& saved) {
  auto& data = context->saved_data;
  return {saved[kInput],
          saved[kTarget],
          optional(saved[kWeight]),
          optional(saved[kTargetB]),
          optional(saved[kLam]),
          optional(saved[kNumItems]),
          data["ignore_index"].toInt(),
          data["reduction"].toStringRef(),
          data["label_smoothing"].toDouble(),
          data["smoothing"].toStringRef(),
          data["z_loss"].toDouble(),
          data["entropy_weight"].toDouble(),
          data["return_lse"].toBool(),
          data["inplace_backward"].toBool()};
}

bool is_gradient_ready(const CrossEntropyArguments& a) {
  return a.reduction != "none" && a.input.scalar_type() != at::kHalf && !a.target.requires_grad();
}

bool is_plain(const Tensor& tensor) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet kStandIns({DispatchKey::Python, DispatchKey::Functionalize,
                                           DispatchKey::FuncTorchBatched, DispatchKey::Batched,
                                           DispatchKey::Negative, DispatchKey::ZeroTensor});
  return (tensor.is_cpu() || tensor.is_cuda()) && !tensor.key_set().has_any(kStandIns);
}

Tensor scaled_gradient(const Tensor& gradient, const Tensor& upstream) {
  if (!is_plain(gradient) || !is_plain(upstream)) {
    return (gradient.to(upstream.scalar_type()) * upstream).to(gradient.scalar_type());
  }
  const bool may_come_back = torch::autograd::get_current_graph_task_keep_graph();
  const Tensor result = may_come_back ? gradient.clone() : gradient;
  scale_gradient(result, upstream);
  return result;
}

Tensor on_its_own(const Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad() ? tensor.view_as(tensor) : tensor;
}

variable_list differentiable_gradients(const variable_list& outputs, const variable_list& upstream,
                                       const variable_list& inputs) {
  variable_list of, from, to;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!upstream[i].defined()) continue;
    of.push_back(outputs[i]);
    from.push_back(upstream[i]);
  }
  for (const Tensor& input : inputs) {
    if (input.defined() && input.requires_grad()) to.push_back(input);
  }
  const variable_list found = torch::autograd::grad(of, to, from, /*retain_graph=*/true,
                                                    /*create_graph=*/true, /*allow_unused=*/true);
  variable_list gradients(inputs.size());
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].defined() && inputs[i].requires_grad()) gradients[i] = found[next++];
  }
  return gradients;
}

bool is_check_asked_for(const char* op, const std::optional<std::string>& check) {
  TORCH_CHECK_VALUE(!check || *check == "sync", "regops.", op,
                    ": expected check None or \"sync\", got \"", check.value_or(""), "\"");
  return check.has_value();
}

}  // namespace regops
