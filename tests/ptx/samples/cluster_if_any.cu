// A kernel that uses clusters on devices that have them.

#include "clusters.h"

// Devices without clusters have the block's own sum.
__global__ void sum_if_any(float* out, const float* in, int n) {
#if __CUDA_ARCH__ >= 900
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  s = in[blockIdx.x];
  cluster.sync();
  float sum = 0;
  for (unsigned r = 0; r < cluster.num_blocks(); ++r) sum += *cluster.map_shared_rank(&s, r);
  cluster.sync();
  out[blockIdx.x] = sum;
#else
  out[blockIdx.x] = in[blockIdx.x];
#endif
}
extern "C" int run_if_any(float* out, const float* in) {
  int device = -1, has_clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device);
  if (has_clusters) return launch(sum_if_any, 4, 4, 1, 0, out, in, 0);
  sum_if_any<<<4, 1>>>(out, in, 0);
  return cudaGetLastError();
}
extern "C" int run_anyway(float* out, const float* in) {
  return launch(sum_if_any, 4, 4, 1, 0, out, in, 0);
}
