// Memory that a thread keeps from call to call.
#pragma once

#include <cstdint>

namespace regops::cpu {

// At least `bytes`, aligned to 64; the thread's next call may move it and lose what is in it.
void* thread_scratch(int64_t bytes);

}  // namespace regops::cpu
