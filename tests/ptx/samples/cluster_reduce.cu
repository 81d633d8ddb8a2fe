// Softmax statistics of a row over a cluster of blocks: every barrier below is needed.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "block_reduce.cuh"

namespace cg = cooperative_groups;

// lse[row] = log(sum(exp(x[row, :]))), row after row by one cluster.
__global__ void row_lse(float* lse, const float* x, int rows, int columns) {
  __shared__ float partial[32], total;
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks();
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    float sum = 0;
    for (int i = rank * blockDim.x + threadIdx.x; i < columns; i += blocks * blockDim.x) {
      sum += expf(x[row * columns + i]);
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) total = sum;
    cluster.sync();
    if (rank == 0 && threadIdx.x < 32) {
      const float* other = cluster.map_shared_rank(&total, threadIdx.x % blocks);
      sum = warp_sum(threadIdx.x < blocks ? *other : 0.0f);
      if (threadIdx.x == 0) lse[row] = logf(sum);
    }
    cluster.sync();
  }
}

// Each block gets the next one's values; the first barrier is in two halves.
__global__ void from_next_block(float* out, const float* in) {
  __shared__ float staged[64];
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned i = blockIdx.x * 64 + threadIdx.x;
  staged[threadIdx.x] = in[i];
  cluster.barrier_arrive();
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  const float* other = cluster.map_shared_rank(staged, next);
  cluster.barrier_wait();
  const float value = other[threadIdx.x];
  cg::this_cluster().sync();
  out[i] = value;
}

static cudaLaunchConfig_t one_cluster(int blocks, cudaLaunchAttribute* attribute) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = blocks;
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = 64;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

extern "C" int run_row_lse(float* lse, const float* x, int rows, int columns, int blocks) {
  cudaLaunchAttribute attribute = {};
  const cudaLaunchConfig_t config = one_cluster(blocks, &attribute);
  return cudaLaunchKernelEx(&config, row_lse, lse, x, rows, columns);
}

extern "C" int run_from_next_block(float* out, const float* in, int blocks) {
  cudaLaunchAttribute attribute = {};
  const cudaLaunchConfig_t config = one_cluster(blocks, &attribute);
  return cudaLaunchKernelEx(&config, from_next_block, out, in);
}
