// Derivatives of regops::dropconnect_linear, autocast, and its entry from Python.
//
// Masks are made again in backward: input, weight and 16 bytes of key are all that is saved for it.
// Backward's own derivative is made of the same two ops, so any number of derivatives needs no
// third.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/arguments.h"
#include "ops/dropconnect_linear.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;

Tensor dropconnect_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          double p, const Tensor& key, std::string_view mask, bool drop_bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_linear", "")
                             .typed<decltype(dropconnect_linear)>();
  return op.call(input, weight, bias, p, key, mask, drop_bias);
}

LinearGradients dropconnect_linear_backward(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& weight, double p, const Tensor& key,
                                            std::string_view mask, bool drop_bias,
                                            OutputMask wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_linear_backward", "")
                             .typed<decltype(dropconnect_linear_backward)>();
  return op.call(grad_output, input, weight, p, key, mask, drop_bias, wanted);
}

Tensor dropconnect_linear_tensor_p(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, const Tensor& p, const Tensor& key,
                                   std::string_view mask, bool drop_bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_linear", "tensor_p")
                             .typed<decltype(dropconnect_linear_tensor_p)>();
  return op.call(input, weight, bias, p, key, mask, drop_bias);
}

LinearGradients dropconnect_linear_backward_tensor_p(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& weight, const Tensor& p,
                                                     const Tensor& key, std::string_view mask,
                                                     bool drop_bias, OutputMask wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_linear_backward", "tensor_p")
                             .typed<decltype(dropconnect_linear_backward_tensor_p)>();
  return op.call(grad_output, input, weight, p, key, mask, drop_bias, wanted);
}

// Forward-mode gradients too, for which the Functions raise.
bool needs_node(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    if ((at::GradMode::is_enabled() && tensor.requires_grad()) || tensor._fw_grad(0).defined()) {
      return true;
    }
  }
  return false;
}

namespace {

constexpr const char* kName = "dropconnect_linear";

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What no derivative is taken of, and the two ops with it.
struct Options {
  double p;
  Tensor tensor_p;  // in place of p, if it is defined
  Tensor key;
  std::string mask;
  bool drop_bias;

