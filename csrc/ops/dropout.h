// Dropout's contract, for its autograd, and its entry for the binding.
#pragma once

#include <optional>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace regops {

// Raises what regops::dropout raises of its arguments.
void check_dropout(const at::Tensor& input, double p, const at::Tensor& key);

// The whole of regops.functional.dropout, outside torch.compile and functorch transforms.
at::Tensor dropout_eager(const at::Tensor& input, double p, bool training, bool inplace,
                         const std::optional<at::Tensor>& key,
                         const std::optional<at::Generator>& generator);

}  // namespace regops
