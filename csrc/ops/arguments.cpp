#include "ops/arguments.h"

#include <charconv>
#include <cmath>
#include <string>

#include <ATen/core/grad_mode.h>

namespace regops {

namespace {

// The shortest digits that read back as p: a stream's six would show 1.0000001 as 1.
std::string digits(double p) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, p).ptr);
}

}  // namespace

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::float64;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      return DType::float32;
  }
}

void check_dtype(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(dtype_of(tensor) != DType::float32 || tensor.scalar_type() == at::kFloat, "regops.",
              op, ": expected ", name, " of dtype float64, float32, bfloat16 or float16, got ",
              c10::getDtypeNames(tensor.scalar_type()).first);
}

void check_strided(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == at::kStrided && !tensor.is_nested(), "regops.", op,
                              ": expected a strided ", name, ", got ",
                              tensor.is_nested() ? "a nested tensor" : c10::str(tensor.layout()));
}

void check_p(const char* op, double p) {
  // torch raises RuntimeError, not ValueError, for nan.
  TORCH_CHECK(!std::isnan(p), "regops.", op, ": expected p in [0, 1], got nan");
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, "regops.", op, ": expected p in [0, 1], got ", digits(p));
}

void check_tensor_p(const char* op, const at::Tensor& p) {
  TORCH_CHECK_VALUE(p.sym_numel() == 1, "regops.", op, ": expected p of one element, got shape ",
                    p.sym_sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(p.scalar_type()), "regops.", op,
                   ": expected p of a floating-point dtype, got torch.",
                   c10::getDtypeNames(p.scalar_type()).first);
  TORCH_CHECK(!(at::GradMode::is_enabled() && p.requires_grad()), "regops.", op,
              ": expected p without requires_grad, as masks have no derivative to it");
}

}  // namespace regops
