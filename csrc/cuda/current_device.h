// What the choice of a kernel depends on.
#pragma once

#include <cuda_runtime.h>

namespace regops {

struct CudaDevice {
  int capability;  // as in 90
  int multiprocessors;
};

// The current device; asked for once.
CudaDevice current_cuda_device();

#ifdef __CUDACC__
// Whether the code that a device runs, that of the newest architecture which it supports, has
// clusters.
inline bool clusters_work(int capability) {
  int newest = 0;
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture <= 10 * capability && architecture > newest) newest = architecture;
  }
  return newest >= 900;
}
#endif

}  // namespace regops
