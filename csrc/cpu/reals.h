// Elements of any type as Reals, in which kernels compute: double for double, else float. After
// half_floats.h; once per instruction set.

namespace regops::cpu::REGOPS_ISA {

template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// n elements to Reals and back, round to nearest even.
template <class T>
static inline __attribute__((always_inline)) void widen(const T* from, RealOf<T>* to, int64_t n) {
  if constexpr (std::is_same_v<T, BFloat16>) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      to[i] = float_from_bits(static_cast<uint32_t>(from[i].bits) << 16);
    }
  } else if constexpr (std::is_same_v<T, Half>) {
    half_to_float(from, to, n);
  } else {
    std::memcpy(to, from, n * sizeof(T));
  }
}

static inline __attribute__((always_inline)) BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
  const uint32_t quiet_nan = bits | 0x00400000u;  // rounding could carry it into an infinity
  return {static_cast<uint16_t>((value != value ? quiet_nan : rounded) >> 16)};
}

template <class T>
static inline __attribute__((always_inline)) void narrow(const RealOf<T>* from, T* to, int64_t n) {
  if constexpr (std::is_same_v<T, BFloat16>) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i]);
  } else if constexpr (std::is_same_v<T, Half>) {
    float_to_half(from, to, n);
  } else {
    std::memcpy(to, from, n * sizeof(T));
  }
}

// Elements [begin, begin + n) of an array whose type is known at run time, but not its RealOf.
template <class Real>
static inline void read_reals(DType dtype, const void* from, int64_t begin, int64_t n, Real* to) {
  if constexpr (std::is_same_v<Real, float>) {
    if (dtype == DType::bfloat16) return widen(static_cast<const BFloat16*>(from) + begin, to, n);
    if (dtype == DType::float16) return widen(static_cast<const Half*>(from) + begin, to, n);
  }
  widen(static_cast<const Real*>(from) + begin, to, n);
}

template <class Real>
static inline void write_reals(DType dtype, const Real* from, void* to, int64_t begin, int64_t n) {
  if constexpr (std::is_same_v<Real, float>) {
    if (dtype == DType::bfloat16) return narrow(from, static_cast<BFloat16*>(to) + begin, n);
    if (dtype == DType::float16) return narrow(from, static_cast<Half*>(to) + begin, n);
  }
  narrow(from, static_cast<Real*>(to) + begin, n);
}

}  // namespace regops::cpu::REGOPS_ISA
