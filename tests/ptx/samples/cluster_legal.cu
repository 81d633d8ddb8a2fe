// Correct kernels of clusters: the interpreter must stay silent.
// `VALUE: expression` gives out[t], for t from 0 to the number of threads; in[i] = i + 1, n = 256.

#include "clusters.h"

#define THREAD static_cast<int>(threadIdx.x)
#define GLOBAL static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)

__device__ float sum_of_block(float value, float* partial) {
  for (int k = 16; k > 0; k >>= 1) value += __shfl_xor_sync(~0u, value, k);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
  return sum;
}

// Every block reads the sums of all blocks of its cluster, through generic addresses.
__device__ float sum_of_cluster(float value) {
  __shared__ float partial[32], total;
  const cg::cluster_group cluster = cg::this_cluster();
  const float mine = sum_of_block(value, partial);
  if (threadIdx.x == 0) total = mine;
  cluster.sync();
  float sum = 0;
  for (unsigned r = 0; r < cluster.num_blocks(); ++r) sum += *cluster.map_shared_rank(&total, r);
  cluster.sync();
  return sum;
}

// VALUE: 128 * 129 / 2 + 128 * 128 * (t // 128)
__global__ void sum_of_2(float* out, const float* in, int n) {
  out[GLOBAL] = sum_of_cluster(in[GLOBAL]);
}

// VALUE: 256 * 257 / 2
__global__ void sum_of_4(float* out, const float* in, int n) {
  out[GLOBAL] = sum_of_cluster(in[GLOBAL]);
}

// VALUE: 256 * 257 / 2
__global__ void sum_of_8(float* out, const float* in, int n) {
  out[GLOBAL] = sum_of_cluster(in[GLOBAL]);
}

// Not portable: the kernel must be allowed to have such a cluster.
// VALUE: 16 * (32 * 33 / 2 + 30 * 32)
__global__ void sum_of_16(float* out, const float* in, int n) {
  out[GLOBAL % 256] = sum_of_cluster(in[GLOBAL % 32] + 30);
}

// VALUE: where(t < 64, t + 64 + 1, t - 64 + 1)
__global__ void swap_by_mapped_addresses(float* out, const float* in, int n) {
  extern __shared__ float dynamic[];
  const cg::cluster_group cluster = cg::this_cluster();
  dynamic[THREAD] = in[GLOBAL];
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(dynamic + THREAD));
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;"
               : "+r"(address)
               : "r"(cluster.block_rank() ^ 1));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  cluster.sync();
  out[GLOBAL] = value;
}

// VALUE: where(t % 64 == 0, 64 * 4, 0)
__global__ void atomics_on_rank_0(float* out, const float* in, int n) {
  __shared__ float count;
  const cg::cluster_group cluster = cg::this_cluster();
  if (THREAD == 0) count = 0;
  cluster.sync();
  atomicAdd(cluster.map_shared_rank(&count, 0), 1.0f);
  cluster.sync();
  if (THREAD == 0) out[GLOBAL] = cluster.block_rank() == 0 ? count : n;
}

// VALUE: (t + 64) % 256 + 1
__global__ void writes_to_next_rank(float* out, const float* in, int n) {
  __shared__ float box[64];
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const unsigned rank = (cluster.block_rank() + 3) % cluster.num_blocks();
  cluster.map_shared_rank(box, rank)[THREAD] = in[GLOBAL];
  cluster.sync();
  out[GLOBAL] = box[THREAD];
}

// A barrier in two halves, and the last one only to keep the memory alive.
// VALUE: where(t < 64, t + 65, t - 63)
__global__ void barrier_in_halves(float* out, const float* in, int n) {
  __shared__ float box[64];
  cg::cluster_group cluster = cg::this_cluster();
  box[THREAD] = in[GLOBAL];
  auto token = cluster.barrier_arrive();
  const float unrelated = in[THREAD];
  cluster.barrier_wait(static_cast<cg::cluster_group::arrival_token&&>(token));
  const float value = cluster.map_shared_rank(box, cluster.block_rank() ^ 1)[THREAD];
  cluster.barrier_arrive();
  out[GLOBAL] = value + 0 * unrelated;
  cluster.barrier_wait();
}

