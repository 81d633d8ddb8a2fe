// Vectors of weights of which random bits drop some. After vector.h; once per instruction set.

namespace regops::cpu::REGOPS_ISA {
namespace {  // so that the linker sees no member

// Which lanes are kept: a mask register where there are such, else all bits of a lane.
#if REGOPS_VECTOR_BYTES == 64
template <class Real>
using Keep = std::conditional_t<std::is_same_v<Real, float>, __mmask16, __mmask8>;
#else
template <class Real>
using Keep = decltype(Vector<Real>{} < Vector<Real>{});
#endif

#if REGOPS_VECTOR_BYTES < 64
// Bits in lanes as wide as a Real.
template <class Real, class Bits>
static inline __attribute__((always_inline)) VectorBits<Real> wide_bits(const Bits* bits) {
#if REGOPS_VECTOR_BYTES == 32  // GCC 12 converts by halves
  const __m128i* narrow = reinterpret_cast<const __m128i*>(bits);
  if constexpr (sizeof(Real) == 4 && sizeof(Bits) == 2) {
    return (VectorBits<Real>)_mm256_cvtepu16_epi32(_mm_loadu_si128(narrow));
  } else if constexpr (sizeof(Real) == 4) {
    return (VectorBits<Real>)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
  } else if constexpr (sizeof(Bits) == 2) {
    return (VectorBits<Real>)_mm256_cvtepu16_epi64(_mm_loadl_epi64(narrow));
  } else {
    return (VectorBits<Real>)_mm256_cvtepu32_epi64(_mm_loadu_si128(narrow));
  }
#else
  typedef Bits Narrow __attribute__((vector_size(kLanes<Real> * sizeof(Bits))));
  Narrow narrow;
  std::memcpy(&narrow, bits, sizeof narrow);
  return __builtin_convertvector(narrow, VectorBits<Real>);
#endif
}
#endif

template <class Real, class Bits>
static inline __attribute__((always_inline)) Keep<Real> keep(const Bits* bits, Bits threshold) {
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (sizeof(Real) == 4 && sizeof(Bits) == 2) {
    return _mm256_cmpge_epu16_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)),
                                   _mm256_set1_epi16(threshold));
  } else if constexpr (sizeof(Real) == 4) {
    return _mm512_cmpge_epu32_mask(_mm512_loadu_si512(bits), _mm512_set1_epi32(threshold));
  } else if constexpr (sizeof(Bits) == 2) {
    return _mm_cmpge_epu16_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits)),
                                _mm_set1_epi16(threshold));
  } else {
    return _mm256_cmpge_epu32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)),
                                   _mm256_set1_epi32(threshold));
  }
#else
  if constexpr (REGOPS_VECTOR_BYTES == 16 && sizeof(Real) == 8) {  // SSE2 compares no 64 bits
    return Keep<Real>{-int64_t{bits[0] >= threshold}, -int64_t{bits[1] >= threshold}};
  } else if constexpr (sizeof(Bits) < sizeof(Real)) {  // signed comparisons are one instruction
    return (Keep<Real>)wide_bits<Real>(bits) > Keep<Real>{} + (threshold - 1);
  } else {
    return wide_bits<Real>(bits) >= VectorBits<Real>{} + threshold;
  }
#endif
}

template <class Real>
static inline __attribute__((always_inline)) Vector<Real> value_or_zero(Keep<Real> keep,
                                                                        Vector<Real> value) {
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<Real, float>) {
    return (Vector<Real>)_mm512_maskz_mov_ps(keep, (__m512)value);
  } else {
    return (Vector<Real>)_mm512_maskz_mov_pd(keep, (__m512d)value);
  }
#else
  return (Vector<Real>)((Keep<Real>)value & keep);
#endif
}

// c, and a b where it is kept.
template <class Real>
static inline __attribute__((always_inline)) Vector<Real> add_kept(Keep<Real> keep, Vector<Real> a,
                                                                   Vector<Real> b, Vector<Real> c) {
#if REGOPS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<Real, float>) {
    return (Vector<Real>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)c, keep);
  } else {
    return (Vector<Real>)_mm512_mask3_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c, keep);
  }
#else
  return c + value_or_zero<Real>(keep, a * b);
#endif
}

// A row's vectors are whole but the last, of which the first `count` lanes are there.
struct Whole {
  template <class Real>
  Vector<Real> load(const Real* from) const {
    return REGOPS_ISA::load(from);
  }
  template <class Real>
  void store(Real* to, Vector<Real> vector) const {
    REGOPS_ISA::store(to, vector);
  }
};

struct Part {
  int64_t count;
  template <class Real>
  Vector<Real> load(const Real* from) const {
    return load_part(from, count, Real(0));
  }
  template <class Real>
  void store(Real* to, Vector<Real> vector) const {
    store_part(to, count, vector);
  }
};

template <class Real, class Step>
static inline __attribute__((always_inline)) void for_vectors(int64_t n, Step step) {
  int64_t k = 0;
  for (; k + kLanes<Real> <= n; k += kLanes<Real>) step(k, Whole{});
  if (k < n) step(k, Part{n - k});
}

}  // namespace
}  // namespace regops::cpu::REGOPS_ISA
