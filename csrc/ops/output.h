// Outputs of CPU ops, and when to store them past the cache.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace regops {

// From this size on an output is not expected in the cache when it is next read.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// Prepares memory that was just allocated for its first writes.
//
// From 32 MiB on, malloc hands out fresh pages every time, and the first write to each 4 KiB page
// costs a fault: more than all else that a memory-bound op does. Asking for 2 MiB pages leaves
// 1/512 of the faults. Where the system refuses, no harm.
inline at::Tensor with_large_pages(at::Tensor output) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  constexpr size_t kAlwaysFresh = size_t{32} << 20;
  if (output.is_cpu() && output.nbytes() >= kAlwaysFresh) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(output.mutable_data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (begin + output.nbytes()) / kHugePage * kHugePage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return output;
}

// An uninitialised tensor with the layout that torch's elementwise ops would give it.
inline at::Tensor empty_output(const at::Tensor& input) {
  return with_large_pages(at::empty_like(input));
}

}  // namespace regops
