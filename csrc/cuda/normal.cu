// Standard normal numbers on the device: 32 random bits each, one write. A thread takes one block
// of random words and writes the four numbers that are made of it.
#include "cuda/normal.h"

#include <cuda_runtime.h>

#include "cuda/grid.h"
#include "math/normal.h"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kPerBlock = 4;

__global__ void __launch_bounds__(kThreads)
    normal_numbers(CudaKey cuda_key, float* output, int64_t n) {
  const int64_t group = block_number() * kThreads + threadIdx.x;
  const int64_t first = group * kPerBlock;
  if (first >= n) return;
  const PhiloxBlock block = variate_block(cuda_key.load(), static_cast<uint64_t>(group));
  const NormalPair low = normal_pair(block.word[0], block.word[1]);
  const NormalPair high = normal_pair(block.word[2], block.word[3]);
  if (first + kPerBlock <= n) {  // output is a tensor's memory: 16-byte aligned
    *reinterpret_cast<float4*>(output + first) =
        make_float4(low.first, low.second, high.first, high.second);
    return;
  }
  const float numbers[kPerBlock] = {low.first, low.second, high.first, high.second};
  for (int k = 0; k < n - first; ++k) output[first + k] = numbers[k];
}

}  // namespace
}  // namespace regops

extern "C" int regops_normal_cuda(const regops::CudaKey* key, float* output, int64_t n,
                                  void* stream) {
  using namespace regops;
  if (n == 0) return 0;
  const int64_t groups = (n + kPerBlock - 1) / kPerBlock;
  normal_numbers<<<grid_of((groups + kThreads - 1) / kThreads), kThreads, 0,
                   static_cast<cudaStream_t>(stream)>>>(*key, output, n);
  return static_cast<int>(cudaGetLastError());
}
