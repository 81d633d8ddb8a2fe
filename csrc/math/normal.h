// Two standard normal numbers from two random words.
//
// G. E. P. Box, M. E. Muller, "A Note on the Generation of Random Normal Deviates", Annals of
// Mathematical Statistics 29 (1958):
//   z0 = sqrt(-2 ln u) cos(2 pi v),    z1 = sqrt(-2 ln u) sin(2 pi v)
// with u = (word0 + 1/2) / 2^32 and v = word1 / 2^32, so |z| <= 6.8. Element i of a tensor takes
// pair i mod 4 div 2 of block i div 4: z0 where i is even, z1 where it is odd. The polynomials are
// of least relative error (log 6e-9, sine 3e-9, cosine 6e-11) and the same on every device, which
// leaves a few ulp for the roundings of fused multiply-adds.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/host_device.h"

namespace regops {

struct NormalPair {
  float first, second;
};

// ln u for normal u in (0, 1]: u = 2^n m with m in [sqrt(1/2), sqrt(2)), ln m in powers of m - 1.
REGOPS_HOST_DEVICE float log_of_uniform(float u) {
  uint32_t bits;
  memcpy(&bits, &u, sizeof bits);
  const uint32_t root_half = 0x3F3504F3u;
  const int32_t n = static_cast<int32_t>(bits - root_half) >> 23;
  bits -= static_cast<uint32_t>(n) << 23;
  float m;
  memcpy(&m, &bits, sizeof m);
  const float x = m - 1.0f;
  float p = -0.0763442963f;
  p = p * x + 0.127615497f;
  p = p * x - 0.131601945f;
  p = p * x + 0.142017618f;
  p = p * x - 0.166233569f;
  p = p * x + 0.200012267f;
  p = p * x - 0.250008225f;
  p = p * x + 0.333333313f;
  const float square = x * x;
  // ln 2 in two parts, the first short enough for exact products with n.
  const float exponent = static_cast<float>(n);
  const float low = p * square * x - 0.5f * square + exponent * -2.12194440e-4f;
  return x + low + exponent * 0.693359375f;
}

REGOPS_HOST_DEVICE NormalPair normal_pair(uint32_t word0, uint32_t word1) {
  const float u = static_cast<float>(word0) * 0x1p-32f + 0x1p-33f;
  const float radius = std::sqrt(-2.0f * log_of_uniform(u));
  // 2 pi v = quadrant pi / 2 + f pi / 2 with |f| <= 1/2.
  const uint32_t quadrant = (word1 + 0x20000000u) >> 30;
  const float f = static_cast<float>(static_cast<int32_t>(word1 - (quadrant << 30))) * 0x1p-30f;
  const float t = f * f;
  const float sine =
      f * (((-0.00460165786f * t + 0.0796800330f) * t - 0.645963490f) * t + 1.57079637f);
  const float cosine =
      ((((0.000903362990f * t - 0.0208599363f) * t + 0.253669173f) * t - 1.23370051f) * t) + 1.0f;
  const bool odd = (quadrant & 1u) != 0u;
  const float c = odd ? -sine : cosine;
  const float s = odd ? cosine : sine;
  const float sign = (quadrant & 2u) != 0u ? -radius : radius;
  return {sign * c, sign * s};
}

}  // namespace regops