// The cluster barrier stands for the block's own.
// VALUE: t // 64 * 64 + 64 - t % 64
__global__ void cluster_barrier_orders_a_block(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[THREAD] = in[GLOBAL];
  cg::this_cluster().sync();
  out[GLOBAL] = s[63 - THREAD];
}

// Only one warp waits; the others get what it saw at the block's barrier.
// VALUE: t + 1 + where(t < 64, 64, -64)
__global__ void one_warp_waits(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  s[THREAD] += 0.0f;
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  if (THREAD < 32) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  __syncthreads();
  const float value = cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[THREAD];
  if (THREAD >= 32) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  cluster.sync();
  out[GLOBAL] = value;
}

// A fence publishes what a relaxed arrival does not.
// VALUE: t + 1 + where(t < 64, 64, -64)
__global__ void relaxed_after_fence(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  asm volatile("fence.acq_rel.cluster;\nbarrier.cluster.arrive.relaxed;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
  out[GLOBAL] = cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[THREAD];
  cluster.sync();
}

// VALUE: where(t < 64, t + 65, t - 63)
__global__ void global_memory_within_a_cluster(float* out, const float* in, int n) {
  out[GLOBAL] = in[GLOBAL];
  cg::this_cluster().sync();
  const float value = out[GLOBAL ^ 64];
  cg::this_cluster().sync();
  out[GLOBAL] = value;
}

// VALUE: 3 * (t + 1) + 3 * where(t < 64, 64, -64)
__global__ void buffer_reused_in_a_loop(float* out, const float* in, int n) {
  __shared__ float s[2][64];
  const cg::cluster_group cluster = cg::this_cluster();
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < 6; ++k) {
    s[k & 1][THREAD] = k & 1 ? in[GLOBAL] : 0.0f;
    cluster.sync();
    sum += cluster.map_shared_rank(s[k & 1], cluster.block_rank() ^ 1)[THREAD];
  }
  cluster.sync();
  out[GLOBAL] = sum;
}

// Threads without work leave; the others' barriers do not wait for them.
// VALUE: where(t % 64 < 32, t + 1 + where(t < 64, 64, -64), 0)
__global__ void early_return(float* out, const float* in, int n) {
  __shared__ float s[32];
  const cg::cluster_group cluster = cg::this_cluster();
  if (THREAD >= 32) return;
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  out[GLOBAL] = cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[THREAD];
  cluster.sync();
}

// VALUE: where(t < 256, 1000 * (t // 64 % 2) + 100 * 2 + 10 * (t // 128) + 2, 0)
__global__ void ranks(float* out, const float* in, int n) {
  __shared__ int s;
  const cg::cluster_group cluster = cg::this_cluster();
  int* next = cluster.map_shared_rank(&s, cluster.block_rank() ^ 1);
  const unsigned here = cluster.query_shared_rank(&s), there = cluster.query_shared_rank(next);
  unsigned id, count, is_explicit;
  asm("mov.u32 %0, %%clusterid.x;\nmov.u32 %1, %%nclusterid.x;" : "=r"(id), "=r"(count));
  asm("{ .reg .pred p; mov.pred p, %%is_explicit_cluster; selp.u32 %0, 1, 0, p; }"
      : "=r"(is_explicit));
  const bool right = here == cluster.block_rank() && there == (here ^ 1) && is_explicit == 1 &&
                     cluster.block_index().x == here && cluster.dim_blocks().x == 2 &&
                     cluster.thread_rank() == here * 64 + threadIdx.x;
  if (right) out[GLOBAL] = 1000 * here + 100 * cluster.num_blocks() + 10 * id + count;
}

