// Vectors of floats and of doubles: GCC's vector extensions, and the little that they lack.
//
// For sums and maxima, whose order the compiler may not change and which it therefore does not
// vectorize. Once per instruction set.

namespace regops::cpu::REGOPS_ISA {

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(REGOPS_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(REGOPS_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(REGOPS_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(REGOPS_VECTOR_BYTES)));
};
template <class Real>
using Vector = typename VectorOf<Real>::Type;
template <class Real>
using VectorBits = typename VectorOf<Real>::Bits;
template <class Real>
constexpr int kLanes = REGOPS_VECTOR_BYTES / sizeof(Real);

template <class Real>
static inline __attribute__((always_inline)) Vector<Real> splat(Real value) {
  return value - Vector<Real>{};  // "+" would have to turn -0 into 0
}

template <class Real>
static inline __attribute__((always_inline)) Vector<Real> load(const Real* from) {
  Vector<Real> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class Real>
static inline __attribute__((always_inline)) void store(Real* to, Vector<Real> vector) {
  std::memcpy(to, &vector, sizeof vector);
}

#if REGOPS_VECTOR_BYTES == 32
// Lanes below `count` set.
template <class Real>
static inline __attribute__((always_inline)) __m256i first_lanes(int64_t count) {
  using Lane = std::conditional_t<std::is_same_v<Real, float>, int32_t, int64_t>;
  typedef Lane Signed __attribute__((vector_size(32)));
  Signed lane;
  for (int l = 0; l < kLanes<Real>; ++l) lane[l] = l;
  return (__m256i)(lane < Signed{} + static_cast<Lane>(count));
}
#endif

// The first `count` elements, then `fill`: reads nothing behind them.
template <class Real>
static inline __attribute__((always_inline)) Vector<Real> load_part(const Real* from, int64_t count,
                                                                    Real fill) {
#if REGOPS_VECTOR_BYTES == 64
  const uint32_t lanes = (1u << count) - 1u;
  if constexpr (std::is_same_v<Real, float>) {
    return (Vector<Real>)_mm512_mask_loadu_ps((__m512)splat(fill), lanes, from);
  } else {
    return (Vector<Real>)_mm512_mask_loadu_pd((__m512d)splat(fill), lanes, from);
  }
#elif REGOPS_VECTOR_BYTES == 32
  const __m256i lanes = first_lanes<Real>(count);
  if constexpr (std::is_same_v<Real, float>) {
    return (Vector<Real>)_mm256_blendv_ps((__m256)splat(fill), _mm256_maskload_ps(from, lanes),
                                          (__m256)lanes);
  } else {
    return (Vector<Real>)_mm256_blendv_pd((__m256d)splat(fill), _mm256_maskload_pd(from, lanes),
                                          (__m256d)lanes);
  }
#else
  Real values[kLanes<Real>];
  for (int i = 0; i < kLanes<Real>; ++i) values[i] = i < count ? from[i] : fill;
  return load(values);
#endif
}

// The first `count` lanes, and nothing behind them.
template <class Real>
static inline __attribute__((always_inline)) void store_part(Real* to, int64_t count,
                                                             Vector<Real> vector) {
#if REGOPS_VECTOR_BYTES == 64
  const uint32_t lanes = (1u << count) - 1u;
  if constexpr (std::is_same_v<Real, float>) {
    _mm512_mask_storeu_ps(to, lanes, (__m512)vector);
  } else {
    _mm512_mask_storeu_pd(to, lanes, (__m512d)vector);
  }
#elif REGOPS_VECTOR_BYTES == 32
  const __m256i lanes = first_lanes<Real>(count);
  if constexpr (std::is_same_v<Real, float>) {
    _mm256_maskstore_ps(to, lanes, (__m256)vector);
  } else {
    _mm256_maskstore_pd(to, lanes, (__m256d)vector);
  }
#else
  for (int i = 0; i < count; ++i) to[i] = vector[i];
#endif
}

// a b + c: one rounding where the instruction set has it, else two.
static inline __attribute__((always_inline)) Vector<float> multiply_add(Vector<float> a,
                                                                        Vector<float> b,
                                                                        Vector<float> c) {
#if REGOPS_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif REGOPS_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

static inline __attribute__((always_inline)) Vector<double> multiply_add(Vector<double> a,
                                                                         Vector<double> b,
                                                                         Vector<double> c) {
#if REGOPS_VECTOR_BYTES == 64
  return (Vector<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif REGOPS_VECTOR_BYTES == 32
  return (Vector<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// The same of single values, for loops that the compiler vectorizes.
template <class Real>
static inline __attribute__((always_inline)) Real multiply_add(Real a, Real b, Real c) {
#if REGOPS_VECTOR_BYTES >= 32
  if constexpr (std::is_same_v<Real, float>) return __builtin_fmaf(a, b, c);
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// a where it is larger, else b, also where either is nan.
template <class V>
static inline __attribute__((always_inline)) V larger(V a, V b) {
  return a > b ? a : b;
}

// A vector of half as many lanes: of the first half, or the second.
template <class V>
struct HalfOf {
  typedef std::remove_cvref_t<decltype(V{}[0])> Lane;
  typedef Lane Type __attribute__((vector_size(sizeof(V) / 2)));
};

template <class V>
static inline __attribute__((always_inline)) typename HalfOf<V>::Type half_of(V vector,
                                                                              bool second) {
  // By an instruction: a vector whose bytes are copied stays in memory wherever it is used before.
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (sizeof(V) == 64) {
    return (typename HalfOf<V>::Type)(second ? _mm512_extractf64x4_pd((__m512d)vector, 1)
                                             : _mm512_castpd512_pd256((__m512d)vector));
  }
#endif
#if REGOPS_VECTOR_BYTES >= 32
  if constexpr (sizeof(V) == 32) {
    return (typename HalfOf<V>::Type)(second ? _mm256_extractf128_pd((__m256d)vector, 1)
                                             : _mm256_castpd256_pd128((__m256d)vector));
  }
#endif
  typename HalfOf<V>::Type half;
  std::memcpy(&half, reinterpret_cast<const char*>(&vector) + second * sizeof half, sizeof half);
  return half;
}

template <class V>
static inline __attribute__((always_inline)) auto largest_lane(V vector) {
  if constexpr (sizeof(V) > 16) {
    return largest_lane(larger(half_of(vector, false), half_of(vector, true)));
  } else {
    auto largest = vector[0];
    for (unsigned l = 1; l < sizeof vector / sizeof vector[0]; ++l) {
      const auto lane = vector[l];
      if (lane > largest) largest = lane;
    }
    return largest;
  }
}

// In double.
template <class V>
static inline __attribute__((always_inline)) double sum_of_lanes(V vector) {
  if constexpr (sizeof(V) == REGOPS_VECTOR_BYTES && sizeof vector[0] == sizeof(float)) {
    return sum_of_lanes(__builtin_convertvector(half_of(vector, false), Vector<double>) +
                        __builtin_convertvector(half_of(vector, true), Vector<double>));
  } else if constexpr (sizeof(V) > 16) {
    return sum_of_lanes(half_of(vector, false) + half_of(vector, true));
  } else {
    return vector[0] + vector[1];
  }
}

}  // namespace regops::cpu::REGOPS_ISA
