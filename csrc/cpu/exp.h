// exp of vectors. Once per instruction set.

namespace regops::cpu::REGOPS_ISA {

// x = n ln 2 + r with whole n and |r| <= ln 2 / 2. ln 2 in two parts, the first short enough for
// exact products with n (W. Cody, W. Waite, "Software Manual for the Elementary Functions", 1980).
template <class Real>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kRounder = 0x1.8p23f;  // adding it leaves n in the lowest bits
  static constexpr int kMantissaBits = 23;
  static constexpr float kSmallest = -87.3365402f;  // below: exp < 2^-126, the smallest normal
  // e^r = 1 + r + r^2 (...), of least relative error (3.1e-9) by Remez' algorithm.
  static constexpr int kDegree = 6;
  static constexpr float kTerms[] = {1.0f,          1.0f,          0.499999934f,  0.166665206f,
                                     0.0416683880f, 0.0083687169f, 0.00138145986f};
};
template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.4426950408889634, kLn2High = 6.93145751953125e-1,
                          kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr int kMantissaBits = 52;
  static constexpr double kSmallest = -708.39641853226408;  // 2^-1022
  static constexpr int kDegree = 13;                        // Taylor: off by 4e-18
  static constexpr double kTerms[] = {1.0,
                                      1.0,
                                      1.0 / 2,
                                      1.0 / 6,
                                      1.0 / 24,
                                      1.0 / 120,
                                      1.0 / 720,
                                      1.0 / 5040,
                                      1.0 / 40320,
                                      1.0 / 362880,
                                      1.0 / 3628800,
                                      1.0 / 39916800,
                                      1.0 / 479001600,
                                      1.0 / 6227020800};
};

// e^x for x <= 0: 0 where it is no normal number, nan for nan; anything for x > 0.
//
// Largest error, over all floats and 20 million doubles: 0.88 ulp, in the baseline (no fused
// multiply-add) 1.18.
//
// `kCount` vectors advance together: a chain of ten dependent steps a vector, one vector after the
// other, leaves half of the multipliers idle.
template <class Real, int kCount>
static inline __attribute__((always_inline)) void exp_of_negative(const Vector<Real> (&x)[kCount],
                                                                  Vector<Real> (&out)[kCount]) {
  using Constants = ExpConstants<Real>;
  const Vector<Real> rounder = splat<Real>(Constants::kRounder);
  Vector<Real> shifted[kCount], n[kCount], r[kCount], power[kCount];
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) {
    shifted[u] = multiply_add(x[u], splat<Real>(Constants::kLog2e), rounder);
  }
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) n[u] = shifted[u] - rounder;
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) {
    r[u] = multiply_add(n[u], splat<Real>(-Constants::kLn2High), x[u]);
  }
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) {
    r[u] = multiply_add(n[u], splat<Real>(-Constants::kLn2Low), r[u]);
    power[u] = splat<Real>(Constants::kTerms[Constants::kDegree]);
  }
#pragma GCC unroll 16
  for (int term = Constants::kDegree - 1; term >= 0; --term) {
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) {
      power[u] = multiply_add(power[u], r[u], splat<Real>(Constants::kTerms[term]));
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < kCount; ++u) {
#if REGOPS_VECTOR_BYTES == 64
    // 2^n e^r, and 0 where x < kSmallest: "not less than" is true of nan.
    if constexpr (std::is_same_v<Real, float>) {
      const __mmask16 normal =
          _mm512_cmp_ps_mask((__m512)x[u], _mm512_set1_ps(Constants::kSmallest), _CMP_NLT_UQ);
      out[u] = (Vector<Real>)_mm512_maskz_scalef_ps(normal, (__m512)power[u], (__m512)n[u]);
    } else {
      const __mmask8 normal =
          _mm512_cmp_pd_mask((__m512d)x[u], _mm512_set1_pd(Constants::kSmallest), _CMP_NLT_UQ);
      out[u] = (Vector<Real>)_mm512_maskz_scalef_pd(normal, (__m512d)power[u], (__m512d)n[u]);
    }
#else
    const auto exponent = (VectorBits<Real>)shifted[u] << Constants::kMantissaBits;
    const auto scaled = (Vector<Real>)((VectorBits<Real>)power[u] + exponent);
    const Vector<Real> zero = {};
    const Vector<Real> zero_or_nan = larger(zero, x[u]);  // a nan did not survive the addition
    out[u] = x[u] >= splat<Real>(Constants::kSmallest) ? scaled : zero_or_nan;
#endif
  }
}

}  // namespace regops::cpu::REGOPS_ISA
