// One operation a kernel, applied to arrays, for comparison with numpy and torch.
// `OP1(name, result, argument, expression in a)`, OP2 and OP3 with b and c. WORD asm operands are
// 32 bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define LAUNCH(name) name<<<(n + 255) / 256, 256>>>
#define INDEX                                   \
  const int i = blockIdx.x * 256 + threadIdx.x; \
  if (i >= n) return
#define OP1(name, R, A, expression)                      \
  __global__ void name(R* out, const A* x, int n) {      \
    INDEX;                                               \
    const A a = x[i];                                    \
    out[i] = (expression);                               \
  }                                                      \
  extern "C" int run_##name(R* out, const A* x, int n) { \
    LAUNCH(name)(out, x, n);                             \
    return cudaGetLastError();                           \
  }
#define OP2(name, R, A, B, expression)                               \
  __global__ void name(R* out, const A* x, const B* y, int n) {      \
    INDEX;                                                           \
    const A a = x[i];                                                \
    const B b = y[i];                                                \
    out[i] = (expression);                                           \
  }                                                                  \
  extern "C" int run_##name(R* out, const A* x, const B* y, int n) { \
    LAUNCH(name)(out, x, y, n);                                      \
    return cudaGetLastError();                                       \
  }
#define OP3(name, R, A, B, C, expression)                                        \
  __global__ void name(R* out, const A* x, const B* y, const C* z, int n) {      \
    INDEX;                                                                       \
    const A a = x[i];                                                            \
    const B b = y[i];                                                            \
    const C c = z[i];                                                            \
    out[i] = (expression);                                                       \
  }                                                                              \
  extern "C" int run_##name(R* out, const A* x, const B* y, const C* z, int n) { \
    LAUNCH(name)(out, x, y, z, n);                                               \
    return cudaGetLastError();                                                   \
  }

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

__device__ __half half_of(u16 bits) { return __ushort_as_half(bits); }
__device__ __nv_bfloat16 bfloat_of(u16 bits) { return __ushort_as_bfloat16(bits); }
__device__ u16 bits_of(__half value) { return __half_as_ushort(value); }
__device__ u16 bits_of(__nv_bfloat16 value) { return __bfloat16_as_ushort(value); }
__device__ u32 bits_of(__half2 value) { return reinterpret_cast<u32&>(value); }
__device__ u32 bits_of(__nv_bfloat162 value) { return reinterpret_cast<u32&>(value); }
__device__ __half2 half2_of(u32 bits) { return reinterpret_cast<__half2&>(bits); }
__device__ __nv_bfloat162 bfloat2_of(u32 bits) { return reinterpret_cast<__nv_bfloat162&>(bits); }

// Conversions.
OP1(half_to_float, float, u16, __half2float(half_of(a)))
OP1(bfloat_to_float, float, u16, __bfloat162float(bfloat_of(a)))
OP1(float_to_half, u16, float, bits_of(__float2half_rn(a)))
OP1(float_to_bfloat, u16, float, bits_of(__float2bfloat16_rn(a)))
OP1(float_to_bfloat_rz, u16, float, bits_of(__float2bfloat16_rz(a)))
OP2(floats_to_half2, u32, float, float, bits_of(__floats2half2_rn(a, b)))
OP2(floats_to_bfloat2, u32, float, float, bits_of(__floats2bfloat162_rn(a, b)))
OP1(float_to_int, i32, float, __float2int_rz(a))
OP1(float_to_int_nearest, i32, float, __float2int_rn(a))
OP1(float_to_int_down, i32, float, __float2int_rd(a))
OP1(float_to_unsigned, u32, float, __float2uint_rz(a))
OP1(float_to_long, i64, float, __float2ll_rz(a))
OP1(int_to_float, float, i32, __int2float_rn(a))
OP1(int_to_float_down, float, i32, __int2float_rd(a))
OP1(unsigned_to_float, float, u32, __uint2float_rn(a))
OP1(unsigned_to_float_zero, float, u32, __uint2float_rz(a))
OP1(long_to_float, float, i64, __ll2float_rn(a))
OP1(double_to_float, float, double, static_cast<float>(a))
OP1(double_to_float_up, float, double, __double2float_ru(a))
OP1(float_saturate, float, float, __saturatef(a))
OP1(round_even, float, float, rintf(a))
OP1(round_down, float, float, floorf(a))
OP1(sign_extend, i64, u32, static_cast<i64>(static_cast<int8_t>(a)) + static_cast<int16_t>(a))

// Floating point.
OP2(add, float, float, float, __fadd_rn(a, b))
OP2(add_down, float, float, float, __fadd_rd(a, b))
OP2(multiply, float, float, float, __fmul_rn(a, b))
OP2(multiply_zero, float, float, float, __fmul_rz(a, b))
OP2(divide, float, float, float, __fdiv_rn(a, b))
OP1(square_root, float, float, __fsqrt_rn(a))
OP1(reciprocal, float, float, __frcp_rn(a))
OP3(fma32, float, float, float, float, __fmaf_rn(a, b, c))
OP3(fma32_up, float, float, float, float, __fmaf_ru(a, b, c))
OP3(fma64, double, double, double, double, __fma_rn(a, b, c))
OP2(minimum, float, float, float, fminf(a, b))
OP2(maximum, float, float, float, fmaxf(a, b))
OP2(copy_sign, float, float, float, copysignf(a, b))
OP2(less_or_unordered, i32, float, float, !(a >= b))
OP1(is_nan, i32, float, isnan(a))
OP2(add_half, u16, u16, u16, bits_of(__hadd_rn(half_of(a), half_of(b))))
OP2(multiply_half, u16, u16, u16, bits_of(__hmul_rn(half_of(a), half_of(b))))
OP3(fma_half, u16, u16, u16, u16, bits_of(__hfma(half_of(a), half_of(b), half_of(c))))
OP2(add_bfloat, u16, u16, u16, bits_of(__hadd_rn(bfloat_of(a), bfloat_of(b))))
OP2(multiply_bfloat, u16, u16, u16, bits_of(__hmul_rn(bfloat_of(a), bfloat_of(b))))
OP3(fma_bfloat, u16, u16, u16, u16, bits_of(__hfma(bfloat_of(a), bfloat_of(b), bfloat_of(c))))
OP2(multiply_half2, u32, u32, u32, bits_of(__hmul2_rn(half2_of(a), half2_of(b))))
OP3(fma_bfloat2, u32, u32, u32, u32, bits_of(__hfma2(bfloat2_of(a), bfloat2_of(b), bfloat2_of(c))))
OP1(exp2_approximate, float, float, exp2f(a))
OP1(log2_approximate, float, float, __log2f(a))

