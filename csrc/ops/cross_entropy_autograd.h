// What the autograd functions of cross_entropy and linear_cross_entropy share.
#pragma once

#include <optional>
#include <string>

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cross_entropy.h"

namespace regops {

inline std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// The arguments between forward and backward: the tensors, to be saved first of all saved
// variables, and the rest in the context.
enum SavedArgument { kInput, kTarget, kWeight, kTargetB, kLam, kNumItems, kSavedArguments };
torch::autograd::variable_list save_arguments(torch::autograd::AutogradContext* context,
                                              const CrossEntropyArguments& arguments);
CrossEntropyArguments saved_arguments(torch::autograd::AutogradContext* context,
                                      const torch::autograd::variable_list& saved);

// Whether forward may compute the gradient, for backward to scale by one number.
bool is_gradient_ready(const CrossEntropyArguments& arguments);

// Whether a tensor's values are those in its memory: not of a tracer's or a transform's stand-in,
// nor of a lazy negation or zero.
bool is_plain(const at::Tensor& tensor);

// A finished gradient times the upstream one, in place unless backward may be asked for again.
at::Tensor scaled_gradient(const at::Tensor& gradient, const at::Tensor& upstream);

// A view, through which no other argument's gradient passes even where that argument was computed
// from this one: differentiable_gradients would else count it there as well.
at::Tensor on_its_own(const at::Tensor& tensor);

// Gradients that can be differentiated in their turn, of each input that is defined and requires
// grad; undefined for the others. The inputs are on their own.
torch::autograd::variable_list differentiable_gradients(
    const torch::autograd::variable_list& outputs, const torch::autograd::variable_list& upstream,
    const torch::autograd::variable_list& inputs);

// Reads the public argument `check`.
bool is_check_asked_for(const char* op, const std::optional<std::string>& check);

}  // namespace regops
