// The contract of cross-entropy: every check that needs no look at the data, for every device.
#include <cmath>
#include <utility>

#include <ATen/core/grad_mode.h>

#include "ops/cross_entropy.h"

namespace regops {

using at::Tensor;

namespace {

const char* type_name(const Tensor& tensor) { return c10::toString(tensor.scalar_type()); }

std::vector<c10::SymInt> rows_shape(const Tensor& input) {
  std::vector<c10::SymInt> shape;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d != 1 && input.dim() > 1) shape.push_back(input.sym_size(d));
  }
  return shape;
}

void check_device(const char* op, const char* name, const std::optional<Tensor>& tensor,
                  const Tensor& input, bool may_be_cpu_scalar = false) {
  if (!tensor || (may_be_cpu_scalar && tensor->dim() == 0 && tensor->is_cpu())) return;
  TORCH_CHECK(tensor->device() == input.device(), "regops.", op, ": expected ", name,
              " on the input's device ", input.device(), ", got ", tensor->device());
}

void check_constant(const char* op, const char* name, const std::optional<Tensor>& tensor) {
  TORCH_CHECK(!tensor || !tensor->requires_grad() || !at::GradMode::is_enabled(), "regops.", op,
              ": ", name, " is a constant of the loss, got one that requires grad");
}

void check_labels(const char* op, const char* name, const Tensor& labels, const Tensor& input,
                  c10::SymIntArrayRef shape) {
  TORCH_CHECK(labels.scalar_type() == at::kLong || labels.scalar_type() == at::kByte, "regops.", op,
              ": expected ", name,
              " of dtype int64 or uint8, or of a floating-point dtype and the ", "input's shape ",
              input.sym_sizes(), ", got dtype ", type_name(labels), " and shape ",
              labels.sym_sizes());
  // torch takes one label in a dimension of its own for unbatched input.
  if (input.dim() == 1 && labels.dim() == 1 && labels.sym_size(0) == 1) return;
  if (labels.sym_sizes() == shape) return;
  if (input.dim() > 1 && labels.dim() > 0 && labels.sym_size(0) != input.sym_size(0)) {
    TORCH_CHECK_VALUE(false, "regops.", op, ": expected ", name, " of shape ", shape,
                      " for input of shape ", input.sym_sizes(), ", got ", labels.sym_sizes());
  }
  TORCH_CHECK(false, "regops.", op, ": expected ", name, " of shape ", shape,
              " for input of shape ", input.sym_sizes(), ", got ", labels.sym_sizes());
}

void check_pair(const char* op, const CrossEntropyArguments& a, bool probabilities,
                c10::SymIntArrayRef shape) {
  TORCH_CHECK_VALUE(a.target_b.has_value() == a.lam.has_value(), "regops.", op,
                    ": expected target_b and lam together, got ",
                    a.lam ? "lam alone" : "target_b alone");
  if (!a.lam) return;
  TORCH_CHECK_VALUE(!probabilities, "regops.", op,
                    ": expected class indices as target beside target_b, got probabilities");
  check_labels(op, "target_b", *a.target_b, a.input, shape);
  TORCH_CHECK_TYPE(a.lam->is_floating_point(), "regops.", op,
                   ": expected lam of a floating-point dtype, got ", type_name(*a.lam));
  const bool fits = a.lam->dim() == 0 || a.lam->sym_sizes() == shape ||
                    (a.lam->dim() == 1 && !shape.empty() && a.lam->sym_size(0) == shape[0]);
  TORCH_CHECK_VALUE(fits, "regops.", op, ": expected lam to be a number or of shape ",
                    shape.slice(0, shape.empty() ? 0 : 1), " or ", shape, ", got shape ",
                    a.lam->sym_sizes());
  check_device(op, "target_b", a.target_b, a.input);
  check_device(op, "lam", a.lam, a.input, true);
  check_constant(op, "lam", a.lam);
}

