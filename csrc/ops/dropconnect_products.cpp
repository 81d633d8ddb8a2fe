// With one mask for all samples the products are the BLAS's. A panel of weights, small enough for
// the cache, is copied and masked and then multiplied; a panel of the weights' gradient is masked
// after its product. So each weight is read once more than in a linear layer, and no masked weight
// exists beyond a panel. 4096 x 4096 float32 with 256 samples: 2 ms of masks beside 45 of a
// product.
//
// With a mask for each sample they are kernels of our own, bound by the random numbers.
#include "ops/dropconnect_products.h"

#include <algorithm>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#include "cpu/dropout.h"
#include "ops/arguments.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/random.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/dropconnect_linear.h"
#include "cuda/dropout.h"
#endif

namespace regops {

using at::Tensor;

namespace {

// Bytes of a panel. On CUDA one product of all weights is worth more than a panel in cache.
constexpr int64_t kPanelBytesCpu = int64_t{3} << 20;
constexpr int64_t kPanelBytesCuda = int64_t{64} << 20;
// Of the weights' gradient, which is masked where it lies and needs no memory.
constexpr int64_t kGradientBytesCpu = int64_t{8} << 20;
// Below this a product is slow, whatever the panel's size.
constexpr int64_t kLeastLines = 64;

// How many lines of `length` a panel has: panels of about one size, and multiples of 16 lines.
int64_t panel_lines(int64_t lines, int64_t length, const Tensor& tensor, int64_t bytes) {
  const int64_t fit = std::max(bytes / (length * tensor.element_size()), kLeastLines);
  if (fit >= lines) return lines;
  const int64_t panels = (lines + fit - 1) / fit;
  return ((lines + panels - 1) / panels + 15) / 16 * 16;
}

cpu::DropoutCall mask_call(const void* input, void* output, const Tensor& like,
                           const DropoutRule& rule, const Tensor& key) {
  return {dtype_of(like), input, output, host_key(key), rule, /*stream=*/false};
}

#ifdef REGOPS_WITH_CUDA
void mask_cuda(const void* input, const Tensor& output, uint64_t first, const DropoutRule& rule,
               const Tensor& key) {
  const CudaKey on_device = cuda_key(key);
  check_launch(
      "dropconnect_linear",
      regops_dropout_cuda(static_cast<int>(dtype_of(output)), input, output.mutable_data_ptr(),
                          output.numel(), first, &on_device, &rule, current_stream(output)));
}
#endif

// panel <- M o weight[row : row + panel rows, column : column + panel columns]
void fill_panel(const DropConnectWeights& w, int64_t row, int64_t column, const Tensor& panel) {
  const int64_t rows = panel.size(0), columns = panel.size(1), in_features = w.weight.size(1);
  const bool in_lines = w.weight.stride(1) == 1 || in_features == 1;
  const DropoutRule mask = unscaled(w.rule);
  const Tensor part = w.weight.narrow(0, row, rows).narrow(1, column, columns);
  const uint64_t first = dropconnect_index(0, row, column, 0, in_features);
#ifdef REGOPS_WITH_CUDA
  if (panel.is_cuda()) {  // panels of whole rows
    const bool whole = part.is_contiguous();
    if (!whole) panel.copy_(part);
    mask_cuda(whole ? part.const_data_ptr() : panel.const_data_ptr(), panel, first, mask, w.key);
    return;
  }
#endif
  if (!in_lines) panel.copy_(part);
  const Tensor& source = in_lines ? part : panel;
  const cpu::DropoutCall all =
      mask_call(source.const_data_ptr(), panel.mutable_data_ptr(), panel, mask, w.key);
  if (columns == in_features && source.is_contiguous()) {
    parallel_contiguous(panel.numel(), [&](int64_t begin, int64_t end) {
      cpu::dropout_run(all, begin, end, first + begin);
    });
    return;
  }
  const int64_t bytes = panel.element_size(), from = source.stride(0) * bytes, to = columns * bytes;
  at::parallel_for(0, rows, kGrain / columns + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      cpu::DropoutCall line = all;
      line.input = static_cast<const char*>(all.input) + r * from;
      line.output = static_cast<char*>(all.output) + r * to;
      cpu::dropout_run(line, 0, columns, first + r * in_features);
    }
  });
}

