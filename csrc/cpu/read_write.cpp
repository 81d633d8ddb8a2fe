// Reads some arrays and rewrites others in place, side by side as an optimizer step walks them.
//
// Integer operations of one cycle, so that no value is denormal and nothing but memory is timed.
#include "cpu/read_write.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"

#define REGOPS_ISA_FILE "cpu/read_write.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/stream.h"

namespace regops::cpu::REGOPS_ISA {

// A multiple of every vector: the compiler makes whole vectors of these.
struct Line {
  uint64_t word[8];
};

static inline void flip(char* to, int64_t bytes) {
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(to + i + kPrefetchBytes, 1);
    Line line;
    std::memcpy(&line, to + i, 64);
    for (uint64_t& word : line.word) word = ~word;
    std::memcpy(to + i, &line, 64);
  }
  for (; i < bytes; ++i) to[i] = static_cast<char>(~to[i]);
}

static inline void fold(const char* from, int64_t bytes, Line& sum) {
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(from + i + kPrefetchBytes);
    Line line;
    std::memcpy(&line, from + i, 64);
    for (int lane = 0; lane < 8; ++lane) sum.word[lane] ^= line.word[lane];
  }
  for (; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + i, std::min<int64_t>(8, bytes - i));
    sum.word[i / 8 % 8] ^= word;
  }
}

uint64_t read_write_run(const ReadWriteCall& call, int64_t begin, int64_t end) {
  // A kibibyte of each array, or more or less, before the next one's turn.
  constexpr int64_t kBlock = 256;
  Line sum = {};
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    for (int i = 0; i < call.read_arrays; ++i) {
      fold(call.read[i] + first * call.read_bytes[i], count * call.read_bytes[i], sum);
    }
    for (int i = 0; i < call.written_arrays; ++i) {
      flip(call.written[i] + first * call.written_bytes[i], count * call.written_bytes[i]);
    }
  }
  uint64_t folded = 0;
  for (const uint64_t word : sum.word) folded ^= word;
  return folded;
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

uint64_t read_write_run(const ReadWriteCall& call, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(read_write_run, call, begin, end);
}

}  // namespace regops::cpu

#endif
