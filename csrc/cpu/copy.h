// The project's own copy: the ceiling against which benchmarks place every memory-bound op.
#pragma once

#include <cstdint>

namespace regops::cpu {

// Serial; `stream` as in DropoutCall.
void copy_run(const void* from, void* to, int64_t bytes, bool stream);

}  // namespace regops::cpu
