// How a kernel takes its key: by value, or, where a CUDA graph must see a fresh one at each replay,
// from device memory.
#pragma once

#include <cstdint>

#include "math/philox.h"

namespace regops {

struct CudaKey {
  Key host;
  const int64_t* device;  // overrides `host` unless null

#ifdef __CUDACC__
  __device__ Key load() const {
    if (device == nullptr) return host;
    return {static_cast<uint64_t>(device[0]), static_cast<uint64_t>(device[1])};
  }
#endif
};

}  // namespace regops