// ---- one mask for all samples -------------------------------------------------------------------

void output_by_panels(const DropConnectWeights& w, const Tensor& input, const Tensor& bias,
                      const Tensor& output) {
  const int64_t outs = w.weight.size(0), length = w.weight.size(1);
  const int64_t lines =
      panel_lines(outs, length, w.weight, w.weight.is_cuda() ? kPanelBytesCuda : kPanelBytesCpu);
  const Tensor buffer = at::empty({lines, length}, w.weight.options());
  for (int64_t row = 0; row < outs; row += lines) {
    const Tensor panel = buffer.narrow(0, 0, std::min(lines, outs - row));
    fill_panel(w, row, 0, panel);
    Tensor part = output.narrow(1, row, panel.size(0));
    const Tensor added = bias.defined() ? bias.narrow(-1, row, panel.size(0)) : part;
    at::addmm_out(part, added, input, panel.t(), bias.defined() ? 1 : 0, w.rule.scale_f64);
  }
}

// Panels of columns, so that each element of the gradient comes from one product, rounded once.
void grad_input_by_columns(const DropConnectWeights& w, const Tensor& grad_output,
                           const Tensor& grad_input) {
  const int64_t outs = w.weight.size(0), ins = w.weight.size(1);
  const int64_t lines = panel_lines(ins, outs, w.weight, kPanelBytesCpu);
  const Tensor buffer = at::empty({outs * lines}, w.weight.options());
  for (int64_t column = 0; column < ins; column += lines) {
    const int64_t columns = std::min(lines, ins - column);
    const Tensor panel = buffer.narrow(0, 0, outs * columns).view({outs, columns});
    fill_panel(w, 0, column, panel);
    Tensor part = grad_input.narrow(1, column, columns);
    at::addmm_out(part, part, grad_output, panel, 0, w.rule.scale_f64);
  }
}

// Panels of whole rows, which a kernel masks as one range; sums of several are float32 at least.
void grad_input_by_rows(const DropConnectWeights& w, const Tensor& grad_output,
                        const Tensor& grad_input) {
  const int64_t outs = w.weight.size(0), length = w.weight.size(1);
  const int64_t lines = panel_lines(outs, length, w.weight, kPanelBytesCuda);
  const Tensor buffer = at::empty({lines, length}, w.weight.options());
  Tensor sum;
  for (int64_t row = 0; row < outs; row += lines) {
    const Tensor panel = buffer.narrow(0, 0, std::min(lines, outs - row));
    fill_panel(w, row, 0, panel);
    const Tensor part = grad_output.narrow(1, row, panel.size(0));
    Tensor product = grad_input;
    at::addmm_out(product, product, part, panel, 0, w.rule.scale_f64);
    if (lines >= outs) return;
    const at::ScalarType real = at::promote_types(product.scalar_type(), at::kFloat);
    sum.defined() ? (void)sum.add_(product) : (void)(sum = product.to(real, false, /*copy=*/true));
  }
  grad_input.copy_(sum);
}

void grad_weight_by_panels(const DropConnectWeights& w, const Tensor& input,
                           const Tensor& grad_output, const Tensor& grad_weight) {
  const int64_t outs = w.weight.size(0), length = w.weight.size(1);
  const int64_t lines =
      panel_lines(outs, length, w.weight, w.weight.is_cuda() ? kPanelBytesCuda : kGradientBytesCpu);
  for (int64_t row = 0; row < outs; row += lines) {
    const int64_t rows = std::min(lines, outs - row);
    Tensor part = grad_weight.narrow(0, row, rows);
    at::addmm_out(part, part, grad_output.narrow(1, row, rows).t(), input, 0, w.rule.scale_f64);
    drop(part, dropconnect_index(0, row, 0, 0, length), unscaled(w.rule), w.key);
  }
}

