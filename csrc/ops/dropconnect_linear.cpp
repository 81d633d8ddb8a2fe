// regops::dropconnect_linear and its backward: y = s x (M o W)^T + b, with M from the key.
//
// Pure functions of their arguments. The products stand in dropconnect_products.cpp; here is what
// surrounds them: outputs, biases, and the p that drops all or nothing.
#include "ops/dropconnect_linear.h"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "ops/arguments.h"
#include "ops/dropconnect_products.h"
#include "ops/output.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;

namespace {

constexpr const char* kName = "dropconnect_linear";

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
  check_alike(kName, "grad_output", grad_output, input);
}

// ---- devices ------------------------------------------------------------------------------------

// torch's own products, and no autocast, below this op's.
struct Below {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  c10::DeviceGuard device;
  explicit Below(const Tensor& tensor) : device(tensor.device()) {}
};

// One sample has the mask that all samples would share.
DropConnectWeights masked(const Tensor& weight, double p, const Tensor& key, std::string_view mask,
                          int64_t samples) {
  const DropoutRule rule = p > 0.0 && p < 1.0 ? dropout_rule(p) : DropoutRule{};
  return {weight, rule, key.contiguous(), is_per_sample(mask) && samples != 1};
}

// s M o b, of shape (out_features) or (rows, out_features).
Tensor dropped_bias(const Tensor& bias, int64_t rows, const DropConnectWeights& w) {
  const Tensor all = w.per_sample ? bias.expand({rows, bias.size(0)}) : bias;
  const Tensor kept = all.clone(at::MemoryFormat::Contiguous);
  drop(kept, kDropConnectBiasIndex, w.rule, w.key);
  return kept;
}

Tensor forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
               const Tensor& key, std::string_view mask, bool drop_bias) {
  check(input, weight, bias, p, key, mask);
  const Below below(input);
  const Tensor x = rows_of(input);
  const Tensor output = with_large_pages(at::empty({x.size(0), weight.size(0)}, input.options()));
  const Tensor result = output.view_symint(shape_of_rows(input, weight.size(0)));
  if (output.numel() == 0) return result;
  const DropConnectWeights w = masked(weight, p, key, mask, x.size(0));
  Tensor added = bias.value_or(Tensor());
  if (bias && drop_bias && p == 1.0) added = Tensor();
  if (bias && drop_bias && p > 0.0 && p < 1.0) added = dropped_bias(*bias, x.size(0), w);
  if (p > 0.0 && p < 1.0 && x.size(1) > 0) {
    dropconnect_output(w, x, added, output);
  } else {  // no weight to mask
    added.defined() ? output.copy_(added) : output.zero_();
    if (p == 0.0) output.addmm_(x, weight.t());
  }
  return result;
}

Tensor empty_gradient(const Tensor& like, bool wanted) {
  return wanted ? at::empty_symint(like.sym_sizes(), like.options())
                : at::empty({0}, like.options());
}

LinearGradients empty_gradients(const Tensor& input, const Tensor& weight, OutputMask wanted) {
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
  if (w.per_sample) drop(kept, kDropConnectBiasIndex, unscaled(w.rule), w.key);
  const Tensor sum =
      kept.sum(0, /*keepdim=*/false, at::promote_types(dy.scalar_type(), at::kFloat));
  if (!w.per_sample) drop(sum, kDropConnectBiasIndex, unscaled(w.rule), w.key);
  result.copy_(sum.mul_(w.rule.scale_f64));
}

LinearGradients backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                         double p, const Tensor& key, std::string_view mask, bool drop_bias,
                         OutputMask wanted) {
  check(input, weight, std::nullopt, p, key, mask);
  check_gradient(grad_output, input, weight);
  const Below below(input);
  const LinearGradients gradients = empty_gradients(input, weight, wanted);
  const auto& [of_input, of_weight, of_bias] = gradients;
  for (const Tensor& gradient : {of_input, of_weight}) with_large_pages(gradient);
  const Tensor x = rows_of(input), dy = rows_of(grad_output);
  const Tensor dx = wanted[0] ? rows_of(of_input) : Tensor();
  const Tensor dw = wanted[1] ? of_weight : Tensor();
  const DropConnectWeights w = masked(weight, p, key, mask, x.size(0));
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

Tensor forward_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                    const Tensor& key, std::string_view mask, bool) {
  check(input, weight, bias, p, key, mask);
  return input.new_empty_symint(shape_of_rows(input, weight.sym_size(0)));
}

