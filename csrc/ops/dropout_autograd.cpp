// Dropout's derivative: dx is the same op on dy, with the same p and key, and so differentiable in
// its turn. And the entry for eager Python.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/arguments.h"
#include "ops/dropout.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;

namespace {

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* op, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(op, overload).typed<Signature>();
}

Tensor call_dropout(const Tensor& input, double p, const Tensor& key) {
  static const auto op = find<Tensor(const Tensor&, double, const Tensor&)>("regops::dropout");
  return op.call(input, p, key);
}

Tensor call_dropout_tensor_p(const Tensor& input, const Tensor& p, const Tensor& key) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, const Tensor&)>("regops::dropout", "tensor_p");
  return op.call(input, p, key);
}

Tensor call_dropout_shard(const Tensor& input, double p, const Tensor& key, c10::SymInt offset,
                          c10::SymIntArrayRef strides) {
  static const auto op =
      find<Tensor(const Tensor&, double, const Tensor&, c10::SymInt, c10::SymIntArrayRef)>(
          "regops::dropout_shard");
  return op.call(input, p, key, offset, strides);
}

void call_dropout_inplace(const Tensor& input, double p, const Tensor& key) {
  static const auto op = find<void(const Tensor&, double, const Tensor&)>("regops::dropout_");
  op.call(input, p, key);
}

void check_leaf(const Tensor& input) {
  TORCH_CHECK(
      !(at::GradMode::is_enabled() && input.requires_grad() && input.is_leaf() && !input.is_view()),
      "regops.dropout: a leaf tensor of shape ", input.sizes(),
      " that requires grad is being used in an in-place operation");
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <bool kInplace>
struct DropoutFunction : torch::autograd::Function<DropoutFunction<kInplace>> {
  static Tensor forward(AutogradContext* context, const Tensor& input, double p,
                        const Tensor& key) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({key});
    context->saved_data["p"] = p;
    if constexpr (!kInplace) return call_dropout(input, p, key);
    call_dropout_inplace(input, p, key);
    context->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Tensor& gradient = gradients[0];
    if (!gradient.defined()) return {Tensor(), Tensor(), Tensor()};
    const Tensor key = context->get_saved_variables()[0];
    return {call_dropout(gradient, context->saved_data["p"].toDouble(), key), Tensor(), Tensor()};
  }
};

struct DropoutTensorPFunction : torch::autograd::Function<DropoutTensorPFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& p,
                        const Tensor& key) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({p, key});  // a p that is overwritten before backward is an error
    return call_dropout_tensor_p(input, p, key);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Tensor& gradient = gradients[0];
    if (!gradient.defined()) return {Tensor(), Tensor(), Tensor()};
    const variable_list saved = context->get_saved_variables();
    return {call_dropout_tensor_p(gradient, saved[0], saved[1]), Tensor(), Tensor()};
  }
};

struct DropoutShardFunction : torch::autograd::Function<DropoutShardFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& input, double p, const Tensor& key,
                        c10::SymInt offset, c10::SymIntArrayRef strides) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({key});
    context->saved_data["p"] = p;
    context->saved_data["offset"] = offset;
    context->saved_data["strides"] = strides.vec();
    return call_dropout_shard(input, p, key, offset, strides);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Tensor& gradient = gradients[0];
    if (!gradient.defined()) return {Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    const Tensor key = context->get_saved_variables()[0];
    auto& saved = context->saved_data;
    const Tensor result =
        call_dropout_shard(gradient, saved["p"].toDouble(), key, saved["offset"].toSymInt(),
                           saved["strides"].toSymIntVector());
    return {result, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

bool needs_node(const Tensor& input) {
  return (at::GradMode::is_enabled() && input.requires_grad()) || input._fw_grad(0).defined();
}

Tensor dropout_autograd(const Tensor& input, double p, const Tensor& key) {
  if (needs_node(input)) return DropoutFunction<false>::apply(input, p, key);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_dropout(input, p, key);
}

Tensor dropout_tensor_p_autograd(const Tensor& input, const Tensor& p, const Tensor& key) {
  check_tensor_p("dropout", p);
  if (needs_node(input)) return DropoutTensorPFunction::apply(input, p, key);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_dropout_tensor_p(input, p, key);
}

Tensor dropout_shard_autograd(const Tensor& input, double p, const Tensor& key, c10::SymInt offset,
                              c10::SymIntArrayRef strides) {
  if (needs_node(input)) return DropoutShardFunction::apply(input, p, key, offset, strides);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_dropout_shard(input, p, key, offset, strides);
}

void dropout_inplace_autograd(const Tensor& input, double p, const Tensor& key) {
  check_dropout(input, p, key);
  check_leaf(input);
  const bool needs = needs_node(input);
  torch::autograd::check_inplace(input, needs);
  if (needs) {  // marks the input dirty, which counts its version up
    DropoutFunction<true>::apply(input, p, key);
    return;
  }
  const at::AutoDispatchBelowAutograd guard;
  call_dropout_inplace(input, p, key);
}

// Reached without Autograd too: a tensor from outside that is written in inference mode.
void dropout_inplace_version(const Tensor& input, double p, const Tensor& key) {
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    call_dropout_inplace(input, p, key);
  }
  torch::autograd::increment_version(input);
}

}  // namespace

Tensor dropout_eager(const Tensor& input, double p, bool training, bool inplace,
                     const std::optional<Tensor>& key,
                     const std::optional<at::Generator>& generator) {
  check_p("dropout", p);
  TORCH_CHECK_VALUE(
      !key || !generator,
      "regops.dropout: expected key or generator, got both: a key needs no generator");
  if (key) check_key("dropout", *key, input);
  if (!training || p == 0.0) return input;
  check_dtype("dropout", "input", input);
  check_strided("dropout", "input", input);
  if (inplace) {
    check_leaf(input);
    at::assert_no_internal_overlap(input);
  }
  // p = 1 drops all: no random number is needed, and as in torch none is drawn.
  const Tensor used = key        ? *key
                      : p == 1.0 ? at::zeros({2}, input.options().dtype(at::kLong))
                                 : new_eager_key(input, generator);
  if (!inplace) return call_dropout(input, p, used);
  call_dropout_inplace(input, p, used);
  return input;
}

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  for (const char* op : {"dropout", "dropout.tensor_p", "dropout_shard"}) {
    m.impl(op, torch::CppFunction::makeFallthrough());
  }
  m.impl("dropout_", &dropout_inplace_version);
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("dropout", &dropout_autograd);
  m.impl("dropout.tensor_p", &dropout_tensor_p_autograd);
  m.impl("dropout_shard", &dropout_shard_autograd);
  m.impl("dropout_", &dropout_inplace_autograd);
}

}  // namespace regops
