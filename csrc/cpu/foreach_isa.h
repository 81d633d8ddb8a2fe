// Compiles the including file once per instruction set, in a namespace each.
//
// Use, in a kernel file, after every system header and every header of csrc/math:
//   #define REGOPS_ISA_FILE "cpu/dropout.cpp"
//   #include "cpu/foreach_isa.h"
//   namespace regops::cpu::REGOPS_ISA { ... kernels ... }
//   #ifdef REGOPS_ISA_LAST
//   ... the dispatch table, once ...
//   #endif
//
// System headers come first because an inline function of theirs compiled under the AVX-512 pragma
// could be the copy that the linker keeps, and crash an older machine. The pragma needs no
// per-file compiler flags, so any build system can compile these files. GCC on x86-64 only: every
// other compiler builds the baseline, in which the kernels' vector types still become vector code.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REGOPS_HAVE_X86_ISA 1
#endif

#ifndef REGOPS_ISA  // outermost inclusion: emit the wider sets, then fall through to the baseline

#ifdef REGOPS_HAVE_X86_ISA
#define REGOPS_ISA avx512
#define REGOPS_VECTOR_BYTES 64
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2")
#include REGOPS_ISA_FILE
#pragma GCC pop_options
#undef REGOPS_ISA
#undef REGOPS_VECTOR_BYTES

#define REGOPS_ISA avx2
#define REGOPS_VECTOR_BYTES 32
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#include REGOPS_ISA_FILE
#pragma GCC pop_options
#undef REGOPS_ISA
#undef REGOPS_VECTOR_BYTES
#endif

// Calls `function` of the instruction set in use.
#ifdef REGOPS_HAVE_X86_ISA
#define REGOPS_DISPATCH_ISA(function, ...)  \
  switch (active_isa()) {                   \
    case Isa::avx512:                       \
      return avx512::function(__VA_ARGS__); \
    case Isa::avx2:                         \
      return avx2::function(__VA_ARGS__);   \
    case Isa::baseline:                     \
      break;                                \
  }                                         \
  return baseline::function(__VA_ARGS__)
#else
#define REGOPS_DISPATCH_ISA(function, ...) return baseline::function(__VA_ARGS__)
#endif

#define REGOPS_ISA baseline
#define REGOPS_VECTOR_BYTES 16
#define REGOPS_ISA_LAST 1

#endif