LinearGradients backward_meta(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                              double p, const Tensor& key, std::string_view mask, bool,
                              OutputMask wanted) {
  check(input, weight, std::nullopt, p, key, mask);
  check_gradient(grad_output, input, weight);
  return empty_gradients(input, weight, wanted);
}

// ---- p in a tensor ------------------------------------------------------------------------------

void check_host_p(const Tensor& p) {
  check_tensor_p(kName, p);
  TORCH_CHECK(p.is_cpu() || p.is_meta(), "regops.", kName, ": expected p on cpu, got ", p.device());
}

double host_p(const Tensor& p) {
  check_host_p(p);
  return p.item<double>();
}

Tensor forward_tensor_p(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& p, const Tensor& key, std::string_view mask, bool drop_bias) {
  return forward(input, weight, bias, host_p(p), key, mask, drop_bias);
}

LinearGradients backward_tensor_p(const Tensor& grad_output, const Tensor& input,
                                  const Tensor& weight, const Tensor& p, const Tensor& key,
                                  std::string_view mask, bool drop_bias, OutputMask wanted) {
  return backward(grad_output, input, weight, host_p(p), key, mask, drop_bias, wanted);
}

constexpr double kAnyP = 0.5;  // no shape depends on it

Tensor forward_tensor_p_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& p, const Tensor& key, std::string_view mask,
                             bool drop_bias) {
  check_host_p(p);
  return forward_meta(input, weight, bias, kAnyP, key, mask, drop_bias);
}

LinearGradients backward_tensor_p_meta(const Tensor& grad_output, const Tensor& input,
                                       const Tensor& weight, const Tensor& p, const Tensor& key,
                                       std::string_view mask, bool drop_bias, OutputMask wanted) {
  check_host_p(p);
  return backward_meta(grad_output, input, weight, kAnyP, key, mask, drop_bias, wanted);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def(
      "dropconnect_linear(Tensor input, Tensor weight, Tensor? bias, float p, Tensor key, "
      "str mask, bool drop_bias) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "dropconnect_linear_backward(Tensor grad_output, Tensor input, Tensor weight, float p, "
      "Tensor key, str mask, bool drop_bias, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "dropconnect_linear.tensor_p(Tensor input, Tensor weight, Tensor? bias, Tensor p, "
      "Tensor key, str mask, bool drop_bias) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "dropconnect_linear_backward.tensor_p(Tensor grad_output, Tensor input, Tensor weight, "
      "Tensor p, Tensor key, str mask, bool drop_bias, bool[3] output_mask) -> (Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
}

#define REGOPS_DROPCONNECT_KERNELS(device)                              \
  TORCH_LIBRARY_IMPL(regops, device, m) {                               \
    m.impl("dropconnect_linear", &forward);                             \
    m.impl("dropconnect_linear_backward", &backward);                   \
    m.impl("dropconnect_linear.tensor_p", &forward_tensor_p);           \
    m.impl("dropconnect_linear_backward.tensor_p", &backward_tensor_p); \
  }

REGOPS_DROPCONNECT_KERNELS(CPU)
#ifdef REGOPS_WITH_CUDA
REGOPS_DROPCONNECT_KERNELS(CUDA)
#endif
#undef REGOPS_DROPCONNECT_KERNELS

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("dropconnect_linear", &forward_meta);
  m.impl("dropconnect_linear_backward", &backward_meta);
  m.impl("dropconnect_linear.tensor_p", &forward_tensor_p_meta);
  m.impl("dropconnect_linear_backward.tensor_p", &backward_tensor_p_meta);
}

}  // namespace regops
