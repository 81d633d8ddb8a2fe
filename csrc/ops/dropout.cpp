// regops::dropout(input, p, key) and regops::dropout_, its in-place form.
//
// Pure functions of their arguments: the mask is recomputed from the key, so backward is the same
// op on the gradient and 16 bytes of key are all that is saved for it. 2 x bytes of the input move
// each way.
#include "ops/dropout.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cpu/dropout.h"
#include "math/dropout.h"
#include "ops/arguments.h"
#include "ops/contiguity.h"
#include "ops/device.h"
#include "ops/output.h"
#include "ops/parallel.h"
#include "ops/random.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/dropout.h"
#endif

namespace regops {

using at::Tensor;

namespace {

// ---- the contract: what is accepted, and what comes out ----------------------------------------

void check_tensor(const Tensor& input) {
  check_dtype("dropout", "input", input);
  check_strided("dropout", "input", input);
}

void check(const Tensor& input, double p, const Tensor& key) {
  check_p("dropout", p);
  check_tensor(input);
  check_key("dropout", key, input);
}

void check_leaf(const Tensor& input) {
  TORCH_CHECK(
      !(at::GradMode::is_enabled() && input.requires_grad() && input.is_leaf() && !input.is_view()),
      "regops.dropout: a leaf tensor of shape ", input.sizes(),
      " that requires grad is being used in an in-place operation");
}

// ---- devices: each fills `output`, dense and of the input's dtype and strides, or the input
// itself

using Run = void (*)(const Tensor& input, const Tensor& output, double p, const Tensor& key);

void run_cpu(const Tensor& input, const Tensor& output, double p, const Tensor& key) {
  cpu::DropoutCall call;
  call.dtype = dtype_of(input);
  call.input = input.const_data_ptr();
  call.output = output.mutable_data_ptr();
  call.key = host_key(key);
  call.rule = dropout_rule(p);
  call.stream = call.input != call.output && static_cast<int64_t>(output.nbytes()) >= kStreamBytes;

  if (input.is_contiguous()) {
    parallel_contiguous(input.numel(), [&](int64_t begin, int64_t end) {
      cpu::dropout_run(call, begin, end, begin);
    });
    return;
  }
  const PermutedLayout layout = *permuted_layout(input);
  parallel_permuted(
      layout,
      [&](int64_t memory, int64_t logical, int64_t n) {
        cpu::dropout_run(call, memory, memory + n, logical);
      },
      [&](OuterOrigin origin, Tile tile) { cpu::dropout_tile(call, layout, origin, tile); });
}

#ifdef REGOPS_WITH_CUDA
void run_cuda(const Tensor& input, const Tensor& output, double p, const Tensor& key) {
  const c10::DeviceGuard guard(input.device());
  const Tensor contiguous_key = key.contiguous();
  CudaKey cuda_key = {{0, 0}, nullptr};
  if (key.is_cpu()) {
    cuda_key.host = host_key(contiguous_key);
  } else {
    cuda_key.device = contiguous_key.const_data_ptr<int64_t>();
  }
  const int dtype = static_cast<int>(dtype_of(input));
  const DropoutRule rule = dropout_rule(p);
  int error;
  if (input.is_contiguous()) {
    error = regops_dropout_cuda(dtype, input.const_data_ptr(), output.mutable_data_ptr(),
                                input.numel(), 0, &cuda_key, &rule, current_stream(input));
  } else {
    const PermutedLayout layout = *permuted_layout(input);
    error = regops_dropout_permuted_cuda(dtype, input.const_data_ptr(), output.mutable_data_ptr(),
                                         &layout, &cuda_key, &rule, current_stream(input));
  }
  check_launch("dropout", error);
}
#endif

bool is_walkable(const Tensor& tensor) {
  return tensor.is_contiguous() ||
         (tensor.is_non_overlapping_and_dense() && permuted_layout(tensor).has_value());
}

template <Run run>
Tensor dropout(const Tensor& input, double p, const Tensor& key) {
  check(input, p, key);
  const Tensor output = empty_output(input);
  if (p == 1.0) return output.zero_();
  if (p == 0.0) return output.copy_(input);
  if (input.numel() == 0) return output;
  if (is_walkable(input) && output.strides() == input.strides()) {
    run(input, output, p, key);
  } else if (is_walkable(output)) {  // gaps or overlap in the input: the copy is the only read
    output.copy_(input);
    run(output, output, p, key);
  } else {
    const Tensor dense = input.contiguous();
    run(dense, dense, p, key);
    output.copy_(dense);
  }
  return output;
}

template <Run run>
void dropout_inplace(const Tensor& input, double p, const Tensor& key) {
  check(input, p, key);
  at::assert_no_internal_overlap(input);
  if (p == 0.0 || input.numel() == 0) return;
  if (p == 1.0) {
    input.zero_();
  } else if (is_walkable(input)) {
    run(input, input, p, key);
  } else {
    const Tensor dense = input.contiguous();
    run(dense, dense, p, key);
    input.copy_(dense);
  }
}

Tensor dropout_meta(const Tensor& input, double p, const Tensor& key) {
  check(input, p, key);
  return at::empty_like(input);
}

void dropout_inplace_meta(const Tensor& input, double p, const Tensor& key) {
  check(input, p, key);
}

// ---- autograd: dx = dropout(dy, p, key), which is differentiable in its turn --------------------

Tensor call_dropout(const Tensor& input, double p, const Tensor& key) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropout", "")
                             .typed<Tensor(const Tensor&, double, const Tensor&)>();
  return op.call(input, p, key);
}

void call_dropout_inplace(const Tensor& input, double p, const Tensor& key) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::dropout_", "")
                             .typed<void(const Tensor&, double, const Tensor&)>();
  op.call(input, p, key);
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

bool needs_node(const Tensor& input) {
  return (at::GradMode::is_enabled() && input.requires_grad()) || input._fw_grad(0).defined();
}

Tensor dropout_autograd(const Tensor& input, double p, const Tensor& key) {
  if (needs_node(input)) return DropoutFunction<false>::apply(input, p, key);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_dropout(input, p, key);
}

void dropout_inplace_autograd(const Tensor& input, double p, const Tensor& key) {
  check(input, p, key);
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
  check_tensor(input);
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

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def("dropout(Tensor input, float p, Tensor key) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("dropout_(Tensor(a!) input, float p, Tensor key) -> ()", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) {
  m.impl("dropout", &dropout<run_cpu>);
  m.impl("dropout_", &dropout_inplace<run_cpu>);
}

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) {
  m.impl("dropout", &dropout<run_cuda>);
  m.impl("dropout_", &dropout_inplace<run_cuda>);
}
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("dropout", &dropout_meta);
  m.impl("dropout_", &dropout_inplace_meta);
}

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("dropout", torch::CppFunction::makeFallthrough());
  m.impl("dropout_", &dropout_inplace_version);
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("dropout", &dropout_autograd);
  m.impl("dropout_", &dropout_inplace_autograd);
}

}  // namespace regops
