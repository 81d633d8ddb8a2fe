// regops::dropconnect_linear and its backward: y = s x (M o W)^T + b, with M from the key.
//
// Pure functions of their arguments: masks are made again in backward, and the input, the weight
// and 16 bytes of key are all that is saved for it. Backward's own derivative is made of the same
// two ops, so any number of derivatives needs no third.
#include "ops/dropconnect_linear.h"

#include <array>

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/arguments.h"
#include "ops/dropconnect_products.h"
#include "ops/output.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;

namespace {

constexpr const char* kName = "dropconnect_linear";

using OutputMask = std::array<bool, 3>;  // whether gradients of input, weight, bias are wanted
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// ---- the contract -------------------------------------------------------------------------------

bool is_per_sample(std::string_view mask) {
  TORCH_CHECK_VALUE(mask == "batch" || mask == "sample", "regops.", kName,
                    ": expected mask 'batch' or 'sample', got '", mask, "'");
  return mask == "sample";
}

void check(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
           const Tensor& key, std::string_view mask) {
  check_p(kName, p);
  is_per_sample(mask);
  check_linear(kName, input, weight, bias);
  check_key(kName, key, input);
}

void check_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  TORCH_CHECK(grad_output.sym_sizes() == shape_of_rows(input, weight.sym_size(0)), "regops.", kName,
              ": expected grad_output of shape ", shape_of_rows(input, weight.sym_size(0)),
              ", got ", grad_output.sym_sizes());
  TORCH_CHECK(
      grad_output.scalar_type() == input.scalar_type() && grad_output.device() == input.device(),
      "regops.", kName, ": expected grad_output of the input's dtype and device, got ",
      grad_output.dtype(), " on ", grad_output.device(), " and ", input.dtype(), " on ",
      input.device());
}

// ---- devices ------------------------------------------------------------------------------------

// torch's own products, and no autocast, below this op's.
struct Below {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  c10::DeviceGuard device;
  explicit Below(const Tensor& tensor) : device(tensor.device()) {}
};

// s M o b, of shape (out_features) or (rows, out_features).
Tensor dropped_bias(const Tensor& bias, int64_t rows, const DropConnectWeights& w) {
  const Tensor all = w.per_sample ? bias.expand({rows, bias.size(0)}) : bias;
  const Tensor kept = all.clone(at::MemoryFormat::Contiguous);
  drop(kept, kDropConnectBiasIndex, w.rule, w.key);
  return kept.mul_(w.rule.scale_f64);
}

Tensor dropconnect_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          double p, const Tensor& key, std::string_view mask, bool drop_bias) {
  check(input, weight, bias, p, key, mask);
  const Below below(input);
  const Tensor x = rows_of(input);
  const Tensor output = with_large_pages(at::empty({x.size(0), weight.size(0)}, input.options()));
  const Tensor result = output.view_symint(shape_of_rows(input, weight.size(0)));
  if (output.numel() == 0) return result;
  if (p == 0.0 || p == 1.0 || x.size(1) == 0) {  // nothing to mask
    Tensor added = bias ? *bias : Tensor();
    if (bias && drop_bias && p == 1.0) added = Tensor();
    if (bias && drop_bias && p < 1.0 && p > 0.0) {
      added = dropped_bias(*bias, x.size(0),
                           {weight, dropout_rule(p), key.contiguous(), is_per_sample(mask)});
    }
    added.defined() ? output.copy_(added) : output.zero_();
    if (p == 0.0) output.addmm_(x, weight.t());
    return result;
  }
  const DropConnectWeights w = {weight, dropout_rule(p), key.contiguous(), is_per_sample(mask)};
  Tensor added;
  if (bias) added = drop_bias ? dropped_bias(*bias, x.size(0), w) : *bias;
  dropconnect_output(w, x, added, output);
  return result;
}

Tensor empty_gradient(const Tensor& like, bool wanted) {
  return wanted ? at::empty_symint(like.sym_sizes(), like.options())
                : at::empty({0}, like.options());
}

Gradients empty_gradients(const Tensor& input, const Tensor& weight, OutputMask wanted) {
  const Tensor bias = weight.new_empty_symint({weight.sym_size(0)});
  return {empty_gradient(input, wanted[0]), empty_gradient(weight, wanted[1]),
          empty_gradient(bias, wanted[2])};
}

