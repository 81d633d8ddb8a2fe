// Keys: what every op that draws random numbers takes, and the one place where keys are made.
#pragma once

#include <optional>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include "math/philox.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/key.h"
#endif

namespace regops {

// A key is an int64 tensor (seed, offset) on the op's own device or on the CPU.
void check_key(const char* op, const at::Tensor& key, const at::Tensor& input);

// Reads a key that lives on the CPU.
Key host_key(const at::Tensor& key);

#ifdef REGOPS_WITH_CUDA
// What kernels take; a key on the device is contiguous, and stays alive until they are launched.
CudaKey cuda_key(const at::Tensor& key);
#endif

// regops::new_key, through the dispatcher.
at::Tensor new_key(const at::Tensor& like, const std::optional<at::Generator>& generator);

// As new_key, but where the device's generator is counter-based and no graph is being captured the
// key stays in host memory, which saves a kernel that would only write 16 bytes.
at::Tensor new_eager_key(const at::Tensor& like, const std::optional<at::Generator>& generator);

}  // namespace regops
