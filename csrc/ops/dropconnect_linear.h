// What the ops of a DropConnect layer share: their contract, and entries for the binding.
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace regops {

using OptionalTensor = std::optional<at::Tensor>;
using OutputMask = std::array<bool, 3>;  // whether gradients of input, weight, bias are wanted
using LinearGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// ---- the contract -------------------------------------------------------------------------------

// Reads the argument `mask`: "batch" or "sample".
bool is_per_sample(std::string_view mask);

// Shapes, and dtypes and devices too, of input (..., in_features), weight (out_features,
// in_features) and bias (out_features).
void check_linear_shapes(const char* op, const at::Tensor& input, const at::Tensor& weight,
                         const OptionalTensor& bias);
void check_linear(const char* op, const at::Tensor& input, const at::Tensor& weight,
                  const OptionalTensor& bias);

// That a tensor, `name`, is strided and of the input's dtype and device.
void check_alike(const char* op, const char* name, const at::Tensor& tensor,
                 const at::Tensor& input);

// The input's shape with another last dimension.
c10::SymDimVector shape_of_rows(const at::Tensor& input, const c10::SymInt& features);

// (..., in_features) as (rows, in_features).
at::Tensor rows_of(const at::Tensor& input);

// ---- through the dispatcher ---------------------------------------------------------------------

at::Tensor dropconnect_linear(const at::Tensor& input, const at::Tensor& weight,
                              const OptionalTensor& bias, double p, const at::Tensor& key,
                              std::string_view mask, bool drop_bias);

LinearGradients dropconnect_linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                            const at::Tensor& weight, double p,
                                            const at::Tensor& key, std::string_view mask,
                                            bool drop_bias, OutputMask wanted);

// With p in a tensor of the CPU, so that compiled code has one graph for all p.
at::Tensor dropconnect_linear_tensor_p(const at::Tensor& input, const at::Tensor& weight,
                                       const OptionalTensor& bias, const at::Tensor& p,
                                       const at::Tensor& key, std::string_view mask,
                                       bool drop_bias);

LinearGradients dropconnect_linear_backward_tensor_p(const at::Tensor& grad_output,
                                                     const at::Tensor& input,
                                                     const at::Tensor& weight, const at::Tensor& p,
                                                     const at::Tensor& key, std::string_view mask,
                                                     bool drop_bias, OutputMask wanted);

std::tuple<at::Tensor, at::Tensor> dropconnect_moments(const at::Tensor& input,
                                                       const at::Tensor& weight,
                                                       const OptionalTensor& bias, double p,
                                                       bool drop_bias);

// Whether a derivative through any of these is asked for; some may be undefined.
bool needs_node(std::initializer_list<at::Tensor> tensors);

// ---- for the binding ----------------------------------------------------------------------------

// The whole of regops.functional.dropconnect_linear but for inference="gaussian", outside
// torch.compile and functorch transforms.
at::Tensor dropconnect_linear_eager(const at::Tensor& input, const at::Tensor& weight,
                                    const OptionalTensor& bias, double p, bool training,
                                    std::string_view mask, bool drop_bias,
                                    const OptionalTensor& key,
                                    const std::optional<at::Generator>& generator);

// Its checks, for where the binding does not do the rest.
void check_dropconnect_linear_eager(const at::Tensor& input, const at::Tensor& weight,
                                    const OptionalTensor& bias, double p, bool training,
                                    std::string_view mask, const OptionalTensor& key,
                                    const std::optional<at::Generator>& generator);

}  // namespace regops