// VALUE: where(t < 64, t + 64 + 1, t - 64 + 1)
__global__ void vectors_to_mapped_addresses(float* out, const float* in, int n) {
  __shared__ float4 s[16];
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(s + THREAD));
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;"
               : "+r"(address)
               : "r"(cluster.block_rank() ^ 1));
  if (THREAD < 16) {
    const float base = in[blockIdx.x * 64 + THREAD * 4];
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(base),
                 "f"(base + 1), "f"(base + 2), "f"(base + 3)
                 : "memory");
  }
  cluster.sync();
  out[GLOBAL] = reinterpret_cast<const float*>(s)[THREAD];
}

// VALUE: where(t % 64 == 0, 128 + 128 * 10, 1111)
__global__ void mapped_addresses_of_every_form(float* out, const float* in, int n) {
  __shared__ unsigned counts[2];
  const cg::cluster_group cluster = cg::this_cluster();
  if (THREAD < 2) counts[THREAD] = 0;
  cluster.sync();
  unsigned address, rank, old, is_own, is_shared, was_own;
  const unsigned there = cluster.block_rank() ^ 1;
  const auto local = static_cast<unsigned>(__cvta_generic_to_shared(counts));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(local), "r"(there));
  asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(rank) : "r"(address));
  asm volatile("atom.shared::cluster.add.u32 %0, [%1], 1;" : "=r"(old) : "r"(address) : "memory");
  asm volatile("red.release.cluster.shared::cluster.add.u32 [%0+4], 5;" ::"r"(address) : "memory");
  asm volatile("red.shared.add.u32 [%0], 1;\nred.shared.add.u32 [%0+4], 15;" ::"r"(local)
               : "memory");
  asm volatile(
      "{ .reg .u64 a; .reg .pred p, q;\ncvt.u64.u32 a, %2;\ncvta.shared::cluster.u64 a, a;"
      "isspacep.shared::cta p, a;\nisspacep.shared::cluster q, a;"
      "selp.u32 %0, 1, 0, p;\nselp.u32 %1, 1, 0, q; }"
      : "=r"(is_own), "=r"(is_shared)
      : "r"(address));
  asm volatile("{ .reg .pred p; isspacep.shared p, %1;\nselp.u32 %0, 1, 0, p; }"
               : "=r"(was_own)
               : "l"(counts));
  cluster.sync();
  const bool right = rank == there && old < 128 && !is_own && is_shared && was_own;
  out[GLOBAL] = THREAD == 0 ? counts[0] + counts[1] : 1111 * right;
}

static const ClusterCase cases[] = {
    CASE(sum_of_2, 4, 2, 64, 0),
    CASE(sum_of_4, 4, 4, 64, 0),
    CASE(sum_of_8, 8, 8, 32, 0),
    CASE(sum_of_16, 16, 16, 32, 0),
    CASE(swap_by_mapped_addresses, 2, 2, 64, 256),
    CASE(atomics_on_rank_0, 4, 4, 64, 0),
    CASE(writes_to_next_rank, 4, 4, 64, 0),
    CASE(barrier_in_halves, 2, 2, 64, 0),
    CASE(cluster_barrier_orders_a_block, 4, 2, 64, 0),
    CASE(one_warp_waits, 2, 2, 64, 0),
    CASE(relaxed_after_fence, 2, 2, 64, 0),
    CASE(global_memory_within_a_cluster, 2, 2, 64, 0),
    CASE(buffer_reused_in_a_loop, 2, 2, 64, 0),
    CASE(early_return, 2, 2, 64, 0),
    CASE(ranks, 4, 2, 64, 0),
    CASE(vectors_to_mapped_addresses, 2, 2, 64, 0),
    CASE(mapped_addresses_of_every_form, 2, 2, 64, 0),
};

extern "C" int run_legal(const char* name, float* out, const float* in, int n) {
  cudaFuncSetAttribute(sum_of_16, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return run(cases, name, out, in, n);
}
