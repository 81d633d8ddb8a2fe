// Memory that a thread keeps from call to call.
#include "cpu/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace regops::cpu {

namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

}  // namespace

void* thread_scratch(int64_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    size = 0;
    const int64_t rounded = (bytes + 63) / 64 * 64;
    memory.reset();
    memory.reset(std::aligned_alloc(64, rounded));
    if (memory == nullptr) throw std::bad_alloc();
    size = rounded;
  }
  return memory.get();
}

}  // namespace regops::cpu
