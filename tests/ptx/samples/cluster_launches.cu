// Launches of clusters, right and wrong, and what host code can ask about them.

#include "clusters.h"

// out[block] = the block's place in its cluster and the cluster's in the grid, in decimal digits.
__global__ void places(float* out, const float* in, int n) {
  const cg::cluster_group cluster = cg::this_cluster();
  uint3 id, count;
  asm("mov.u32 %0, %%clusterid.x;\nmov.u32 %1, %%clusterid.y;\nmov.u32 %2, %%clusterid.z;"
      : "=r"(id.x), "=r"(id.y), "=r"(id.z));
  asm("mov.u32 %0, %%nclusterid.x;\nmov.u32 %1, %%nclusterid.y;\nmov.u32 %2, %%nclusterid.z;"
      : "=r"(count.x), "=r"(count.y), "=r"(count.z));
  const dim3 in_cluster = cluster.block_index();
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned of_cluster = id.x + count.x * (id.y + count.y * id.z);
  out[block] = cluster.block_rank() + 10 * in_cluster.x + 100 * in_cluster.y + 1000 * in_cluster.z +
               10000 * of_cluster + 100000 * cluster.num_blocks();
}
extern "C" int run_places(float* out, const unsigned* grid, const unsigned* cluster) {
  const dim3 blocks(grid[0], grid[1], grid[2]), in_cluster(cluster[0], cluster[1], cluster[2]);
  return launch(places, blocks, in_cluster, 1, 0, out, nullptr, 0);
}

// A cluster of one block, which no launch has asked for.
extern "C" int run_places_plainly(float* out, int blocks) {
  places<<<blocks, 1>>>(out, nullptr, 0);
  return cudaGetLastError();
}

__global__ void __cluster_dims__(2, 1, 1) fixed_cluster(float* out, const float* in, int n) {
  out[blockIdx.x] = 1 + cg::this_cluster().block_rank();
}
extern "C" int run_fixed(float* out, int blocks) {
  fixed_cluster<<<blocks, 1>>>(out, nullptr, 0);
  return cudaGetLastError();
}
extern "C" int run_fixed_as(float* out, int blocks, int cluster) {
  return launch(fixed_cluster, blocks, cluster, 1, 0, out, nullptr, 0);
}

// The last words of all blocks' dynamic shared memory.
__global__ void large_shared(float* out, const float* in, int n) {
  extern __shared__ float dynamic[];
  __shared__ float fixed[256];
  const cg::cluster_group cluster = cg::this_cluster();
  fixed[threadIdx.x] = 1;
  dynamic[n - 1] = cluster.block_rank();
  cluster.sync();
  float sum = fixed[threadIdx.x];
  for (unsigned r = 0; r < cluster.num_blocks(); ++r) {
    sum += cluster.map_shared_rank(dynamic, r)[n - 1];
  }
  cluster.sync();
  out[blockIdx.x] = sum;
}
extern "C" int run_large_shared(float* out, int blocks, int cluster, int words, int allow_shared,
                                int allow_cluster) {
  const int bytes = words * static_cast<int>(sizeof(float));
  if (allow_shared) {
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const int error = cudaFuncSetAttribute(large_shared, limit, bytes);
    if (error) return cudaGetLastError();
  }
  const auto large = cudaFuncAttributeNonPortableClusterSizeAllowed;
  if (allow_cluster) cudaFuncSetAttribute(large_shared, large, 1);
  return launch(large_shared, blocks, cluster, 1, bytes, out, nullptr, words);
}

extern "C" int query_clusters(int* active, int* largest, int* shared, int* threads) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 4;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = 8;
  config.blockDim = 1024;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaFuncAttributes attributes;
  cudaFuncGetAttributes(&attributes, large_shared);
  *shared = static_cast<int>(attributes.sharedSizeBytes);
  *threads = attributes.maxThreadsPerBlock;
  cudaOccupancyMaxPotentialClusterSize(largest, places, &config);
  return cudaOccupancyMaxActiveClusters(active, places, &config);
}

extern "C" int query_attributes(const int* which, int* values, int count) {
  for (int i = 0; i < count; ++i) {
    const auto attribute = static_cast<cudaDeviceAttr>(which[i]);
    if (const int error = cudaDeviceGetAttribute(values + i, attribute, 0)) return error;
  }
  return 0;
}