// ---- kernels on CUDA ----------------------------------------------------------------------------

#ifdef REGOPS_WITH_CUDA

bool takes_cuda_kernels(const DropConnectWeights& w, const Tensor& input) {
  return w.weight.is_cuda() && (w.per_sample || input.size(0) <= kDropConnectFewSamples);
}

using Launcher = int(const DropConnectCall*, int, const CudaKey*, void*, void*, void*);

void launch(Launcher* launcher, DropConnectProduct product, const DropConnectWeights& w,
            const Tensor& input, const Tensor& grad_output, const Tensor& result) {
  const c10::DeviceGuard guard(result.device());
  const Tensor x = input.contiguous(), weight = w.weight.contiguous();
  const Tensor dy = grad_output.defined() ? grad_output.contiguous() : Tensor();
  const DropConnectCall call = dropconnect_call(w, x, weight, dy);
  const CudaKey key = cuda_key(w.key);
  const Tensor workspace =
      at::empty({regops_dropconnect_workspace_bytes(&call, w.per_sample, product)},
                x.options().dtype(at::kByte));
  check_launch("dropconnect_linear",
               launcher(&call, w.per_sample, &key, result.mutable_data_ptr(),
                        workspace.mutable_data_ptr(), current_stream(result)));
}

#endif

}  // namespace

DropoutRule unscaled(DropoutRule rule) {
  rule.scale = 1.0f;
  rule.scale_f64 = 1.0;
  return rule;
}

void drop(const Tensor& tensor, uint64_t first, const DropoutRule& rule, const Tensor& key) {
#ifdef REGOPS_WITH_CUDA
  if (tensor.is_cuda()) {
    mask_cuda(tensor.const_data_ptr(), tensor, first, rule, key);
    return;
  }
#endif
  const cpu::DropoutCall call =
      mask_call(tensor.const_data_ptr(), tensor.mutable_data_ptr(), tensor, rule, key);
  parallel_contiguous(tensor.numel(), [&](int64_t begin, int64_t end) {
    cpu::dropout_run(call, begin, end, first + begin);
  });
}

void dropconnect_output(const DropConnectWeights& weights, const Tensor& input, const Tensor& bias,
                        const Tensor& output) {
#ifdef REGOPS_WITH_CUDA
  if (takes_cuda_kernels(weights, input)) {
    bias.defined() ? output.copy_(bias) : output.zero_();
    launch(&regops_dropconnect_output_cuda, DropConnectProduct::output, weights, input, Tensor(),
           output);
    return;
  }
#endif
  const auto product = weights.per_sample ? output_by_samples : output_by_panels;
  product(weights, input, bias, output);
}

void dropconnect_gradients(const DropConnectWeights& weights, const Tensor& input,
                           const Tensor& grad_output, const Tensor& grad_input,
                           const Tensor& grad_weight) {
#ifdef REGOPS_WITH_CUDA
  if (takes_cuda_kernels(weights, input)) {
    if (grad_input.defined()) {
      launch(&regops_dropconnect_grad_input_cuda, DropConnectProduct::grad_input, weights, input,
             grad_output, grad_input);
    }
    if (grad_weight.defined()) {
      launch(&regops_dropconnect_grad_weight_cuda, DropConnectProduct::grad_weight, weights, input,
             grad_output, grad_weight);
    }
    return;
  }
#endif
  if (weights.per_sample) {
    gradients_by_samples(weights, input, grad_output, grad_input, grad_weight);
    return;
  }
  if (grad_input.defined()) {
    const auto product = weights.weight.is_cuda() ? grad_input_by_rows : grad_input_by_columns;
    product(weights, grad_output, grad_input);
  }
  if (grad_weight.defined()) grad_weight_by_panels(weights, input, grad_output, grad_weight);
}

}  // namespace regops
