// Cross-entropy between the dispatcher's ops and the kernels: what is accepted, and one call.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "cross_entropy_call.h"

namespace regops {

enum class Reduction { none, mean, sum };

// What all forms of the op take; see regops/functional/cross_entropy.py for the meaning.
struct CrossEntropyArguments {
  at::Tensor input, target;
  std::optional<at::Tensor> weight, target_b, lam, num_items;
  int64_t ignore_index = -100;
  std::string reduction = "mean";
  double label_smoothing = 0.0;
  std::string smoothing = "uniform";
  double z_loss = 0.0, entropy_weight = 0.0;
  bool return_lse = false, inplace_backward = false;
};

// What the arguments come to. Throws, naming `op`, where they do not fit together.
struct CrossEntropyContract {
  std::vector<c10::SymInt> rows_shape;  // of the unreduced loss and of lse
  c10::SymInt rows, classes;            // symbols where a compiler traces with dynamic shapes
  Reduction reduction;
  at::ScalarType real;  // float64 for float64 input, else float32: of loss, lse and all sums
  bool probabilities;   // the target's kind
};
CrossEntropyContract check_cross_entropy(const char* op, const CrossEntropyArguments& arguments);

// IndexError where a class index is out of range. Waits for the device; the CPU checks every call.
void check_targets(const char* op, const CrossEntropyArguments& arguments,
                   const CrossEntropyContract& contract);

// A call of the kernels, and the tensors that its pointers point into.
struct PreparedCrossEntropy {
  CrossEntropyCall call = {};
  std::vector<at::Tensor> kept;

  const at::Tensor& keep(at::Tensor tensor) { return kept.emplace_back(std::move(tensor)); }
};

// All of the call that `totals` depends on.
PreparedCrossEntropy prepare_targets(const CrossEntropyArguments& arguments,
                                     const CrossEntropyContract& contract);

// Where a tensor's values are as contiguous Reals on the input's device; null where it is
// undefined.
const void* keep_reals(const at::Tensor& tensor, const CrossEntropyContract& contract,
                       const at::Tensor& input, PreparedCrossEntropy& prepared);

// Real [2], on the input's device: the divisor of the summed losses, and the sum of class weights.
at::Tensor cross_entropy_totals(const char* op, const CrossEntropyArguments& arguments,
                                const CrossEntropyContract& contract);

// What one pass over the logits is to fill. All are contiguous Reals by row, except `gradient` and
// `target_gradient`, which have the shapes and types of input and target.
struct CrossEntropyPass {
  at::Tensor totals;
  at::Tensor loss, lse;                    // undefined: not wanted
  at::Tensor gradient, target_gradient;    // undefined: not wanted; `gradient` may be the input
  at::Tensor upstream_loss, upstream_lse;  // 0-d or by row; undefined: 1, and 0
};
void run_cross_entropy(const CrossEntropyArguments& arguments, const CrossEntropyContract& contract,
                       const CrossEntropyPass& pass);

// Real, 0-d: sum of losses / divisor.
at::Tensor total_loss(const at::Tensor& loss, const at::Tensor& totals);

// gradient *= factor (Real, 0-d), without a pass over memory where the factor is 1.
void scale_gradient(const at::Tensor& gradient, const at::Tensor& factor);

// For eager Python: checks class indices on the device if `check` is "sync", then calls the op.
std::tuple<at::Tensor, at::Tensor> cross_entropy_eager(const CrossEntropyArguments& arguments,
                                                       const std::optional<std::string>& check);

// The contract alone, for the composite that stands in for the op under transforms.
void check_cross_entropy_eager(const CrossEntropyArguments& arguments);

// The same for linear_cross_entropy, whose input is that of the linear layer.
std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_eager(
    const CrossEntropyArguments& arguments, const at::Tensor& linear_weight,
    const std::optional<at::Tensor>& linear_bias, int64_t chunk_rows,
    const std::optional<std::string>& check);
void check_linear_cross_entropy_eager(const CrossEntropyArguments& arguments,
                                      const at::Tensor& linear_weight,
                                      const std::optional<at::Tensor>& linear_bias,
                                      int64_t chunk_rows);

}  // namespace regops
