// Launching small cluster kernels of one signature by name.

#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstring>

namespace cg = cooperative_groups;

struct ClusterCase {
  const char* name;
  void (*kernel)(float* out, const float* in, int n);
  int grid, cluster, block, dynamic_shared;
};

#define CASE(kernel, grid, cluster, block, dynamic_shared) \
  {#kernel, kernel, grid, cluster, block, dynamic_shared}

inline int launch(void (*kernel)(float*, const float*, int), dim3 grid, dim3 cluster, int block,
                  int dynamic_shared, float* out, const float* in, int n) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster.x;
  attribute.val.clusterDim.y = cluster.y;
  attribute.val.clusterDim.z = cluster.z;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, out, in, n);
  return cudaGetLastError();
}

template <int N>
int run(const ClusterCase (&cases)[N], const char* name, float* out, const float* in, int n) {
  for (const ClusterCase& c : cases) {
    if (std::strcmp(c.name, name) == 0) {
      return launch(c.kernel, c.grid, c.cluster, c.block, c.dynamic_shared, out, in, n);
    }
  }
  return -1;
}
