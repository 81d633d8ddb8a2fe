// The three products of a DropConnect layer, on 2-d tensors of one dtype and device.
#pragma once

#include <ATen/core/Tensor.h>

#include "dropconnect_linear_call.h"

namespace regops {

// The weights and their masks. 0 < p < 1; no size is 0.
struct DropConnectWeights {
  at::Tensor weight;  // (out_features, in_features)
  DropoutRule rule;
  at::Tensor key;
  bool per_sample;
};

// The same masks without the scale.
DropoutRule unscaled(DropoutRule rule);

// Drops elements of a contiguous tensor whose logical indices begin at `first`.
void drop(const at::Tensor& tensor, uint64_t first, const DropoutRule& rule, const at::Tensor& key);

// output = s x (M o W)^T + bias; the bias is undefined, (out_features) or (rows, out_features).
void dropconnect_output(const DropConnectWeights& weights, const at::Tensor& input,
                        const at::Tensor& bias, const at::Tensor& output);

// grad_input = s dy (M o W), grad_weight = s M o (dy^T x), each where it is defined.
void dropconnect_gradients(const DropConnectWeights& weights, const at::Tensor& input,
                           const at::Tensor& grad_output, const at::Tensor& grad_input,
                           const at::Tensor& grad_weight);

// The parts of these two that are for a mask for each sample on the CPU.
void output_by_samples(const DropConnectWeights& weights, const at::Tensor& input,
                       const at::Tensor& bias, const at::Tensor& output);
void gradients_by_samples(const DropConnectWeights& weights, const at::Tensor& input,
                          const at::Tensor& grad_output, const at::Tensor& grad_input,
                          const at::Tensor& grad_weight);

// What kernels are told of dense tensors; grad_output may be undefined.
DropConnectCall dropconnect_call(const DropConnectWeights& weights, const at::Tensor& input,
                                 const at::Tensor& weight, const at::Tensor& grad_output);

}  // namespace regops
