// Dropout, as a function of one element and the random bits that are its own.
//
// N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, "Dropout: A Simple Way
// to Prevent Neural Networks from Overfitting", JMLR 15 (2014), in the inverted form that torch
// uses:
//   y = x / (1 - p) where kept, 0 where dropped;    dx = dy / (1 - p) where kept, 0 where dropped.
// Forward and backward are therefore one function.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/host_device.h"
#include "math/philox.h"

namespace regops {

// Elements served by one group of random bits: the 8 half-words of one Philox block.
constexpr int kDropoutGroup = 8;

// An element is kept iff its own random bits, read as an unsigned integer, are >= threshold.
// 16 bits an element: 32 would leave a bf16 kernel on an H200 short of integer throughput, 8 would
// bias p by up to 0.2 %. A p that 16 bits cannot tell from 0 or 1 is rare, and takes 32.
struct DropoutRule {
  uint32_t threshold;  // round(p 2^bits)
  bool fine;           // bits = 32 instead of 16
  float scale;         // 1 / (1 - p) for the p in force, threshold / 2^bits: E[y] = x exactly
  double scale_f64;    // the same for float64
};

// Requires 0 < p < 1.
REGOPS_HOST_DEVICE DropoutRule dropout_rule(double p) {
  constexpr double kCoarse = 65536.0, kFine = 4294967296.0;
  DropoutRule rule;
  double threshold = std::nearbyint(p * kCoarse);
  rule.fine = p * kCoarse < 1.0 || (1.0 - p) * kCoarse < 1.0;
  if (rule.fine) {
    // At least one value drops and one keeps: p > 0 is never silently 0, nor p < 1 silently 1.
    threshold = std::fmin(std::fmax(std::nearbyint(p * kFine), 1.0), kFine - 1.0);
  }
  const double range = rule.fine ? kFine : kCoarse;
  rule.threshold = static_cast<uint32_t>(threshold);
  rule.scale_f64 = range / (range - threshold);
  rule.scale = static_cast<float>(rule.scale_f64);
  return rule;
}

// Bit k of the result says whether element 8 group + k is kept.
// Element i takes half-word i mod 8 of block i div 8; finely, word i mod 4 of block i div 4.
template <bool kFine>
REGOPS_HOST_DEVICE uint32_t dropout_keep_bits(Key key, uint64_t group, uint32_t threshold) {
  uint32_t keep = 0;
  if constexpr (kFine) {
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int half = 0; half < 2; ++half) {
      const PhiloxBlock block = variate_block(key, 2 * group + half);
      for (int k = 0; k < 4; ++k) {
        keep |= static_cast<uint32_t>(block.word[k] >= threshold) << (4 * half + k);
      }
    }
  } else {
    const PhiloxBlock block = variate_block(key, group);
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int k = 0; k < 4; ++k) {
      keep |= static_cast<uint32_t>((block.word[k] & 0xFFFFu) >= threshold) << (2 * k);
      keep |= static_cast<uint32_t>(block.word[k] >= threshold << 16) << (2 * k + 1);
    }
  }
  return keep;
}

// A dropped element is selected to 0, not multiplied by it: an inf or nan that is dropped is gone.
// (CPU kernels compute the same in two steps, x * scale and a selection that compilers vectorize.)
template <class Compute>
REGOPS_HOST_DEVICE Compute dropout_element(Compute x, bool keep, Compute scale) {
  return keep ? x * scale : Compute(0);
}

}  // namespace regops
