// A float32 rounded up or down at random, so that the result is right on average: up with the
// probability that is the share of the gap below it.
//
// M. Hoehfeld, S. Fahlman, "Learning with Limited Precision Using the Cascade-Correlation
// Algorithm", IEEE Transactions on Neural Networks 3 (1992). Element i of a tensor takes half-word
// i mod 8 of block i div 8, as a mask does.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/host_device.h"

namespace regops {

// To the bits of a bfloat16, whose gap is 2^16 float32s: exactly unbiased.
REGOPS_HOST_DEVICE uint16_t stochastic_bfloat16(float value, uint32_t random16) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + random16;
  const uint32_t quiet_nan = bits | 0x00400000u;  // the sum could carry it into an infinity
  return static_cast<uint16_t>((value != value ? quiet_nan : rounded) >> 16);
}

// To the bits of a float16, whose gap is 2^13 float32s, or 2^-24 below 2^-14. There a float32's own
// bits may reach further down than 16 random ones: the probability is off by less than 2^-16.
REGOPS_HOST_DEVICE uint16_t stochastic_float16(float value, uint32_t random16) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  float size;
  memcpy(&size, &magnitude, sizeof size);
  // Normal: the random bits below the last one kept, and the exponent's bias from 127 to 15.
  uint32_t half = (magnitude + (random16 >> 3) - 0x38000000u) >> 13;
  if (magnitude < 0x38800000u) {  // subnormal, in units of 2^-24
    half = static_cast<uint32_t>(size * 0x1p24f + static_cast<float>(random16) * 0x1p-16f);
  }
  if (half >= 0x7C00u) half = magnitude >= 0x477FF000u ? 0x7C00u : 0x7BFFu;  // from 65520 infinite
  if (magnitude > 0x7F800000u) half = 0x7E00u;
  return static_cast<uint16_t>(sign | half);
}

}  // namespace regops
