// regops::dropconnect_moments: mean and variance of a DropConnect layer's outputs over its masks,
//   mean = x W^T + b,    variance = v x^2 (W^2)^T,  v = p / (1 - p), and v b^2 more with drop_bias.
//
// A panel of weights serves both products: it is read from memory once and its squares are made in
// the cache. Squares and variance are float32 at least, for float16 has no room for either.
#include <algorithm>

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "math/dropconnect_linear.h"
#include "ops/arguments.h"
#include "ops/device.h"
#include "ops/dropconnect_linear.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/dropconnect_linear.h"
#endif

namespace regops {

using at::Tensor;

namespace {

constexpr const char* kName = "dropconnect_moments";

using Moments = std::tuple<Tensor, Tensor>;

at::ScalarType real_of(const Tensor& input) {
  return at::promote_types(input.scalar_type(), at::kFloat);
}

void check(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p) {
  check_p(kName, p);
  TORCH_CHECK_VALUE(p < 1.0, "regops.", kName,
                    ": expected p in [0, 1), got 1: of weights that are all dropped, 1 / (1 - p) "
                    "has no variance");
  check_linear(kName, input, weight, bias);
}

// p / (1 - p) for the p in force.
double odds(double p) { return p == 0.0 ? 0.0 : dropconnect_variance(dropout_rule(p)); }

// ---- devices ------------------------------------------------------------------------------------

// Weights and their squares of a panel fit into a core's cache, or on CUDA into that of all.
int64_t panel_rows(const Tensor& weight) {
  const int64_t bytes = weight.is_cuda() ? int64_t{16} << 20 : int64_t{2} << 20;
  const int64_t row = std::max<int64_t>(weight.size(1) * weight.element_size(), 1);
  return std::min(std::max<int64_t>(bytes / row, 64), weight.size(0));
}

#ifdef REGOPS_WITH_CUDA
void run_cuda(const Tensor& input, const Tensor& weight, double p, const Tensor& mean,
              const Tensor& variance) {
  const Tensor x = input.contiguous(), w = weight.contiguous();
  DropConnectCall call = {dtype_of(x),        x.size(0),          x.size(1), w.size(0),
                          x.const_data_ptr(), w.const_data_ptr(), nullptr,   dropout_rule(p)};
  check_launch(kName,
               regops_dropconnect_moments_cuda(&call, mean.mutable_data_ptr(),
                                               variance.mutable_data_ptr(), current_stream(x)));
}
#endif

// Adds both moments of the products to what is there.
void add_moments(const Tensor& x, const Tensor& weight, double p, const Tensor& mean,
                 const Tensor& variance) {
#ifdef REGOPS_WITH_CUDA
  if (x.is_cuda() && x.size(0) <= kDropConnectFewSamples && p > 0.0) {
    run_cuda(x, weight, p, mean, variance);
    return;
  }
#endif
  const at::ScalarType real = real_of(x);
  const Tensor squared = x.to(real).square();
  const int64_t lines = panel_rows(weight);
  const Tensor buffer = at::empty({lines, weight.size(1)}, squared.options());
  for (int64_t row = 0; row < weight.size(0); row += lines) {
    const int64_t rows = std::min(lines, weight.size(0) - row);
    const Tensor panel = weight.narrow(0, row, rows);
    Tensor squares = buffer.narrow(0, 0, rows);
    if (panel.scalar_type() == real) {
      at::square_out(squares, panel);
    } else {
      squares.copy_(panel).square_();
    }
    mean.narrow(1, row, rows).addmm_(x, panel.t());
    variance.narrow(1, row, rows).addmm_(squared, squares.t(), 1, odds(p));
  }
}

Moments dropconnect_moments_kernel(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, double p, bool drop_bias) {
  check(input, weight, bias, p);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const c10::DeviceGuard guard(input.device());
  const Tensor x = rows_of(input);
  const auto reals = input.options().dtype(real_of(input));
  const Tensor mean = at::zeros({x.size(0), weight.size(0)}, input.options());
  const Tensor variance = at::zeros(mean.sizes(), reals);
  if (bias) mean.copy_(*bias);
  if (bias && drop_bias) variance.copy_(bias->to(reals.dtype()).square() * odds(p));
  if (mean.numel() > 0 && x.size(1) > 0) add_moments(x, weight, p, mean, variance);
  const auto shape = shape_of_rows(input, weight.size(0));
  return {mean.view_symint(shape), variance.view_symint(shape)};
}

Moments dropconnect_moments_meta(const Tensor& input, const Tensor& weight,
                                 const OptionalTensor& bias, double p, bool) {
  check(input, weight, bias, p);
  const auto shape = shape_of_rows(input, weight.sym_size(0));
  return {input.new_empty_symint(shape),
          at::empty_symint(shape, input.options().dtype(real_of(input)))};
}

// ---- autograd -----------------------------------------------------------------------------------

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Backward is torch's own ops: d variance costs products of squares, and no mask is in either.
struct MomentsFunction : torch::autograd::Function<MomentsFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, double p, bool drop_bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->set_materialize_grads(false);
    context->save_for_backward({input, weight, bias.value_or(Tensor())});
    context->saved_data["p"] = p;
    context->saved_data["drop_bias"] = drop_bias;
    const auto [mean, variance] = dropconnect_moments(input, weight, bias, p, drop_bias);
    return {mean, variance};
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2];
    const double v = odds(context->saved_data["p"].toDouble());
    const at::ScalarType type = input.scalar_type(), real = real_of(input);
    const bool of_bias = bias.defined() && context->needs_input_grad(2);
    variable_list result(5);
    const auto add = [&result](int i, const Tensor& term) {
      result[i] = result[i].defined() ? result[i] + term : term;
    };
    if (upstream[0].defined()) {
      const Tensor g = rows_of(upstream[0]);
      if (context->needs_input_grad(0)) add(0, g.mm(weight).view_as(input));
      if (context->needs_input_grad(1)) add(1, g.t().mm(rows_of(input)));
      if (of_bias) add(2, g.sum(0));
    }
    if (upstream[1].defined()) {
      const Tensor g = rows_of(upstream[1]) * (2.0 * v);
      const Tensor x = rows_of(input).to(real), w = weight.to(real);
      if (context->needs_input_grad(0)) {
        add(0, (x * g.mm(w.square())).to(type).view_as(input));
      }
      if (context->needs_input_grad(1)) add(1, (w * g.t().mm(x.square())).to(type));
      if (of_bias && context->saved_data["drop_bias"].toBool()) {
        add(2, (bias.to(real) * g.sum(0)).to(type));
      }
    }
    return result;
  }
};

