// Sum of squares. Once per instruction set.

namespace regops::cpu::REGOPS_ISA {

// Every sum in double, in one order for all instruction sets: eight partial sums, four of each.
typedef double Doubles __attribute__((vector_size(64)));

template <class Real>
static double squares_of(const Real* x, int64_t n) {
  typedef Real Reals __attribute__((vector_size(8 * sizeof(Real))));
  constexpr int kSums = 4, kStride = 8 * kSums;
  Doubles sums[kSums] = {};
  const auto add = [&](const Real* from) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) {
      Reals part;
      std::memcpy(&part, from + 8 * u, sizeof part);
      const Doubles wide = __builtin_convertvector(part, Doubles);
      sums[u] += wide * wide;
    }
  };
  int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    __builtin_prefetch(x + i + 4096 / sizeof(Real));
    __builtin_prefetch(x + i + 4096 / sizeof(Real) + kStride / 2);
    add(x + i);
  }
  Real rest[kStride] = {};
  std::memcpy(rest, x + i, (n - i) * sizeof(Real));
  add(rest);
  const Doubles sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace regops::cpu::REGOPS_ISA
