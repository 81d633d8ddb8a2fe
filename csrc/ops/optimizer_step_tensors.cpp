// From the arguments of an optimizer step, once they are checked, to what its kernels are told.
#include <array>
#include <cmath>

#include "ops/arguments.h"
#include "ops/optimizer_step.h"

namespace regops {

using at::Tensor;
using at::TensorList;

namespace {

// One of these sizes is that of a dimension that is 1 in both.
bool same_strides(const Tensor& a, const Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// The tensors of parameter k, in the order of StepOperand; null where there is none.
std::array<const Tensor*, kStepOperands> operands(const StepArguments& a, size_t k) {
  const auto of = [k](TensorList list) { return list.empty() ? nullptr : &list[k]; };
  return {of(a.params),  of(a.grads),   of(a.first), of(a.second),
          of(a.largest), of(a.masters), of(a.emas)};
}

}  // namespace

Master master_of(const StepArguments& a) {
  if (a.master == "none") return Master::none;
  if (a.master == "fp32") return Master::fp32;
  if (a.master == "kahan") return Master::kahan;
  TORCH_CHECK_VALUE(a.master == "stochastic", "regops.", a.op,
                    ": expected master \"none\", \"fp32\", \"kahan\" or \"stochastic\", got \"",
                    a.master, "\"");
  return Master::stochastic;
}

at::ScalarType state_type(const StepArguments& a) {
  return a.first.empty() ? real_of(a.params[0].scalar_type()) : a.first[0].scalar_type();
}

bool draws_random_numbers(const StepArguments& a) {
  const at::ScalarType param = a.params[0].scalar_type();
  return a.noise_variance > 0.0 || (a.master == "stochastic" && is_half(param)) ||
         state_type(a) != real_of(param);
}

bool writes_gradients(const StepArguments& a) { return a.zero_grad || a.grad_scale.has_value(); }

StepOptions step_options(const StepArguments& a) {
  const auto limit = [](std::optional<double> value) { return value ? *value : INFINITY; };
  StepOptions options;
  options.rule = a.rule;
  options.param = dtype_of(a.params[0].scalar_type());
  options.grad = dtype_of(a.grads[0].scalar_type());
  options.state = dtype_of(state_type(a));
  options.master = is_half(a.params[0].scalar_type()) ? master_of(a) : Master::none;
  options.beta1 = a.beta1;
  options.beta2 = a.beta2;
  options.eps = a.eps;
  options.momentum = a.momentum;
  options.dampening = a.dampening;
  options.nesterov = a.nesterov;
  options.weight_decay = a.weight_decay;
  options.l1 = a.l1;
  options.l2 = a.l2;
  options.maximize = a.maximize;
  options.max_grad_norm = limit(a.max_grad_norm);
  options.clip_value = limit(a.clip_value);
  options.noise_variance = a.noise_variance;
  options.noise_decay = a.noise_decay;
  options.max_norm = limit(a.max_norm);
  options.ema_decay = a.ema_decay.value_or(0.0);
  options.zero_grad = a.zero_grad;
  return options;
}

StepTensors step_tensors(const StepArguments& a, size_t k) {
  const auto written = [k](TensorList list) {
    return list.empty() ? nullptr : list[k].mutable_data_ptr();
  };
  const Tensor& param = a.params[k];
  StepTensors tensors;
  tensors.param = written(a.params);
  tensors.grad =
      writes_gradients(a) ? written(a.grads) : const_cast<void*>(a.grads[k].const_data_ptr());
  tensors.first = written(a.first);
  tensors.second = written(a.second);
  tensors.largest = written(a.largest);
  tensors.master = written(a.masters);
  tensors.ema = written(a.emas);
  tensors.step = a.state_steps[k].mutable_data_ptr<float>();
  tensors.numel = param.numel();
  const bool rows = a.max_norm && param.dim() >= 2 && param.numel() > 0;
  tensors.row = rows ? param.numel() / param.size(0) : 0;
  tensors.stream = a.streams.empty() ? k : static_cast<uint64_t>(a.streams[k]);
  tensors.first_index = a.first_indices.empty() ? 0 : a.first_indices[k];
  return tensors;
}

bool in_one_piece(const StepArguments& a, size_t k) {
  const Tensor& param = a.params[k];
  for (const Tensor* tensor : operands(a, k)) {
    if (tensor != nullptr && !same_strides(param, *tensor)) return false;
  }
  if (param.is_contiguous()) return true;
  // Random numbers belong to logical indices, and rows must lie in one piece.
  const bool rows = a.max_norm && param.dim() >= 2 && param.size(0) > 1 &&
                    param.stride(0) != param.numel() / param.size(0);
  return param.is_non_overlapping_and_dense() && !rows && !draws_random_numbers(a);
}

StepLayout step_layout(const StepArguments& a, size_t k) {
  const auto tensors = operands(a, k);
  const Tensor& param = a.params[k];
  StepLayout layout = {};
  for (int64_t d = 0; d < param.dim(); ++d) {
    if (param.size(d) == 1) continue;
    // A dimension whose stride is the next one's whole length is one with it, in all tensors.
    bool merges = layout.dims > 0;
    for (int t = 0; t < kStepOperands && merges; ++t) {
      merges = tensors[t] == nullptr ||
               layout.stride[t][layout.dims - 1] == tensors[t]->stride(d) * param.size(d);
    }
    TORCH_CHECK_NOT_IMPLEMENTED(merges || layout.dims < kStepDims, "regops.", a.op,
                                ": expected params of at most ", kStepDims,
                                " dimensions where strides differ, got ", param.dim());
    const int to = merges ? layout.dims - 1 : layout.dims++;
    layout.size[to] = merges ? layout.size[to] * param.size(d) : param.size(d);
    for (int t = 0; t < kStepOperands; ++t) {
      layout.stride[t][to] = tensors[t] == nullptr ? 0 : tensors[t]->stride(d);
    }
  }
  if (layout.dims == 0) {
    layout.dims = 1;
    layout.size[0] = 1;
  }
  return layout;
}

void increment_versions(const StepArguments& a) {
  const auto bump = [](TensorList list) {
    for (const Tensor& tensor : list) tensor.unsafeGetTensorImpl()->bump_version();
  };
  for (const TensorList list :
       {a.params, a.first, a.second, a.largest, a.state_steps, a.masters, a.emas}) {
    bump(list);
  }
  if (writes_gradients(a)) bump(a.grads);
}

}  // namespace regops
