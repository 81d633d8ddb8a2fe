// regops::dropout(input, p, key), its in-place form regops::dropout_, regops::dropout_shard of a
// slice of a larger tensor, and regops::dropout.tensor_p with p in a tensor.
//
// Pure functions of their arguments: the mask is recomputed from the key, so backward is the same
// op on the gradient and 16 bytes of key are all that is saved for it. 2 x bytes of the input move
// each way.
#include "ops/dropout.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
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

// ---- the contract: what is accepted, and what comes out ----------------------------------------

void check_dropout(const Tensor& input, double p, const Tensor& key) {
  check_p("dropout", p);
  check_dtype("dropout", "input", input);
  check_strided("dropout", "input", input);
  check_key("dropout", key, input);
}

namespace {

void check_shard(const Tensor& input, double p, const Tensor& key, size_t strides) {
  check_dropout(input, p, key);
  TORCH_CHECK_VALUE(static_cast<int64_t>(strides) == input.dim(),
                    "regops.dropout: expected a stride for each of ", input.dim(),
                    " dimensions, got ", strides);
}

void check_with_tensor_p(const Tensor& input, const Tensor& p, const Tensor& key) {
  check_dropout(input, 0.5, key);
  check_tensor_p("dropout", p);
  TORCH_CHECK(p.device() == input.device() || p.is_cpu(), "regops.dropout: expected p on ",
              input.device(), input.is_cpu() ? "" : " or cpu", ", got ", p.device());
}

// ---- devices: each fills `output`, dense and of the input's dtype and strides, or the input
// itself; the rule's 0 < p < 1

using Run = void (*)(const Tensor& input, const Tensor& output, const DropoutRule& rule,
                     const Tensor& key, const LogicalIndices& indices);

void run_cpu(const Tensor& input, const Tensor& output, const DropoutRule& rule, const Tensor& key,
             const LogicalIndices& indices) {
  cpu::DropoutCall call;
  call.dtype = dtype_of(input);
  call.input = input.const_data_ptr();
  call.output = output.mutable_data_ptr();
  call.key = host_key(key);
  call.rule = rule;
  call.stream = call.input != call.output && static_cast<int64_t>(output.nbytes()) >= kStreamBytes;

  const auto run_all = [&] {
    parallel_contiguous(input.numel(), [&](int64_t begin, int64_t end) {
      cpu::dropout_run(call, begin, end, indices.first + begin);
    });
  };
  if (input.is_contiguous() && !indices.strides) return run_all();
  const PermutedLayout layout = *permuted_layout(input, indices);
  if (is_run(layout)) return run_all();
  parallel_permuted(
      layout,
      [&](int64_t memory, int64_t logical, int64_t n) {
        cpu::dropout_run(call, memory, memory + n, logical);
      },
      [&](OuterOrigin origin, Tile tile) { cpu::dropout_tile(call, layout, origin, tile); });
}

#ifdef REGOPS_WITH_CUDA
void run_cuda(const Tensor& input, const Tensor& output, const DropoutRule& rule, const Tensor& key,
              const LogicalIndices& indices) {
  const c10::DeviceGuard guard(input.device());
  const Tensor dense_key = key.contiguous();
  const CudaKey on_device = cuda_key(dense_key);
  const int dtype = static_cast<int>(dtype_of(input));
  const auto run_all = [&] {
    return regops_dropout_cuda(dtype, input.const_data_ptr(), output.mutable_data_ptr(),
                               input.numel(), indices.first, &on_device, &rule,
                               current_stream(input));
  };
  const auto run_permuted = [&](const PermutedLayout& layout) {
    return regops_dropout_permuted_cuda(dtype, input.const_data_ptr(), output.mutable_data_ptr(),
                                        &layout, &on_device, &rule, current_stream(input));
  };
  if (input.is_contiguous() && !indices.strides) return check_launch("dropout", run_all());
  const PermutedLayout layout = *permuted_layout(input, indices);
  check_launch("dropout", is_run(layout) ? run_all() : run_permuted(layout));
}

// p on the device, where it stays: the kernel makes the rule.
void run_cuda_tensor_p(const Tensor& input, const Tensor& output, const Tensor& p,
                       const Tensor& key) {
  const c10::DeviceGuard guard(input.device());
  const Tensor dense_key = key.contiguous(), wide = p.to(at::kDouble);
  const CudaKey on_device = cuda_key(dense_key);
  check_launch("dropout", regops_dropout_tensor_p_cuda(
                              static_cast<int>(dtype_of(input)), input.const_data_ptr(),
                              output.mutable_data_ptr(), input.numel(), &on_device,
                              wide.const_data_ptr<double>(), current_stream(input)));
}
#endif

bool is_walkable(const Tensor& tensor, const LogicalIndices& indices) {
  return (tensor.is_contiguous() && !indices.strides) ||
         (tensor.is_non_overlapping_and_dense() && permuted_layout(tensor, indices).has_value());
}

template <Run run>
Tensor fill(const Tensor& input, double p, const Tensor& key, const LogicalIndices& indices) {
  const Tensor output = empty_output(input);
  if (p == 1.0) return output.zero_();
  if (p == 0.0) return output.copy_(input);
  if (input.numel() == 0) return output;
  const DropoutRule rule = dropout_rule(p);
  if (is_walkable(input, indices) && output.strides() == input.strides()) {
    run(input, output, rule, key, indices);
  } else if (is_walkable(output, indices)) {  // gaps or overlap in the input: the copy only reads
    output.copy_(input);
    run(output, output, rule, key, indices);
  } else {
    const Tensor dense = input.contiguous();
    TORCH_CHECK_NOT_IMPLEMENTED(is_walkable(dense, indices),
                                "regops.dropout: expected a slice along at most ", kMaxOuterDims,
                                " dimensions, got shape ", input.sizes(), " with strides ",
                                indices.strides.value_or(at::IntArrayRef()));
    run(dense, dense, rule, key, indices);
    output.copy_(dense);
  }
  return output;
}

template <Run run>
Tensor dropout(const Tensor& input, double p, const Tensor& key) {
  check_dropout(input, p, key);
  return fill<run>(input, p, key, {});
}

template <Run run>
Tensor dropout_shard(const Tensor& input, double p, const Tensor& key, int64_t offset,
                     at::IntArrayRef strides) {
  check_shard(input, p, key, strides.size());
  return fill<run>(input, p, key, {offset, strides});
}

template <Run run>
Tensor dropout_host_p(const Tensor& input, const Tensor& p, const Tensor& key) {
  check_with_tensor_p(input, p, key);
  return dropout<run>(input, p.item<double>(), key);
}

#ifdef REGOPS_WITH_CUDA
Tensor dropout_tensor_p_cuda(const Tensor& input, const Tensor& p, const Tensor& key) {
  if (p.is_cpu()) return dropout_host_p<run_cuda>(input, p, key);
  check_with_tensor_p(input, p, key);
  const Tensor dense = input.contiguous(), output = at::empty_like(dense);
  if (dense.numel() > 0) run_cuda_tensor_p(dense, output, p, key);
  if (dense.is_same(input)) return output;
  return at::empty_like(input).copy_(output);
}
#endif

template <Run run>
void dropout_inplace(const Tensor& input, double p, const Tensor& key) {
  check_dropout(input, p, key);
  at::assert_no_internal_overlap(input);
  if (p == 0.0 || input.numel() == 0) return;
  if (p == 1.0) {
    input.zero_();
  } else if (is_walkable(input, {})) {
    run(input, input, dropout_rule(p), key, {});
  } else {
    const Tensor dense = input.contiguous();
    run(dense, dense, dropout_rule(p), key, {});
    input.copy_(dense);
  }
}

Tensor dropout_meta(const Tensor& input, double p, const Tensor& key) {
  check_dropout(input, p, key);
  return at::empty_like(input);
}

Tensor dropout_shard_meta(const Tensor& input, double p, const Tensor& key, c10::SymInt,
                          c10::SymIntArrayRef strides) {
  check_shard(input, p, key, strides.size());
  return at::empty_like(input);
}

Tensor dropout_tensor_p_meta(const Tensor& input, const Tensor& p, const Tensor& key) {
  check_with_tensor_p(input, p, key);
  return at::empty_like(input);
}

void dropout_inplace_meta(const Tensor& input, double p, const Tensor& key) {
  check_dropout(input, p, key);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def("dropout(Tensor input, float p, Tensor key) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("dropout_(Tensor(a!) input, float p, Tensor key) -> ()", {at::Tag::pt2_compliant_tag});
  // Element (i0, i1, ...) takes the mask of logical index offset + sum i_d strides[d].
  m.def(
      "dropout_shard(Tensor input, float p, Tensor key, SymInt offset, SymInt[] strides) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  // p has one element, and no gradient. On CUDA it may stay on the device, unread by the host; one
  // outside of [0, 1] then gives nan. Elsewhere it is checked.
  m.def("dropout.tensor_p(Tensor input, Tensor p, Tensor key) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) {
  m.impl("dropout", &dropout<run_cpu>);
  m.impl("dropout_", &dropout_inplace<run_cpu>);
  m.impl("dropout_shard", &dropout_shard<run_cpu>);
  m.impl("dropout.tensor_p", &dropout_host_p<run_cpu>);
}

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) {
  m.impl("dropout", &dropout<run_cuda>);
  m.impl("dropout_", &dropout_inplace<run_cuda>);
  m.impl("dropout_shard", &dropout_shard<run_cuda>);
  m.impl("dropout.tensor_p", &dropout_tensor_p_cuda);
}
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("dropout", &dropout_meta);
  m.impl("dropout_", &dropout_inplace_meta);
  m.impl("dropout_shard", &dropout_shard_meta);
  m.impl("dropout.tensor_p", &dropout_tensor_p_meta);
}

}  // namespace regops
