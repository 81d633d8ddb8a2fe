// A mask for each sample, on the CPU: how the kernels' work is spread over threads. Sums do not
// depend on how many there are.
#include <algorithm>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "cpu/dropconnect_linear.h"
#include "ops/arguments.h"
#include "ops/dropconnect_products.h"
#include "ops/parallel.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;

namespace {

// Kernels sum groups of four outputs in an order of their own, so threads meet at multiples of it.
constexpr int64_t kOutputs = 16;

// What CPU kernels take: dense, and float32 in place of the shorter types.
Tensor dense_real(const Tensor& tensor) {
  return tensor.to(at::promote_types(tensor.scalar_type(), at::kFloat)).contiguous();
}

// No two outputs have a sum in common: outputs are split, or samples where outputs are few.
void run_forward(const DropConnectCall& call, Key key, void* output) {
  const int64_t groups = (call.out_features + kOutputs - 1) / kOutputs;
  const bool by_samples = groups < 16 && groups < call.samples;
  const int64_t lines = by_samples ? call.samples : groups;
  const int64_t decisions = call.samples * call.out_features * call.in_features;
  at::parallel_for(0, lines, kGrain * lines / decisions + 1, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kOutputs, call.out_features);
    const cpu::DropConnectCell cell =
        by_samples ? cpu::DropConnectCell{begin, end, 0, call.out_features}
                   : cpu::DropConnectCell{0, call.samples, begin * kOutputs, last};
    cpu::dropconnect_forward(call, key, output, cell);
  });
}

// Samples and outputs in `parts` parts each. A phase runs cells of which no two share a sample or
// an output, so that threads never add to one gradient. More samples in a cell use what is read of
// W more often: one thread took 17 % longer in cells of 8 of 64 samples, and 23 % in cells of 4.
void run_backward(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight) {
  constexpr int64_t kWorth = int64_t{1} << 19;  // decisions, some 50 us
  const int64_t groups = (call.out_features + kOutputs - 1) / kOutputs;
  const int64_t decisions = call.samples * call.out_features * call.in_features;
  const int64_t parts = std::min(
      {std::clamp<int64_t>(call.samples / 8, 4, 16), call.samples, groups, decisions / kWorth + 1});
  for (int64_t phase = 0; phase < parts; ++phase) {
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = (i + phase) % parts;
        cpu::dropconnect_backward(
            call, key, grad_input, grad_weight,
            {call.samples * i / parts, call.samples * (i + 1) / parts,
             groups * n / parts * kOutputs,
             std::min(groups * (n + 1) / parts * kOutputs, call.out_features)});
      }
    });
  }
}

}  // namespace

DropConnectCall dropconnect_call(const DropConnectWeights& w, const Tensor& input,
                                 const Tensor& weight, const Tensor& grad_output) {
  DropConnectCall call;
  call.dtype = dtype_of(weight);
  call.samples = input.size(0);
  call.in_features = weight.size(1);
  call.out_features = weight.size(0);
  call.input = input.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.grad_output = grad_output.defined() ? grad_output.const_data_ptr() : nullptr;
  call.rule = w.rule;
  return call;
}

void output_by_samples(const DropConnectWeights& w, const Tensor& input, const Tensor& bias,
                       const Tensor& output) {
  const Tensor x = dense_real(input), weight = dense_real(w.weight);
  const bool direct = output.scalar_type() == x.scalar_type();
  const Tensor sum = direct ? output : at::empty(output.sizes(), x.options());
  bias.defined() ? sum.copy_(bias) : sum.zero_();
  run_forward(dropconnect_call(w, x, weight, Tensor()), host_key(w.key), sum.mutable_data_ptr());
  if (!direct) output.copy_(sum);
}

void gradients_by_samples(const DropConnectWeights& w, const Tensor& input,
                          const Tensor& grad_output, const Tensor& grad_input,
                          const Tensor& grad_weight) {
  const Tensor x = dense_real(input), weight = dense_real(w.weight), dy = dense_real(grad_output);
  const auto sum_of = [&](const Tensor& gradient) {
    if (!gradient.defined()) return Tensor();
    return gradient.scalar_type() == x.scalar_type() ? gradient.zero_()
                                                     : at::zeros(gradient.sizes(), x.options());
  };
  const Tensor dx = sum_of(grad_input), dw = sum_of(grad_weight);
  run_backward(dropconnect_call(w, x, weight, dy), host_key(w.key),
               dx.defined() ? dx.mutable_data_ptr() : nullptr,
               dw.defined() ? dw.mutable_data_ptr() : nullptr);
  if (dx.defined() && !dx.is_same(grad_input)) grad_input.copy_(dx);
  if (dw.defined() && !dw.is_same(grad_weight)) grad_weight.copy_(dw);
}

}  // namespace regops
