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
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/cross_entropy_autograd.h"
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
                   c10::SymIntArrayRef shape) {
  return at::empty_symint(shape, a.input.options().dtype(c.real));
}

Tensor empty_lse(const CrossEntropyArguments& a, const CrossEntropyContract& c) {
  return a.return_lse ? empty_reals(a, c, c.rows_shape) : empty_reals(a, c, {c10::SymInt(0)});
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
  return {empty_reals(a, c, rows ? c10::SymIntArrayRef(c.rows_shape) : c10::SymIntArrayRef()),
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

void check_gives_memory(const Tensor& input, const Tensor& target) {
  TORCH_CHECK(!input.is_leaf() && !(input.is_view() && input._base().is_leaf()),
              "regops.cross_entropy: expected input that is no leaf, nor a view of one, with "
              "inplace_backward=True: a leaf of shape ",
              input.is_leaf() ? input.sizes() : input._base().sizes(), " would lose its values");
  TORCH_CHECK_VALUE(!input.is_alias_of(target),
                    "regops.cross_entropy: expected target in memory of its own with "
                    "inplace_backward=True, got one in that of input");
  TORCH_CHECK_VALUE(input.storage().resizable(),
                    "regops.cross_entropy: expected input whose memory is torch's alone with "
                    "inplace_backward=True, got one shared with NumPy or another library");
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
  return op(a, optional(grad_loss), optional(grad_lse), target_gradient);
}

// The oracle, which is differentiable any number of times.
LossAndLse call_composite(const CrossEntropyArguments& a) {
  static const CrossEntropyOp<LossAndLse> op("regops::cross_entropy_composite");
  return op(a);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int kGradient = kSavedArguments;

bool may_be_read(const Tensor& upstream) { return !upstream.defined() || is_plain(upstream); }

struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  // `input` and `target` are those of the arguments, given apart for autograd to find.
  static variable_list forward(AutogradContext* context, const Tensor& input, const Tensor& target,
                               CrossEntropyArguments a) {
    a.inplace_backward = a.inplace_backward && is_plain(input) && input.requires_grad();
    if (a.inplace_backward) check_gives_memory(input, target);
    // A gradient through lse needs the logits.
    const bool ready =
        input.requires_grad() && is_gradient_ready(a) && !(a.inplace_backward && a.return_lse);
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
    variable_list saved = save_arguments(context, a);
    if (ready && a.inplace_backward) saved[kInput] = Tensor();  // the logits are no more
    saved.push_back(gradient);
    context->save_for_backward(saved);
    if (!a.return_lse) context->mark_non_differentiable({lse});
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
      CrossEntropyArguments apart = a;
      apart.input = on_its_own(a.input);
      apart.target = on_its_own(a.target);
      const auto [loss, lse] = call_composite(apart);
      return differentiable_gradients({loss, lse}, upstream, {apart.input, apart.target, Tensor()});
    }
    if (saved[kGradient].defined() && !grad_lse.defined()) {
      return {scaled_gradient(saved[kGradient], grad_loss), Tensor(), Tensor()};
    }
    const bool target_gradient = context->needs_input_grad(1);
    if (a.inplace_backward && may_be_read(grad_loss) && may_be_read(grad_lse)) {
      const Tensor of_target = target_gradient ? at::empty_like(a.target) : Tensor();
      regops::backward(a, optional(grad_loss), optional(grad_lse), a.input, of_target);
      return {take_memory(a.input), of_target, Tensor()};
    }
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
  const CrossEntropyContract c =
      check_cross_entropy(kName, a);  // also of inputs that no kernel takes
  if (is_check_asked_for(kName, check)) check_targets(kName, a, c);
  return call_forward(a);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  define_cross_entropy(m, "cross_entropy", "", "(Tensor, Tensor)");
  define_cross_entropy(m, "cross_entropy_with_gradient", "", "(Tensor, Tensor, Tensor)");
  define_cross_entropy(m, "cross_entropy_backward",
                       ", Tensor? grad_loss, Tensor? grad_lse, bool target_gradient",
                       "(Tensor, Tensor)");
  define_cross_entropy(m, "cross_entropy_composite", "",
                       "(Tensor, Tensor)");  // implemented in Python
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
