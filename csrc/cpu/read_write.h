// The project's own in-place stream: the ceiling against which benchmarks place optimizer steps.
#pragma once

#include <cstdint>

namespace regops::cpu {

// Arrays of one length whose elements may differ in size.
struct ReadWriteCall {
  static constexpr int kMost = 8;  // of each kind
  int written_arrays, read_arrays;
  char* written[kMost];
  const char* read[kMost];
  int64_t written_bytes[kMost], read_bytes[kMost];  // of an element
};

// Elements [begin, end), serial: flips every bit of the arrays to write, and returns an exclusive
// or of all that was to be read.
uint64_t read_write_run(const ReadWriteCall& call, int64_t begin, int64_t end);

}  // namespace regops::cpu
