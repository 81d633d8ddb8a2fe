// Standard normal numbers: 32 random bits each, one write.
#include "cpu/normal.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"
#include "dtype.h"
#include "math/normal.h"
#include "math/stochastic_rounding.h"

#define REGOPS_ISA_FILE "cpu/normal.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/philox_lanes.h"
#include "cpu/step_variates.h"

namespace regops::cpu::REGOPS_ISA {

void normal_run(Key key, uint64_t first, float* output, int64_t n) {
  alignas(64) uint32_t words[kStepWords];
  for (int64_t i = 0; i < n; i += kStepBlock) {
    const int64_t count = std::min(kStepBlock, n - i);
    for (int64_t j = 0; j < count; ++j) output[i + j] = 0.0f;
    add_noise(output + i, count, 1.0f, key, first + i, words);
  }
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void normal_run(Key key, uint64_t first, float* output, int64_t n) {
  REGOPS_DISPATCH_ISA(normal_run, key, first, output, n);
}

}  // namespace regops::cpu

#endif
