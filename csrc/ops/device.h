// What ops need of a CUDA device, without a CUDA header of torch: the binary then builds and links
// against a CPU-only torch, and the same file runs where there is a GPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#ifdef REGOPS_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace regops {

// The current torch stream of a tensor's device, as the cudaStream_t that launchers take.
inline void* current_stream(const at::Tensor& tensor) {
  const c10::impl::VirtualGuardImpl guard(tensor.device().type());
  return guard.getStream(tensor.device()).native_handle();
}

#ifdef REGOPS_WITH_CUDA
// Throws where a launcher returned an error.
inline void check_launch(const char* op, int error) {
  TORCH_CHECK(error == 0, "regops.", op, ": CUDA error ", error, ": ", regops_cuda_error(error));
}
#endif

}  // namespace regops
