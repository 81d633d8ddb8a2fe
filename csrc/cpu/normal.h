// Standard normal numbers from a key, of the instruction set in use.
#pragma once

#include <cstdint>

#include "math/philox.h"

namespace regops::cpu {

// output[0 : n) <- the normal numbers of elements first, first + 1, ... of a key's stream.
void normal_run(Key key, uint64_t first, float* output, int64_t n);

}  // namespace regops::cpu
