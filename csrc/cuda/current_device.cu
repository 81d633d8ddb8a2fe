#include "cuda/current_device.h"

#include <vector>

namespace regops {

CudaDevice current_cuda_device() {
  // For all devices at once, on the first call; no query waits for a device.
  static const std::vector<CudaDevice> devices = [] {
    int count = 0;
    cudaGetDeviceCount(&count);
    std::vector<CudaDevice> found(count);
    for (int i = 0; i < count; ++i) {
      int major = 0, minor = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i);
      cudaDeviceGetAttribute(&found[i].multiprocessors, cudaDevAttrMultiProcessorCount, i);
      found[i].capability = 10 * major + minor;
    }
    return found;
  }();
  int current = 0;
  cudaGetDevice(&current);
  return devices.at(current);
}

}  // namespace regops
