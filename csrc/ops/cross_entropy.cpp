// regops::cross_entropy: the loss, and where it is to be differentiated its gradient in the same
// pass.
//
// Logits are read once and the gradient written once: 2 x bytes of the logits for forward and
// backward. Backward scales the finished gradient by the upstream one, which costs nothing where
// that is 1. Where a finished gradient would be wrong or wasted (an upstream gradient by row;
// float16, in which p / N underflows before a loss scale can lift it; gradients to probabilities or
// through lse), forward writes no gradient and backward runs the pass again: 3 x bytes.
#include "ops/cross_entropy.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include "ops/cross_entropy_signature.h"
#include "ops/output.h"

namespace regops {

using at::Tensor;

namespace {

constexpr const char* kName = "cross_entropy";

using LossAndLse = std::tuple<Tensor, Tensor>;
using WithGradient = std::tuple<Tensor, Tensor, Tensor>;  // loss, lse, d loss / d input
using Gradients = std::tuple<Tensor, Tensor>;             // of input and target

// ---- outputs, for every device including Meta ---------------------------------------------------

Tensor empty_reals(const CrossEntropyArguments& a, const CrossEntropyContract& c,
                   at::IntArrayRef shape) {
  return at::empty(shape, a.input.options().dtype(c.real));
}

Tensor empty_lse(const CrossEntropyArguments& a, const CrossEntropyContract& c) {
  return a.return_lse ? empty_reals(a, c, c.rows_shape) : empty_reals(a, c, {0});
}

// ---- devices ------------------------------------------------------------------------------------

// The loss, with the gradient where that tensor is defined; it may be the input itself.
LossAndLse forward(const CrossEntropyArguments& a, const CrossEntropyContract& c,
                   const Tensor& gradient) {
  CrossEntropyPass pass;
  pass.totals = cross_entropy_totals(kName, a, c);  // finds targets out of range, before any write
  pass.loss = empty_reals(a, c, c.rows_shape);
  const Tensor lse = empty_lse(a, c);
  if (a.return_lse) pass.lse = lse;
  pass.gradient = gradient;
  run_cross_entropy(a, c, pass);
  if (c.reduction == Reduction::none) return {pass.loss, lse};
  return {total_loss(pass.loss, pass.totals), lse};
}

LossAndLse cross_entropy(const CrossEntropyArguments& a) {
  return forward(a, check_cross_entropy(kName, a), Tensor());
}

WithGradient cross_entropy_with_gradient(const CrossEntropyArguments& a) {
  const CrossEntropyContract c = check_cross_entropy(kName, a);
  const Tensor gradient = empty_output(a.input);
  const auto [loss, lse] = forward(a, c, gradient);
  return {loss, lse, gradient};
}

// Fills the gradients, each where it is defined.
void backward(const CrossEntropyArguments& a, const OptionalTensor& grad_loss,
              const OptionalTensor& grad_lse, const Tensor& gradient,
              const Tensor& target_gradient) {
  const CrossEntropyContract c = check_cross_entropy(kName, a);
  CrossEntropyPass pass;
  pass.totals = cross_entropy_totals(kName, a, c);
  pass.gradient = gradient;
  pass.target_gradient = target_gradient;
  pass.upstream_loss = grad_loss ? *grad_loss : at::zeros({}, a.input.options().dtype(c.real));
  if (grad_lse) pass.upstream_lse = *grad_lse;
  run_cross_entropy(a, c, pass);
}

Gradients cross_entropy_backward(const CrossEntropyArguments& a, const OptionalTensor& grad_loss,
                                 const OptionalTensor& grad_lse, bool target_gradient) {
  const Tensor gradient = empty_output(a.input);
  const Tensor of_target = target_gradient ? at::empty_like(a.target) : Tensor();
  backward(a, grad_loss, grad_lse, gradient, of_target);
  return {gradient, target_gradient ? of_target : at::empty({0}, a.target.options())};
}

LossAndLse cross_entropy_meta(const CrossEntropyArguments& a) {
  const CrossEntropyContract c = check_cross_entropy(kName, a);
  const bool rows = c.reduction == Reduction::none;
  return {empty_reals(a, c, rows ? at::IntArrayRef(c.rows_shape) : at::IntArrayRef()),
          empty_lse(a, c)};
}

WithGradient cross_entropy_with_gradient_meta(const CrossEntropyArguments& a) {
  const auto [loss, lse] = cross_entropy_meta(a);
  return {loss, lse, at::empty_like(a.input)};
}

Gradients cross_entropy_backward_meta(const CrossEntropyArguments& a, const OptionalTensor&,
                                      const OptionalTensor&, bool target_gradient) {
  return {at::empty_like(a.input),
          target_gradient ? at::empty_like(a.target) : at::empty({0}, a.target.options())};
}

// ---- the gradient in the logits' memory ---------------------------------------------------------

// Whether a tensor is memory on a device, not a tracer's or a transform's stand-in for one.
bool is_plain(const Tensor& tensor) {
  using c10::DispatchKey;
  return (tensor.is_cpu() || tensor.is_cuda()) &&
         !tensor.key_set().has_any(c10::DispatchKeySet(
             {DispatchKey::Python, DispatchKey::Functionalize, DispatchKey::FuncTorchBatched}));
}

void check_gives_memory(const Tensor& input) {
  TORCH_CHECK(!input.is_leaf(),
              "regops.cross_entropy: expected input that is no leaf with inplace_backward=True: a "
              "leaf of shape ",
              input.sizes(), " would lose its values");
  TORCH_CHECK_VALUE(
      input.is_non_overlapping_and_dense() &&
          input.nbytes() == static_cast<size_t>(input.storage().nbytes()),
      "regops.cross_entropy: expected input that fills its memory with inplace_backward=True, got ",
      "one of ", input.nbytes(), " bytes in a storage of ", input.storage().nbytes());
}

// A tensor of the input's memory and strides. From now on the input, and every view of it, raises
// when it is used, and autograd counts it as written.
Tensor take_memory(const Tensor& input) {
  c10::StorageImpl* storage = input.storage().unsafeGetStorageImpl();
  const size_t bytes = storage->nbytes();
  at::DataPtr data = storage->set_data_ptr(at::DataPtr(nullptr, storage->device()));
  const c10::Storage taken(c10::Storage::use_byte_size_t(), bytes, std::move(data),
                           storage->allocator(), /*resizable=*/false);
  storage->release_data_and_set_meta_custom_data_ptr_error_msg_(
      "regops.cross_entropy(inplace_backward=True) gave the memory of these logits to their "
      "gradient: use them before the loss, or leave inplace_backward off");
  if (!input.is_inference()) torch::autograd::increment_version(input);
  return at::empty({0}, input.options())
      .set_(taken, input.storage_offset(), input.sizes(), input.strides());
}

// ---- autograd -----------------------------------------------------------------------------------

LossAndLse call_forward(const CrossEntropyArguments& a) {
  static const CrossEntropyOp<LossAndLse> op("regops::cross_entropy");
  return op(a);
}

WithGradient call_with_gradient(const CrossEntropyArguments& a) {
  static const CrossEntropyOp<WithGradient> op("regops::cross_entropy_with_gradient");
  return op(a);
}

Gradients call_backward(const CrossEntropyArguments& a, const Tensor& grad_loss,
                        const Tensor& grad_lse, bool target_gradient) {
  static const CrossEntropyOp<Gradients, const OptionalTensor&, const OptionalTensor&, bool> op(
      "regops::cross_entropy_backward");
  const auto optional = [](const Tensor& tensor) {
    return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
  };
  return op(a, optional(grad_loss), optional(grad_lse), target_gradient);
}

// The oracle, which is differentiable any number of times.
LossAndLse call_composite(const CrossEntropyArguments& a) {
  static const CrossEntropyOp<LossAndLse> op("regops::cross_entropy_composite");
  return op(a);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum Saved { kInput, kTarget, kWeight, kTargetB, kLam, kNumItems, kGradient };

void save(AutogradContext* context, const CrossEntropyArguments& a, const Tensor& gradient) {
  const bool lost = gradient.defined() && a.inplace_backward;  // the logits are no more
  context->save_for_backward({lost ? Tensor() : a.input, a.target, a.weight.value_or(Tensor()),
                              a.target_b.value_or(Tensor()), a.lam.value_or(Tensor()),
                              a.num_items.value_or(Tensor()), gradient});
  auto& data = context->saved_data;
  data["ignore_index"] = a.ignore_index;
  data["reduction"] = a.reduction;
  data["label_smoothing"] = a.label_smoothing;
  data["smoothing"] = a.smoothing;
  data["z_loss"] = a.z_loss;
  data["entropy_weight"] = a.entropy_weight;
  data["return_lse"] = a.return_lse;
  data["inplace_backward"] = a.inplace_backward;
}

CrossEntropyArguments saved_arguments(AutogradContext* context, const variable_list& saved) {
  auto& data = context->saved_data;
  const auto optional = [&](Saved which) {
    return saved[which].defined() ? OptionalTensor(saved[which]) : std::nullopt;
  };
  return {saved[kInput],
          saved[kTarget],
          optional(kWeight),
          optional(kTargetB),
          optional(kLam),
          optional(kNumItems),
          data["ignore_index"].toInt(),
          data["reduction"].toStringRef(),
          data["label_smoothing"].toDouble(),
          data["smoothing"].toStringRef(),
          data["z_loss"].toDouble(),
          data["entropy_weight"].toDouble(),
          data["return_lse"].toBool(),
          data["inplace_backward"].toBool()};
}

// Whether forward computes the gradient for backward to scale.
bool is_gradient_ready(const CrossEntropyArguments& a) {
  return a.reduction != "none" && a.input.scalar_type() != at::kHalf && a.input.requires_grad() &&
         !a.target.requires_grad();
}

Tensor scaled(const Tensor& gradient, const Tensor& factor) {
  if (!is_plain(gradient)) {
    return (gradient.to(factor.scalar_type()) * factor).to(gradient.scalar_type());
  }
  // The only holder of a gradient that no second backward will ask for may write it.
  const bool mine = !torch::autograd::get_current_graph_task_keep_graph();
  const Tensor result = mine ? gradient : gradient.clone();
  scale_gradient(result, factor);
  return result;
}

variable_list composite_gradients(const CrossEntropyArguments& a, const Tensor& grad_loss,
                                  const Tensor& grad_lse) {
  const auto [loss, lse] = call_composite(a);
  variable_list outputs, upstream, inputs;
  const auto add = [&](const Tensor& output, const Tensor& gradient) {
    if (!gradient.defined()) return;
    outputs.push_back(output);
    upstream.push_back(gradient);
  };
  add(loss, grad_loss);
  add(lse, grad_lse);
  for (const Tensor& tensor : {a.input, a.target}) {
    if (tensor.requires_grad()) inputs.push_back(tensor);
  }
  variable_list gradients = torch::autograd::grad(outputs, inputs, upstream, /*retain_graph=*/true,
                                                  /*create_graph=*/true, /*allow_unused=*/true);
  if (!a.input.requires_grad()) gradients.insert(gradients.begin(), Tensor());
  if (!a.target.requires_grad()) gradients.push_back(Tensor());
  return gradients;
}

struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  // `input` and `target` are those of the arguments, given apart for autograd to find.
  static variable_list forward(AutogradContext* context, const Tensor& input, const Tensor& target,
                               CrossEntropyArguments a) {
    const bool ready = is_gradient_ready(a);
    a.inplace_backward = a.inplace_backward && is_plain(input) && input.requires_grad();
    if (a.inplace_backward) check_gives_memory(input);
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->set_materialize_grads(false);
    Tensor loss, lse, gradient;
    if (ready && a.inplace_backward) {
      const CrossEntropyContract c = check_cross_entropy(kName, a);
      std::tie(loss, lse) = regops::forward(a, c, input);
      gradient = take_memory(input);
    } else if (ready) {
      std::tie(loss, lse, gradient) = call_with_gradient(a);
    } else {
      std::tie(loss, lse) = call_forward(a);
    }
    save(context, a, gradient);
    if (!a.return_lse || (ready && a.inplace_backward)) context->mark_non_differentiable({lse});
    return {loss, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    const Tensor &grad_loss = upstream[0], &grad_lse = upstream[1];
    if (!grad_loss.defined() && !grad_lse.defined()) return {Tensor(), Tensor(), Tensor()};
    const variable_list saved = context->get_saved_variables();
    const CrossEntropyArguments a = saved_arguments(context, saved);
    if (at::GradMode::is_enabled()) {  // create_graph=True
      TORCH_CHECK(a.input.defined(),
                  "regops.cross_entropy: double backward needs the logits, whose memory "
                  "inplace_backward=True gave to their gradient");
      const variable_list gradients = composite_gradients(a, grad_loss, grad_lse);
      return {gradients[0], gradients[1], Tensor()};
    }
    if (saved[kGradient].defined() && !grad_lse.defined()) {
      return {scaled(saved[kGradient], grad_loss), Tensor(), Tensor()};
    }
    if (a.inplace_backward) {
      regops::backward(a, grad_loss.defined() ? OptionalTensor(grad_loss) : std::nullopt,
                       grad_lse.defined() ? OptionalTensor(grad_lse) : std::nullopt, a.input,
                       Tensor());
      return {take_memory(a.input), Tensor(), Tensor()};
    }
    const bool target_gradient = context->needs_input_grad(1);
    const auto [gradient, of_target] = call_backward(a, grad_loss, grad_lse, target_gradient);
    return {gradient, target_gradient ? of_target : Tensor(), Tensor()};
  }
};

LossAndLse cross_entropy_autograd(const CrossEntropyArguments& a) {
  const bool needs_node =
      at::GradMode::is_enabled() && (a.input.requires_grad() || a.target.requires_grad());
  if (needs_node) {
    const variable_list outputs = CrossEntropyFunction::apply(a.input, a.target, a);
    return {outputs[0], outputs[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward(a);
}

}  // namespace

void check_cross_entropy_eager(const CrossEntropyArguments& a) { check_cross_entropy(kName, a); }

std::tuple<Tensor, Tensor> cross_entropy_eager(const CrossEntropyArguments& a,
                                               const std::optional<std::string>& check) {
  if (check) {
    TORCH_CHECK_VALUE(*check == "sync",
                      "regops.cross_entropy: expected check None or \"sync\", got \"", *check,
                      "\"");
    check_targets(kName, a, check_cross_entropy(kName, a));
  }
  return call_forward(a);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  const std::string arguments = REGOPS_CROSS_ENTROPY_SCHEMA;
  const auto define = [&](const std::string& name, const std::string& more,
                          const std::string& result) {
    m.def((name + "(" + arguments + more + ") -> " + result).c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("cross_entropy", "", "(Tensor, Tensor)");
  define("cross_entropy_with_gradient", "", "(Tensor, Tensor, Tensor)");
  define("cross_entropy_backward", ", Tensor? grad_loss, Tensor? grad_lse, bool target_gradient",
         "(Tensor, Tensor)");
  define("cross_entropy_composite", "", "(Tensor, Tensor)");  // implemented in Python
}

#define REGOPS_CROSS_ENTROPY_KERNELS(device)                                              \
  TORCH_LIBRARY_IMPL(regops, device, m) {                                                 \
    m.impl("cross_entropy", &Unpacked<&cross_entropy>::call);                             \
    m.impl("cross_entropy_with_gradient", &Unpacked<&cross_entropy_with_gradient>::call); \
    m.impl("cross_entropy_backward", &Unpacked<&cross_entropy_backward>::call);           \
  }

REGOPS_CROSS_ENTROPY_KERNELS(CPU)
#ifdef REGOPS_WITH_CUDA
REGOPS_CROSS_ENTROPY_KERNELS(CUDA)
#endif
#undef REGOPS_CROSS_ENTROPY_KERNELS

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("cross_entropy", &Unpacked<&cross_entropy_meta>::call);
  m.impl("cross_entropy_with_gradient", &Unpacked<&cross_entropy_with_gradient_meta>::call);
  m.impl("cross_entropy_backward", &Unpacked<&cross_entropy_backward_meta>::call);
}

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("cross_entropy", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("cross_entropy", &Unpacked<&cross_entropy_autograd>::call);
}

}  // namespace regops