  // With the tensors of which derivatives are taken.
  void save(AutogradContext* context, variable_list tensors) const {
    tensors.insert(tensors.end(), {tensor_p, key});
    context->save_for_backward(std::move(tensors));
    context->saved_data["p"] = p;
    context->saved_data["mask"] = mask;
    context->saved_data["drop_bias"] = drop_bias;
  }
  static Options saved(AutogradContext* context, const variable_list& tensors) {
    return {context->saved_data["p"].toDouble(), tensors.end()[-2], tensors.end()[-1],
            context->saved_data["mask"].toStringRef(), context->saved_data["drop_bias"].toBool()};
  }

  Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const {
    if (tensor_p.defined()) {
      return dropconnect_linear_tensor_p(input, weight, bias, tensor_p, key, mask, drop_bias);
    }
    return dropconnect_linear(input, weight, bias, p, key, mask, drop_bias);
  }
  LinearGradients gradients(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                            OutputMask wanted) const {
    if (tensor_p.defined()) {
      return dropconnect_linear_backward_tensor_p(grad_output, input, weight, tensor_p, key, mask,
                                                  drop_bias, wanted);
    }
    return dropconnect_linear_backward(grad_output, input, weight, p, key, mask, drop_bias, wanted);
  }
};

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

struct DropConnectLinearFunction : torch::autograd::Function<DropConnectLinearFunction> {
  // The bias comes last, since variables are counted without one that is absent.
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias, const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    options.save(context, {input, weight});
    context->saved_data["bias"] = bias.has_value();
    return options.linear(input, weight, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    variable_list result(4);
    if (!upstream[0].defined()) return result;
    const variable_list saved = context->get_saved_variables();
    const OutputMask wanted = {
        context->needs_input_grad(0), context->needs_input_grad(1),
        context->saved_data["bias"].toBool() && context->needs_input_grad(2)};
    const auto [of_input, of_weight, of_bias] =
        Options::saved(context, saved).gradients(upstream[0], saved[0], saved[1], wanted);
    if (wanted[0]) result[0] = of_input;
    if (wanted[1]) result[1] = of_weight;
    if (wanted[2]) result[2] = of_bias;
    return result;
  }
};

// Backward is linear in each of dy, x and W: with upstream gradients ux, uW, ub of dx, dW, db,
//   d dy = s ux (M o W)^T + s x (M o uW)^T + s M o ub,
//   d x = s dy (M o uW),  d W = s M o (dy^T ux).
struct DropConnectBackwardFunction : torch::autograd::Function<DropConnectBackwardFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& grad_output,
                               const Tensor& input, const Tensor& weight, const Options& options,
                               OutputMask wanted) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->set_materialize_grads(false);
    options.save(context, {grad_output, input, weight});
    const auto [of_input, of_weight, of_bias] =
        options.gradients(grad_output, input, weight, wanted);
    variable_list unwanted;
    if (!wanted[0]) unwanted.push_back(of_input);
    if (!wanted[1]) unwanted.push_back(of_weight);
    if (!wanted[2]) unwanted.push_back(of_bias);
    context->mark_non_differentiable(unwanted);
    return {of_input, of_weight, of_bias};
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    const Tensor &ux = upstream[0], &uw = upstream[1], &ub = upstream[2];
    const variable_list saved = context->get_saved_variables();
    const Tensor &dy = saved[0], &x = saved[1], &weight = saved[2];
    const Options options = Options::saved(context, saved);
    variable_list result(5);
    const auto add = [&result](const Tensor& term) {
      result[0] = result[0].defined() ? result[0] + term : term;
    };
    if (context->needs_input_grad(0)) {
      if (ux.defined()) add(options.linear(ux, weight, std::nullopt));
      if (uw.defined()) {
        add(options.linear(x, uw, optional(ub)));
      } else if (ub.defined()) {  // a layer of no weights
        add(options.linear(x.narrow(-1, 0, 0), weight.narrow(1, 0, 0), ub));
      }
    }
    if (context->needs_input_grad(1) && uw.defined()) {
      result[1] = std::get<0>(options.gradients(dy, x, uw, {true, false, false}));
    }
    if (context->needs_input_grad(2) && ux.defined()) {
      result[2] = std::get<1>(options.gradients(dy, ux, weight, {false, true, false}));
    }
    return result;
  }
};

