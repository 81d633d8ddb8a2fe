// What the ops of a DropConnect layer accept.
#include "ops/arguments.h"
#include "ops/dropconnect_linear.h"
#include "ops/random.h"

namespace regops {

using at::Tensor;

bool is_per_sample(std::string_view mask) {
  TORCH_CHECK_VALUE(mask == "batch" || mask == "sample",
                    "regops.dropconnect_linear: expected mask 'batch' or 'sample', got '", mask,
                    "'");
  return mask == "sample";
}

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

void check_alike(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  check_strided(op, name, tensor);
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "regops.", op, ": expected ", name,
              " of the input's dtype, ", c10::getDtypeNames(input.scalar_type()).first, ", got ",
              c10::getDtypeNames(tensor.scalar_type()).first);
  TORCH_CHECK(tensor.device() == input.device(), "regops.", op, ": expected ", name,
              " on the input's device, ", input.device(), ", got ", tensor.device());
}

void check_linear(const char* op, const Tensor& input, const Tensor& weight,
                  const OptionalTensor& bias) {
  check_linear_shapes(op, input, weight, bias);
  check_dtype(op, "input", input);
  check_strided(op, "input", input);
  check_alike(op, "weight", weight, input);
  if (bias) check_alike(op, "bias", *bias, input);
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

}  // namespace regops
