// bfloat16 and float16 to float32 and back, round to nearest even. Once per instruction set.

namespace regops::cpu::REGOPS_ISA {

static inline __attribute__((always_inline)) float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline __attribute__((always_inline)) uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The upper half of a float, rounded to nearest even, in its place; the lower half is garbage.
//
// The float is the product of a bfloat16 and a finite number. Such a product is nan only when the
// bfloat16 is, and then its lower 16 bits are 0, so rounding cannot carry a nan into an infinity:
// the test that a general conversion needs is left out.
static inline __attribute__((always_inline)) uint32_t round_upper_half(float scaled) {
  const uint32_t bits = bits_from_float(scaled);
  return bits + 0x7FFFu + (bits >> 16 & 1u);
}

// y = x * scale. Two at a time, as the halves of a word: a fifth to a quarter faster than widening
// and narrowing each.
static inline __attribute__((always_inline)) void scale_bfloat16(const BFloat16* x, BFloat16* y,
                                                                 int64_t n, float scale) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n / 2; ++i) {
    uint32_t pair;
    std::memcpy(&pair, x + 2 * i, sizeof pair);
    const uint32_t low = round_upper_half(float_from_bits(pair << 16) * scale);
    const uint32_t high = round_upper_half(float_from_bits(pair & 0xFFFF0000u) * scale);
    pair = low >> 16 | (high & 0xFFFF0000u);
    std::memcpy(y + 2 * i, &pair, sizeof pair);
  }
  if (n % 2 != 0) {
    const float last = float_from_bits(static_cast<uint32_t>(x[n - 1].bits) << 16);
    y[n - 1].bits = static_cast<uint16_t>(round_upper_half(last * scale) >> 16);
  }
}

// GCC 12 does not vectorize half precision conversions, so whole arrays are converted by the F16C
// instructions where the set has them, else by integer arithmetic with the same results.
static inline __attribute__((always_inline)) float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7FFFu;
  const uint32_t special = magnitude >= 0x7C00u ? 0x70000000u : 0u;  // inf and nan: exponent to 255
  const uint32_t quiet = magnitude > 0x7C00u ? 0x00400000u : 0u;
  // 2^112 moves the exponent's bias from 15 to 127, and turns subnormals into normals on the way.
  const float scaled = float_from_bits(magnitude << 13) * 0x1p112f;
  const uint32_t bits =
      special != 0u ? ((magnitude << 13) | special | quiet | 0x0F800000u) : bits_from_float(scaled);
  return float_from_bits(sign | bits);
}

static inline __attribute__((always_inline)) Half to_half(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u | (magnitude >> 13 & 0x3FFu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and more
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; the addition rounds at 2^-24
    half = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

static inline void half_to_float(const Half* half, float* wide, int64_t n) {
  int64_t i = 0;
#if REGOPS_VECTOR_BYTES == 64
  for (; i + 16 <= n; i += 16) {
    _mm512_storeu_ps(wide + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(half + i))));
  }
#elif REGOPS_VECTOR_BYTES == 32
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(half + i))));
  }
#endif
  for (; i < n; ++i) wide[i] = to_float(half[i]);
}

static inline void float_to_half(const float* wide, Half* half, int64_t n) {
  int64_t i = 0;
#if REGOPS_VECTOR_BYTES == 64
  for (; i + 16 <= n; i += 16) {
    _mm256_storeu_si256((__m256i*)(half + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
  }
#elif REGOPS_VECTOR_BYTES == 32
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128((__m128i*)(half + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) half[i] = to_half(wide[i]);
}

}  // namespace regops::cpu::REGOPS_ISA
