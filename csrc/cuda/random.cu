// Keys on the device: 16 bytes written by one thread, so that making one needs no copy and no sync.
#include "cuda/random.h"

#include <cuda_runtime.h>

#include "math/philox.h"

namespace regops {
namespace {

__global__ void __launch_bounds__(1) store_key(int64_t* key, uint64_t seed, uint64_t offset) {
  key[0] = static_cast<int64_t>(seed);
  key[1] = static_cast<int64_t>(offset);
}

__global__ void __launch_bounds__(1)
    fold_in_key(const int64_t* key, int64_t data, int64_t* folded) {
  const Key child = fold_in({static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])},
                            static_cast<uint64_t>(data));
  folded[0] = static_cast<int64_t>(child.seed);
  folded[1] = static_cast<int64_t>(child.offset);
}

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    philox_blocks(const uint64_t* keys, const uint64_t* counters, uint32_t* words, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const PhiloxBlock block = philox4x32(keys[i], counters[2 * i], counters[2 * i + 1]);
  for (int w = 0; w < 4; ++w) words[4 * i + w] = block.word[w];
}

}  // namespace
}  // namespace regops

extern "C" int regops_store_key_cuda(int64_t* key, uint64_t seed, uint64_t offset, void* stream) {
  regops::store_key<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(key, seed, offset);
  return static_cast<int>(cudaGetLastError());
}

extern "C" int regops_fold_in_cuda(const int64_t* key, int64_t data, int64_t* folded,
                                   void* stream) {
  regops::fold_in_key<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(key, data, folded);
  return static_cast<int>(cudaGetLastError());
}

extern "C" int regops_philox_cuda(const uint64_t* keys, const uint64_t* counters, uint32_t* words,
                                  int64_t n, void* stream) {
  using regops::kThreads;
  const unsigned blocks = static_cast<unsigned>((n + kThreads - 1) / kThreads);
  regops::philox_blocks<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(keys, counters,
                                                                                    words, n);
  return static_cast<int>(cudaGetLastError());
}
