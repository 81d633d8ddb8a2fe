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

// What both functions keep besides tensors.
struct Options {
  double p;
  std::string mask;
  bool drop_bias;

  void save(AutogradContext* context) const {
    context->saved_data["p"] = p;
    context->saved_data["mask"] = mask;
    context->saved_data["drop_bias"] = drop_bias;
  }
  static Options saved(AutogradContext* context) {
    return {context->saved_data["p"].toDouble(), context->saved_data["mask"].toStringRef(),
            context->saved_data["drop_bias"].toBool()};
  }
};

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

struct DropConnectLinearFunction : torch::autograd::Function<DropConnectLinearFunction> {
  // The bias comes last, since variables are counted without one that is absent.
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& weight,
                        const Tensor& key, const OptionalTensor& bias, const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, weight, key});
    options.save(context);
    context->saved_data["bias"] = bias.has_value();
    return dropconnect_linear(input, weight, bias, options.p, key, options.mask, options.drop_bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    variable_list result(5);
    if (!upstream[0].defined()) return result;
    const variable_list saved = context->get_saved_variables();
    const Options options = Options::saved(context);
    const OutputMask wanted = {
        context->needs_input_grad(0), context->needs_input_grad(1),
        context->saved_data["bias"].toBool() && context->needs_input_grad(3)};
    const auto [of_input, of_weight, of_bias] =
        dropconnect_linear_backward(upstream[0], saved[0], saved[1], options.p, saved[2],
                                    options.mask, options.drop_bias, wanted);
    if (wanted[0]) result[0] = of_input;
    if (wanted[1]) result[1] = of_weight;
    if (wanted[2]) result[3] = of_bias;
    return result;
  }
};

// Backward is linear in each of dy, x and W: with upstream gradients ux, uW, ub of dx, dW, db,
//   d dy = s ux (M o W)^T + s x (M o uW)^T + s M o ub,  d x = s dy (M o uW),  d W = s M o (dy^T
//   ux).
struct DropConnectBackwardFunction : torch::autograd::Function<DropConnectBackwardFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& grad_output,
                               const Tensor& input, const Tensor& weight, const Tensor& key,
                               const Options& options, OutputMask wanted) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->set_materialize_grads(false);
    context->save_for_backward({grad_output, input, weight, key});
    options.save(context);
    const auto [of_input, of_weight, of_bias] = dropconnect_linear_backward(
        grad_output, input, weight, options.p, key, options.mask, options.drop_bias, wanted);
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
    const Tensor &dy = saved[0], &x = saved[1], &weight = saved[2], &key = saved[3];
    const Options o = Options::saved(context);
    variable_list result(6);
    const auto add = [&result](const Tensor& term) {
      result[0] = result[0].defined() ? result[0] + term : term;
    };
    if (context->needs_input_grad(0)) {
      if (ux.defined())
        add(dropconnect_linear(ux, weight, std::nullopt, o.p, key, o.mask, o.drop_bias));
      if (uw.defined()) {
        add(dropconnect_linear(x, uw, optional(ub), o.p, key, o.mask, o.drop_bias));
      } else if (ub.defined()) {  // a layer of no weights
        add(dropconnect_linear(x.narrow(-1, 0, 0), weight.narrow(1, 0, 0), ub, o.p, key, o.mask,
                               o.drop_bias));
      }
    }
    if (context->needs_input_grad(1) && uw.defined()) {
      result[1] = std::get<0>(dropconnect_linear_backward(dy, x, uw, o.p, key, o.mask, o.drop_bias,
                                                          {true, false, false}));
    }
    if (context->needs_input_grad(2) && ux.defined()) {
      result[2] = std::get<1>(dropconnect_linear_backward(dy, ux, weight, o.p, key, o.mask,
                                                          o.drop_bias, {false, true, false}));
    }
    return result;
  }
};

Tensor dropconnect_linear_autograd(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, double p, const Tensor& key,
                                   std::string_view mask, bool drop_bias) {
  if (needs_node({input, weight, bias.value_or(Tensor())})) {
    return DropConnectLinearFunction::apply(input, weight, key, bias,
                                            Options{p, std::string(mask), drop_bias});
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return dropconnect_linear(input, weight, bias, p, key, mask, drop_bias);
}

LinearGradients dropconnect_linear_backward_autograd(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& weight, double p,
                                                     const Tensor& key, std::string_view mask,
                                                     bool drop_bias, OutputMask wanted) {
  if (needs_node({grad_output, input, weight})) {
    const variable_list gradients = DropConnectBackwardFunction::apply(
        grad_output, input, weight, key, Options{p, std::string(mask), drop_bias}, wanted);
    return {gradients[0], gradients[1], gradients[2]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return dropconnect_linear_backward(grad_output, input, weight, p, key, mask, drop_bias, wanted);
}

// ---- autocast: as torch does for linear ---------------------------------------------------------

template <c10::DeviceType device>
Tensor dropconnect_linear_autocast(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, double p, const Tensor& key,
                                   std::string_view mask, bool drop_bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [](const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  return dropconnect_linear(cast(input), cast(weight),
                            bias ? OptionalTensor(cast(*bias)) : std::nullopt, p, key, mask,
                            drop_bias);
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
  m.impl("dropconnect_linear", torch::CppFunction::makeFallthrough());
  m.impl("dropconnect_linear_backward", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("dropconnect_linear", &dropconnect_linear_autograd);
  m.impl("dropconnect_linear_backward", &dropconnect_linear_backward_autograd);
}

TORCH_LIBRARY_IMPL(regops, AutocastCPU, m) {
  m.impl("dropconnect_linear", &dropconnect_linear_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(regops, AutocastCUDA, m) {
  m.impl("dropconnect_linear", &dropconnect_linear_autocast<at::kCUDA>);
}

}  // namespace regops