Moments dropconnect_moments_autograd(const Tensor& input, const Tensor& weight,
                                     const OptionalTensor& bias, double p, bool drop_bias) {
  if (needs_node({input, weight, bias.value_or(Tensor())})) {
    const variable_list moments = MomentsFunction::apply(input, weight, bias, p, drop_bias);
    return {moments[0], moments[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return dropconnect_moments(input, weight, bias, p, drop_bias);
}

template <c10::DeviceType device>
Moments dropconnect_moments_autocast(const Tensor& input, const Tensor& weight,
                                     const OptionalTensor& bias, double p, bool drop_bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [](const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  return dropconnect_moments(cast(input), cast(weight),
                             bias ? OptionalTensor(cast(*bias)) : std::nullopt, p, drop_bias);
}

}  // namespace

std::tuple<Tensor, Tensor> dropconnect_moments(const Tensor& input, const Tensor& weight,
                                               const OptionalTensor& bias, double p,
                                               bool drop_bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropconnect_moments", "")
                             .typed<decltype(dropconnect_moments)>();
  check_strided(kName, "input", input);  // for which the dispatcher would list its backends
  check_strided(kName, "weight", weight);
  return op.call(input, weight, bias, p, drop_bias);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def(
      "dropconnect_moments(Tensor input, Tensor weight, Tensor? bias, float p, bool drop_bias) -> "
      "(Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) { m.impl("dropconnect_moments", &dropconnect_moments_kernel); }

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) { m.impl("dropconnect_moments", &dropconnect_moments_kernel); }
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) { m.impl("dropconnect_moments", &dropconnect_moments_meta); }

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("dropconnect_moments", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("dropconnect_moments", &dropconnect_moments_autograd);
}

TORCH_LIBRARY_IMPL(regops, AutocastCPU, m) {
  m.impl("dropconnect_moments", &dropconnect_moments_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(regops, AutocastCUDA, m) {
  m.impl("dropconnect_moments", &dropconnect_moments_autocast<at::kCUDA>);
}

}  // namespace regops