// db = s sum_i M[i] o dy[i]
void bias_gradient(const DropConnectWeights& w, const Tensor& dy, bool drop_bias,
                   const Tensor& gradient) {
  Tensor result = gradient;
  if (!drop_bias) {
    at::sum_out(result, dy, 0);
    return;
  }
  const Tensor kept = w.per_sample ? dy.clone(at::MemoryFormat::Contiguous) : dy;
  if (w.per_sample) drop(kept, kDropConnectBiasIndex, w.rule, w.key);
  const Tensor sum =
      kept.sum(0, /*keepdim=*/false, at::promote_types(dy.scalar_type(), at::kFloat));
  if (!w.per_sample) drop(sum, kDropConnectBiasIndex, w.rule, w.key);
  result.copy_(sum.mul_(w.rule.scale_f64));
}

Gradients dropconnect_linear_backward(const Tensor& grad_output, const Tensor& input,
                                      const Tensor& weight, double p, const Tensor& key,
                                      std::string_view mask, bool drop_bias, OutputMask wanted) {
  check(input, weight, std::nullopt, p, key, mask);
  check_gradient(grad_output, input, weight);
  const Below below(input);
  const Gradients gradients = empty_gradients(input, weight, wanted);
  const auto& [of_input, of_weight, of_bias] = gradients;
  for (const Tensor& gradient : {of_input, of_weight}) with_large_pages(gradient);
  const Tensor x = rows_of(input), dy = rows_of(grad_output);
  const Tensor dx = wanted[0] ? rows_of(of_input) : Tensor();
  const Tensor dw = wanted[1] ? of_weight : Tensor();
  DropConnectWeights w = {weight, {}, key.contiguous(), is_per_sample(mask)};
  if (p > 0.0 && p < 1.0) w.rule = dropout_rule(p);

  if (dy.numel() == 0 || x.size(1) == 0 || p == 1.0) {
    if (dx.defined()) dx.zero_();
    if (dw.defined()) dw.zero_();
  } else if (p == 0.0) {
    if (dx.defined()) at::mm_out(const_cast<Tensor&>(dx), dy, weight);
    if (dw.defined()) at::mm_out(const_cast<Tensor&>(dw), dy.t(), x);
  } else {
    dropconnect_gradients(w, x, dy, dx, dw);
  }
  if (wanted[2]) {
    if (p == 1.0 && drop_bias) {
      of_bias.zero_();
    } else {
      bias_gradient(w, dy, drop_bias && p > 0.0, of_bias);
    }
  }
  return gradients;
}

Tensor dropconnect_linear_meta(const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, double p, const Tensor& key,
                               std::string_view mask, bool) {
  check(input, weight, bias, p, key, mask);
  return input.new_empty_symint(shape_of_rows(input, weight.sym_size(0)));
}

Gradients dropconnect_linear_backward_meta(const Tensor& grad_output, const Tensor& input,
                                           const Tensor& weight, double p, const Tensor& key,
                                           std::string_view mask, bool, OutputMask wanted) {
  check(input, weight, std::nullopt, p, key, mask);
  check_gradient(grad_output, input, weight);
  return empty_gradients(input, weight, wanted);
}

// ---- autograd -----------------------------------------------------------------------------------

Tensor call_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                    const Tensor& key, std::string_view mask, bool drop_bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_linear", "")
                             .typed<decltype(dropconnect_linear)>();
  return op.call(input, weight, bias, p, key, mask, drop_bias);
}

Gradients call_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                        double p, const Tensor& key, std::string_view mask, bool drop_bias,
                        OutputMask wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_linear_backward", "")
                             .typed<decltype(dropconnect_linear_backward)>();
  return op.call(grad_output, input, weight, p, key, mask, drop_bias, wanted);
}

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

bool needs_node(std::initializer_list<Tensor> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& tensor : tensors) {
    if (tensor.defined() && tensor.requires_grad()) return true;
  }
  return false;
}

struct DropConnectLinearFunction : torch::autograd::Function<DropConnectLinearFunction> {
  // The bias comes last, since variables are counted without one that is absent.
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& weight,
                        const Tensor& key, const OptionalTensor& bias, const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, weight, key});
    options.save(context);
    context->saved_data["bias"] = bias.has_value();
    return call_forward(input, weight, bias, options.p, key, options.mask, options.drop_bias);
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
        call_backward(upstream[0], saved[0], saved[1], options.p, saved[2], options.mask,
                      options.drop_bias, wanted);
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
    const auto [of_input, of_weight, of_bias] = call_backward(
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
      if (ux.defined()) add(call_forward(ux, weight, std::nullopt, o.p, key, o.mask, o.drop_bias));
      if (uw.defined()) {
        add(call_forward(x, uw, optional(ub), o.p, key, o.mask, o.drop_bias));
      } else if (ub.defined()) {  // a layer of no weights
        add(call_forward(x.narrow(-1, 0, 0), weight.narrow(1, 0, 0), ub, o.p, key, o.mask,
                         o.drop_bias));
      }
    }
    if (context->needs_input_grad(1) && uw.defined()) {
      result[1] = std::get<0>(
          call_backward(dy, x, uw, o.p, key, o.mask, o.drop_bias, {true, false, false}));
    }
    if (context->needs_input_grad(2) && ux.defined()) {
      result[2] = std::get<1>(
          call_backward(dy, ux, weight, o.p, key, o.mask, o.drop_bias, {false, true, false}));
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
  return call_forward(input, weight, bias, p, key, mask, drop_bias);
}