// Integers.
OP2(multiply_high, u32, u32, u32, __umulhi(a, b))
OP2(multiply_high_signed, i32, i32, i32, __mulhi(a, b))
OP2(multiply_high_64, u64, u64, u64, __umul64hi(a, b))
OP2(multiply_high_signed_64, i64, i64, i64, __mul64hi(a, b))
OP2(multiply_wide, u64, u32, u32, static_cast<u64>(a) * b)
OP2(multiply_wide_signed, i64, i32, i32, static_cast<i64>(a) * b + 1)
OP2(divide_signed, i32, i32, i32, a / b)
OP2(remainder_signed, i32, i32, i32, a % b)
OP2(divide_unsigned_64, u64, u64, u64, a / b)
OP2(remainder_signed_64, i64, i64, i64, a % b)
OP1(divide_by_7, i32, i32, a / 7)
OP1(divide_by_10, u32, u32, a / 10u)
OP1(divide_long_by_1000, i64, i64, a / 1000)
OP1(remainder_long_by_12345, u64, u64, a % 12345u)
OP2(shift_left_64, u64, u64, u32, a << (b & 63))
OP2(shift_right_signed_64, i64, i64, u32, a >> (b & 63))
OP3(funnel_left, u32, u32, u32, u32, __funnelshift_l(a, b, c))
OP3(funnel_right_clamped, u32, u32, u32, u32, __funnelshift_rc(a, b, c))
OP3(permute_bytes, u32, u32, u32, u32, __byte_perm(a, b, c))
OP3(any_bits, u32, u32, u32, u32, (a & b) ^ (~c | a))
OP1(count_bits, i32, u64, __popcll(a))
OP1(leading_zeros, i32, u32, __clz(a))
OP1(first_set, i32, u32, __ffs(a))
OP1(reverse_bits, u32, u32, __brev(a))
OP2(minimum_signed, i64, i64, i64, a < b ? a : b)
OP3(select, u32, u32, u32, u32, a < b ? c : a)

// Instructions that the compiler rarely chooses, written out.
#define WORD1(name, text)             \
  __device__ u32 word_##name(u32 a) { \
    u32 r;                            \
    asm(text : "=r"(r) : "r"(a));     \
    return r;                         \
  }                                   \
  OP1(name, u32, u32, word_##name(a))
#define WORD2(name, text)                    \
  __device__ u32 word_##name(u32 a, u32 b) { \
    u32 r;                                   \
    asm(text : "=r"(r) : "r"(a), "r"(b));    \
    return r;                                \
  }                                          \
  OP2(name, u32, u32, u32, word_##name(a, b))
#define WORD3(name, text)                           \
  __device__ u32 word_##name(u32 a, u32 b, u32 c) { \
    u32 r;                                          \
    asm(text : "=r"(r) : "r"(a), "r"(b), "r"(c));   \
    return r;                                       \
  }                                                 \
  OP3(name, u32, u32, u32, u32, word_##name(a, b, c))

WORD3(lop3_majority, "lop3.b32 %0, %1, %2, %3, 0xe8;")
WORD3(permute_with_signs, "prmt.b32 %0, %1, %2, %3;")
WORD3(extract_unsigned, "bfe.u32 %0, %1, %2, %3;")
WORD3(extract_signed, "bfe.s32 %0, %1, %2, %3;")
WORD3(insert_at_8, "bfi.b32 %0, %1, %2, 8, %3;")
WORD2(multiply_24, "mul24.lo.u32 %0, %1, %2;")
WORD2(add_saturated, "add.sat.s32 %0, %1, %2;")
WORD2(set_less, "set.lt.u32.s32 %0, %1, %2;")
WORD3(select_by_sign, "slct.u32.s32 %0, %1, %2, %3;")
WORD2(divide_by_any, "div.u32 %0, %1, %2;")
WORD1(find_top_bit, "bfind.s32 %0, %1;")
WORD3(carry_chain, "{ .reg .u32 t; add.cc.u32 t, %1, %2; addc.u32 %0, %3, 0; }")
WORD3(borrow_chain, "{ .reg .u32 t; sub.cc.u32 t, %1, %2; subc.u32 %0, %3, 0; }")
WORD3(multiply_add_high, "mad.hi.u32 %0, %1, %2, %3;")
WORD3(dot_product_low, "dp2a.lo.u32.u32 %0, %1, %2, %3;")
WORD3(dot_product_signed, "dp2a.hi.s32.u32 %0, %1, %2, %3;")
WORD1(octal_constant, "add.u32 %0, %1, 010;")
WORD1(
    is_subnormal,
    "{ .reg .pred p; .reg .f32 f; mov.b32 f, %1; testp.subnormal.f32 p, f; selp.u32 %0, 1, 0, p; }")