Tensor linear_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const Options& options) {
  if (needs_node({input, weight, bias.value_or(Tensor())})) {
    return DropConnectLinearFunction::apply(input, weight, bias, options);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return options.linear(input, weight, bias);
}

LinearGradients gradients_autograd(const Tensor& grad_output, const Tensor& input,
                                   const Tensor& weight, const Options& options,
                                   OutputMask wanted) {
  if (needs_node({grad_output, input, weight})) {
    const variable_list gradients =
        DropConnectBackwardFunction::apply(grad_output, input, weight, options, wanted);
    return {gradients[0], gradients[1], gradients[2]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return options.gradients(grad_output, input, weight, wanted);
}

Tensor dropconnect_linear_autograd(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, double p, const Tensor& key,
                                   std::string_view mask, bool drop_bias) {
  return linear_autograd(input, weight, bias, {p, Tensor(), key, std::string(mask), drop_bias});
}

Tensor dropconnect_linear_tensor_p_autograd(const Tensor& input, const Tensor& weight,
                                            const OptionalTensor& bias, const Tensor& p,
                                            const Tensor& key, std::string_view mask,
                                            bool drop_bias) {
  check_tensor_p(kName, p);
  return linear_autograd(input, weight, bias, {0.0, p, key, std::string(mask), drop_bias});
}

LinearGradients dropconnect_linear_backward_autograd(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& weight, double p,
                                                     const Tensor& key, std::string_view mask,
                                                     bool drop_bias, OutputMask wanted) {
  return gradients_autograd(grad_output, input, weight,
                            {p, Tensor(), key, std::string(mask), drop_bias}, wanted);
}

LinearGradients dropconnect_linear_backward_tensor_p_autograd(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& p,
    const Tensor& key, std::string_view mask, bool drop_bias, OutputMask wanted) {
  return gradients_autograd(grad_output, input, weight, {0.0, p, key, std::string(mask), drop_bias},
                            wanted);
}

// ---- autocast: as torch does for linear ---------------------------------------------------------

template <c10::DeviceType device, auto op, class P>
Tensor linear_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, P p,
                       const Tensor& key, std::string_view mask, bool drop_bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [](const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  return op(cast(input), cast(weight), bias ? OptionalTensor(cast(*bias)) : std::nullopt, p, key,
            mask, drop_bias);
}

}  // namespace

void check_dropconnect_linear_eager(const Tensor& input, const Tensor& weight,
                                    const OptionalTensor& bias, double p, bool training,
                                    std::string_view mask, const OptionalTensor& key,
                                    const std::optional<at::Generator>& generator) {
  check_p(kName, p);
  is_per_sample(mask);
  TORCH_CHECK_VALUE(!key || !generator, "regops.", kName,
                    ": expected key or generator, got both: a key needs no generator");
  if (key) check_key(kName, *key, input);
  const c10::DeviceType device = input.device().type();
  const bool casts = (device == at::kCPU || device == at::kCUDA) &&  // others are not known to ask
                     at::autocast::is_autocast_enabled(device);
  // torch's own layer takes more types, and autocast makes one of several.
  if (!training || p == 0.0 || casts) {
    check_linear_shapes(kName, input, weight, bias);
  } else {
    check_linear(kName, input, weight, bias);
  }
}

Tensor dropconnect_linear_eager(const Tensor& input, const Tensor& weight,
                                const OptionalTensor& bias, double p, bool training,
                                std::string_view mask, bool drop_bias, const OptionalTensor& key,
                                const std::optional<at::Generator>& generator) {
  // Before a key is drawn: a call that fails leaves the generator as it was.
  check_dropconnect_linear_eager(input, weight, bias, p, training, mask, key, generator);
  if (!training || p == 0.0) return at::linear(input, weight, bias);
  // p = 1 drops all: no random number is needed, and as in dropout none is drawn.
  const Tensor used = key        ? *key
                      : p == 1.0 ? at::zeros({2}, input.options().dtype(at::kLong))
                                 : new_eager_key(input, generator);
  return dropconnect_linear(input, weight, bias, p, used, mask, drop_bias);
}

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  for (const char* op : {"dropconnect_linear", "dropconnect_linear.tensor_p",
                         "dropconnect_linear_backward", "dropconnect_linear_backward.tensor_p"}) {
    m.impl(op, torch::CppFunction::makeFallthrough());
  }
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("dropconnect_linear", &dropconnect_linear_autograd);
  m.impl("dropconnect_linear_backward", &dropconnect_linear_backward_autograd);
  m.impl("dropconnect_linear.tensor_p", &dropconnect_linear_tensor_p_autograd);
  m.impl("dropconnect_linear_backward.tensor_p", &dropconnect_linear_backward_tensor_p_autograd);
}

#define REGOPS_DROPCONNECT_AUTOCAST(key, device)                                         \
  TORCH_LIBRARY_IMPL(regops, key, m) {                                                   \
    m.impl("dropconnect_linear", &linear_autocast<device, &dropconnect_linear, double>); \
    m.impl("dropconnect_linear.tensor_p",                                                \
           &linear_autocast<device, &dropconnect_linear_tensor_p, const Tensor&>);       \
  }

REGOPS_DROPCONNECT_AUTOCAST(AutocastCPU, at::kCPU)
REGOPS_DROPCONNECT_AUTOCAST(AutocastCUDA, at::kCUDA)
#undef REGOPS_DROPCONNECT_AUTOCAST

}  // namespace regops