Gradients dropconnect_linear_backward_autograd(const Tensor& grad_output, const Tensor& input,
                                               const Tensor& weight, double p, const Tensor& key,
                                               std::string_view mask, bool drop_bias,
                                               OutputMask wanted) {
  if (needs_node({grad_output, input, weight})) {
    const variable_list gradients = DropConnectBackwardFunction::apply(
        grad_output, input, weight, key, Options{p, std::string(mask), drop_bias}, wanted);
    return {gradients[0], gradients[1], gradients[2]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_backward(grad_output, input, weight, p, key, mask, drop_bias, wanted);
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
  return call_forward(cast(input), cast(weight), bias ? OptionalTensor(cast(*bias)) : std::nullopt,
                      p, key, mask, drop_bias);
}

}  // namespace

void check_linear_shapes(const char* op, const Tensor& input, const Tensor& weight,
                         const OptionalTensor& bias) {
  TORCH_CHECK(weight.dim() == 2, "regops.", op,
              ": expected weight of shape (out_features, in_features), got ", weight.sym_sizes());
  TORCH_CHECK(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1), "regops.", op,
              ": expected input of shape (..., ", weight.sym_size(1), ") beside weight of shape ",
              weight.sym_sizes(), ", got ", input.sym_sizes());
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0)), "regops.", op,
              ": expected bias of shape [", weight.sym_size(0), "] beside weight of shape ",
              weight.sym_sizes(), ", got ", bias ? bias->sym_sizes() : c10::SymIntArrayRef());
}

void check_linear(const char* op, const Tensor& input, const Tensor& weight,
                  const OptionalTensor& bias) {
  check_linear_shapes(op, input, weight, bias);
  check_dtype(op, "input", input);
  check_strided(op, "input", input);
  const auto alike = [&](const char* name, const Tensor& tensor) {
    check_strided(op, name, tensor);
    TORCH_CHECK(tensor.scalar_type() == input.scalar_type() && tensor.device() == input.device(),
                "regops.", op, ": expected ", name, " of the input's dtype and device, got ",
                tensor.dtype(), " on ", tensor.device(), " beside input ", input.dtype(), " on ",
                input.device());
  };
  alike("weight", weight);
  if (bias) alike("bias", *bias);
}

c10::SymDimVector shape_of_rows(const Tensor& input, const c10::SymInt& features) {
  c10::SymDimVector shape(input.sym_sizes().begin(), input.sym_sizes().end());
  shape.back() = features;
  return shape;
}

// Symbolic sizes, since compilers trace the moments' backward: a number would be one graph a batch.
Tensor rows_of(const Tensor& input) {
  c10::SymInt rows = 1;
  for (const c10::SymInt& size : input.sym_sizes().slice(0, input.dim() - 1)) rows *= size;
  return input.reshape_symint({rows, input.sym_size(-1)});
}

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
  return call_forward(input, weight, bias, p, used, mask, drop_bias);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def(
      "dropconnect_linear(Tensor input, Tensor weight, Tensor? bias, float p, Tensor key, "
      "str mask, bool drop_bias) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "dropconnect_linear_backward(Tensor grad_output, Tensor input, Tensor weight, float p, "
      "Tensor key, str mask, bool drop_bias, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

#define REGOPS_DROPCONNECT_KERNELS(device)                               \
  TORCH_LIBRARY_IMPL(regops, device, m) {                                \
    m.impl("dropconnect_linear", &dropconnect_linear);                   \
    m.impl("dropconnect_linear_backward", &dropconnect_linear_backward); \
  }

REGOPS_DROPCONNECT_KERNELS(CPU)
#ifdef REGOPS_WITH_CUDA
REGOPS_DROPCONNECT_KERNELS(CUDA)
#endif
#undef REGOPS_DROPCONNECT_KERNELS

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("dropconnect_linear", &dropconnect_linear_meta);
  m.impl("dropconnect_linear_backward", &dropconnect_linear_backward_meta);
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
