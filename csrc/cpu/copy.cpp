// A copy with the ops' own loads, prefetches and stores, and no arithmetic: 2 bytes moved a byte.
#include "cpu/copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"

#define REGOPS_ISA_FILE "cpu/copy.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/stream.h"

namespace regops::cpu::REGOPS_ISA {

void copy_run(const void* from, void* to, int64_t bytes, bool stream) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  constexpr int64_t kChunk = 1024;
  int64_t i = 0;
  if (stream && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    alignas(64) char staged[kChunk];
    for (; i + kChunk <= bytes; i += kChunk) {
      prefetch_lines(source + i, kChunk);
      std::memcpy(staged, source + i, kChunk);
      stream_lines(target + i, staged, kChunk);
    }
    stream_fence();
  }
  std::memcpy(target + i, source + i, bytes - i);
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void copy_run(const void* from, void* to, int64_t bytes, bool stream) {
  REGOPS_DISPATCH_ISA(copy_run, from, to, bytes, stream);
}

}  // namespace regops::cpu

#endif