Reduction check_reduction(const char* op, const CrossEntropyArguments& a) {
  if (a.num_items) {
    TORCH_CHECK_VALUE(a.reduction == "mean", "regops.", op,
                      ": expected reduction \"mean\" with num_items, got \"", a.reduction, "\"");
    TORCH_CHECK_VALUE(a.num_items->dim() == 0, "regops.", op,
                      ": expected num_items to be a number or of shape [], got shape ",
                      a.num_items->sym_sizes());
    check_device(op, "num_items", a.num_items, a.input, true);
    check_constant(op, "num_items", a.num_items);
  }
  if (a.reduction == "none") return Reduction::none;
  if (a.reduction == "mean") return Reduction::mean;
  TORCH_CHECK_VALUE(a.reduction == "sum", "regops.", op,
                    ": expected reduction \"none\", \"mean\" or \"sum\", got \"", a.reduction,
                    "\"");
  return Reduction::sum;
}

void check_target(const char* op, const CrossEntropyArguments& a, const CrossEntropyContract& c) {
  if (!c.probabilities) return check_labels(op, "target", a.target, a.input, c.rows_shape);
  const at::ScalarType type = a.target.scalar_type();
  TORCH_CHECK(a.target.is_floating_point(), "regops.", op,
              ": expected a floating-point dtype of a target of the input's shape, got ",
              type_name(a.target));
  TORCH_CHECK(type == a.input.scalar_type() || type == c.real, "regops.", op,
              ": expected probabilities of dtype ", c10::toString(c.real), " or of the input's ",
              type_name(a.input), ", got ", type_name(a.target));
  TORCH_CHECK(a.ignore_index < 0, "regops.", op,
              ": ignore_index is not supported for probabilities as target, got ", a.ignore_index);
}

}  // namespace

CrossEntropyContract check_cross_entropy(const char* op, const CrossEntropyArguments& a) {
  const at::ScalarType type = a.input.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(
      type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
      "regops.", op, ": expected input of dtype float64, float32, bfloat16 or float16, got ",
      type_name(a.input));
  for (const Tensor& tensor : {a.input, a.target}) {
    TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == at::kStrided && !tensor.is_nested(), "regops.",
                                op, ": expected strided tensors, got ",
                                tensor.is_nested() ? "a nested one" : c10::str(tensor.layout()));
  }
  TORCH_CHECK(a.input.dim() > 0, "regops.", op,
              ": expected input of shape [C] or [N, C, ...], got []");

  CrossEntropyContract c;
  c.rows_shape = rows_shape(a.input);
  c.rows = c10::multiply_integers(c.rows_shape);
  c.classes = a.input.sym_size(a.input.dim() > 1 ? 1 : 0);
  c.real = type == at::kDouble ? at::kDouble : at::kFloat;
  c.probabilities = a.target.sym_sizes() == a.input.sym_sizes() &&
                    (a.target.is_floating_point() || a.input.dim() != 1 || c.classes != 1);
  c.reduction = check_reduction(op, a);
  check_target(op, a, c);
  check_device(op, "target", a.target, a.input);
  check_pair(op, a, c.probabilities, c.rows_shape);

  for (const auto& [name, value] :
       {std::pair("z_loss", a.z_loss), std::pair("entropy_weight", a.entropy_weight)}) {
    TORCH_CHECK_VALUE(std::isfinite(value), "regops.", op, ": expected a finite ", name, ", got ",
                      value);
  }
  TORCH_CHECK(a.label_smoothing >= 0.0 && a.label_smoothing <= 1.0, "regops.", op,
              ": expected label_smoothing in [0, 1], got ", a.label_smoothing);
  TORCH_CHECK_VALUE(a.smoothing == "uniform" || a.smoothing == "others", "regops.", op,
                    ": expected smoothing \"uniform\" or \"others\", got \"", a.smoothing, "\"");

  if (a.weight) {
    TORCH_CHECK(a.weight->dim() == 1 && a.weight->sym_size(0) == c.classes, "regops.", op,
                ": expected weight of shape [", c.classes, "], one a class, got ",
                a.weight->sym_sizes());
    TORCH_CHECK(a.weight->scalar_type() == type || a.weight->scalar_type() == c.real, "regops.", op,
                ": expected weight of dtype ", c10::toString(c.real), " or of the input's ",
                type_name(a.input), ", got ", type_name(*a.weight));
    check_device(op, "weight", a.weight, a.input);
    check_constant(op, "weight", a.weight);
  }
  return c;
}

}  // namespace regops
