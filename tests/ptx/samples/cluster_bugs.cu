// One defect of a cluster a kernel. `BUG: message` marks the line that the interpreter must name,
// and what it must say.

#include "clusters.h"

#define THREAD static_cast<int>(threadIdx.x)
#define GLOBAL static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)
#define OTHER(cluster) ((cluster).block_rank() ^ 1)

__global__ void block_barrier_for_cluster_barrier(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  s[THREAD] = in[GLOBAL];
  __syncthreads();
  out[GLOBAL] =
      cluster.map_shared_rank(s, OTHER(cluster))[THREAD];  // BUG: shared memory race: read
  cluster.sync();
}

__global__ void missing_first_barrier(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  out[GLOBAL] = cluster.map_shared_rank(s, OTHER(cluster))[THREAD];  // BUG: may not have started
  cluster.sync();
}

__global__ void missing_last_barrier(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  const float* other = cluster.map_shared_rank(s, OTHER(cluster));
  out[GLOBAL] = other[THREAD];  // BUG: block (0, 0, 0) may have ended
}

__global__ void last_barrier_not_waited_for(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  const float* other = cluster.map_shared_rank(s, OTHER(cluster));
  out[GLOBAL] = other[THREAD];  // BUG: may have ended
  asm volatile("barrier.cluster.arrive;" ::: "memory");
}

__global__ void last_barrier_relaxed(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  cluster.map_shared_rank(s, OTHER(cluster))[THREAD] = 2;  // BUG: may have ended
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
}

// A tail of one rank's own: only rank 0 reads after the last barrier.
__global__ void one_rank_reads_on(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  if (cluster.block_rank() == 0) {
    float sum = 0;
    for (unsigned r = 0; r < cluster.num_blocks(); ++r) {
      sum += cluster.map_shared_rank(s, r)[THREAD];  // BUG: block (1, 0, 0) may have ended
    }
    out[THREAD] = sum;
  }
}

__global__ void reused_too_early(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < 3; ++k) {
    s[THREAD] = in[GLOBAL] + k;  // BUG: shared memory race: write, and read by block
    cluster.sync();
    sum += cluster.map_shared_rank(s, OTHER(cluster))[THREAD];
    __syncthreads();
  }
  cluster.sync();
  out[GLOBAL] = sum;
}

__global__ void read_between_arrive_and_wait(float* out, const float* in, int n) {
  __shared__ float s[64];
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  s[THREAD] = in[GLOBAL];
  const float* other = cluster.map_shared_rank(s, OTHER(cluster));
  auto token = cluster.barrier_arrive();
  const float value = *static_cast<const volatile float*>(other + THREAD);  // BUG: race: read
  cluster.barrier_wait(static_cast<cg::cluster_group::arrival_token&&>(token));
  cluster.sync();
  out[GLOBAL] = value;
}

__global__ void written_between_arrive_and_wait(float* out, const float* in, int n) {
  __shared__ float s[64];
  cg::cluster_group cluster = cg::this_cluster();
  auto token = cluster.barrier_arrive();
  s[THREAD] = in[GLOBAL];
  cluster.barrier_wait(static_cast<cg::cluster_group::arrival_token&&>(token));
  const float* other = cluster.map_shared_rank(s, OTHER(cluster));
  out[GLOBAL] = other[THREAD];  // BUG: shared memory race: read, and write by block
  cluster.sync();
}

__global__ void relaxed_without_fence(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
  out[GLOBAL] =
      cluster.map_shared_rank(s, OTHER(cluster))[THREAD];  // BUG: shared memory race: read
  cluster.sync();
}

__global__ void ranks_write_one_place(float* out, const float* in, int n) {
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  if (THREAD == 0 && cluster.block_rank() == 1) *cluster.map_shared_rank(&s, 0) = in[0];
  if (THREAD == 0 && cluster.block_rank() == 0) s = in[1];  // BUG: race: write, and write by block
  cluster.sync();
  out[GLOBAL] = s;
}

// The last write of the own block hides the other's from a check of the last writer alone.
__global__ void atomics_read_after_block_barrier(float* out, const float* in, int n) {
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  s = 0;
  cluster.sync();
  if (cluster.block_rank() == 1) atomicAdd(cluster.map_shared_rank(&s, 0), 1.0f);
  if (cluster.block_rank() == 0) atomicAdd(&s, 1.0f);
  __syncthreads();
  out[GLOBAL] = s;  // BUG: shared memory race: read, and access by block (1, 0, 0)
  cluster.sync();
}

__global__ void threads_of_one_block_in_another(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  float* other = cluster.map_shared_rank(s, OTHER(cluster));
  other[THREAD] = in[GLOBAL];
  out[GLOBAL] = other[63 - THREAD];  // BUG: shared memory race: read, and write by thread
  cluster.sync();
}

__global__ void block_lacks_barrier(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[THREAD] = in[GLOBAL];
  cg::this_cluster().sync();
  out[GLOBAL] = s[63 - THREAD];
  s[THREAD] = 1;  // BUG: shared memory race: write, and read
  cg::this_cluster().sync();
}

__global__ void global_memory_race_in_a_cluster(float* out, const float* in, int n) {
  out[GLOBAL] = in[GLOBAL];
  cg::this_cluster().sync();
  const float value = out[GLOBAL ^ 64];
  out[GLOBAL] = value;  // BUG: global memory race: write, and read
}

__global__ void global_memory_race_of_two_clusters(float* out, const float* in, int n) {
  out[GLOBAL] = in[GLOBAL];
  cg::this_cluster().sync();
  const float value = out[GLOBAL ^ 128];  // BUG: global memory race: read, and write
  cg::this_cluster().sync();
  if (value > 0) out[GLOBAL] = value;
}

__global__ void arrives_twice(float* out, const float* in, int n) {
  asm volatile("barrier.cluster.arrive;" ::: "memory");
  asm volatile("barrier.cluster.arrive;" ::: "memory");  // BUG: second barrier.cluster.arrive
  asm volatile("barrier.cluster.wait;" ::: "memory");
}

__global__ void waits_without_arriving(float* out, const float* in, int n) {
  asm volatile("barrier.cluster.wait;" ::: "memory");  // BUG: with no barrier.cluster.arrive before
}

__global__ void barrier_stepped_around(float* out, const float* in, int n) {
  if (THREAD < 32) cg::this_cluster().sync();  // BUG: divergent barrier: 64 threads of the cluster
  out[GLOBAL] = in[GLOBAL];
}

__global__ void barrier_of_one_rank(float* out, const float* in, int n) {
  if (cg::this_cluster().block_rank() == 0) cg::this_cluster().sync();  // BUG: divergent barrier
  out[GLOBAL] = in[GLOBAL];
}

__global__ void cluster_barrier_against_block_barrier(float* out, const float* in, int n) {
  if (THREAD < 32) cg::this_cluster().sync();
  __syncthreads();  // BUG: divergent bar
  if (THREAD >= 32) cg::this_cluster().sync();
  out[GLOBAL] = in[GLOBAL];
}

// Half of each warp arrives and waits for the other half, which waits for it elsewhere.
__global__ void aligned_in_branch(float* out, const float* in, int n) {
  if (THREAD & 1) asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");  // BUG: divergent
  __syncwarp();
  asm volatile("barrier.cluster.wait;" ::: "memory");
  out[GLOBAL] = 1;
}

__global__ void remote_past_end(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  const float* other = cluster.map_shared_rank(s, OTHER(cluster));
  out[GLOBAL] = other[THREAD + (n == 256)];  // BUG: out of bounds: read at byte 256 of 256 bytes
  cluster.sync();
}

__global__ void remote_before_begin(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  float* other = cluster.map_shared_rank(s, OTHER(cluster));
  other[THREAD - (n == 256)] = in[GLOBAL];  // BUG: out of bounds: write at byte -4 of 256 bytes
  cluster.sync();
}

__global__ void rank_too_large(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[THREAD] = in[GLOBAL];
  cluster.sync();
  const float* other = cluster.map_shared_rank(s, cluster.block_rank() + 1);
  out[GLOBAL] = other[THREAD];  // BUG: read in shared memory of rank 2 of a cluster of 2
  cluster.sync();
}

__global__ void address_of_one_block_in_anothers_space(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[THREAD] = in[GLOBAL];
  cg::this_cluster().sync();
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(s + THREAD));
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %0, 1;" : "+r"(address));
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));  // BUG: out of bounds: read
  out[GLOBAL] = value;
  cg::this_cluster().sync();
}

__global__ void mapped_global_address(float* out, const float* in, int n) {
  cg::this_cluster().sync();
  unsigned long long address = reinterpret_cast<unsigned long long>(out);
  asm volatile("mapa.u64 %0, %0, 0;" : "+l"(address));  // BUG: not one of shared memory
  *reinterpret_cast<float*>(address) = 1;
}

__global__ void remote_uninitialised(float* out, const float* in, int n) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  if (cluster.block_rank() == 0) s[THREAD] = in[GLOBAL];
  cluster.sync();
  const float* last = cluster.map_shared_rank(s, 1);
  out[GLOBAL] = last[THREAD];  // BUG: read of uninitialised shared memory
  cluster.sync();
}

static const ClusterCase cases[] = {
    CASE(block_barrier_for_cluster_barrier, 2, 2, 64, 0),
    CASE(missing_first_barrier, 2, 2, 64, 0),
    CASE(missing_last_barrier, 2, 2, 64, 0),
    CASE(last_barrier_not_waited_for, 2, 2, 64, 0),
    CASE(last_barrier_relaxed, 2, 2, 64, 0),
    CASE(one_rank_reads_on, 2, 2, 64, 0),
    CASE(reused_too_early, 2, 2, 64, 0),
    CASE(read_between_arrive_and_wait, 2, 2, 64, 0),
    CASE(written_between_arrive_and_wait, 2, 2, 64, 0),
    CASE(relaxed_without_fence, 2, 2, 64, 0),
    CASE(ranks_write_one_place, 2, 2, 64, 0),
    CASE(atomics_read_after_block_barrier, 2, 2, 64, 0),
    CASE(threads_of_one_block_in_another, 2, 2, 64, 0),
    CASE(block_lacks_barrier, 2, 2, 64, 0),
    CASE(global_memory_race_in_a_cluster, 2, 2, 64, 0),
    CASE(global_memory_race_of_two_clusters, 4, 2, 64, 0),
    CASE(arrives_twice, 2, 2, 64, 0),
    CASE(waits_without_arriving, 2, 2, 64, 0),
    CASE(barrier_stepped_around, 2, 2, 64, 0),
    CASE(barrier_of_one_rank, 2, 2, 64, 0),
    CASE(cluster_barrier_against_block_barrier, 2, 2, 64, 0),
    CASE(aligned_in_branch, 2, 2, 64, 0),
    CASE(remote_past_end, 2, 2, 64, 0),
    CASE(remote_before_begin, 2, 2, 64, 0),
    CASE(rank_too_large, 2, 2, 64, 0),
    CASE(address_of_one_block_in_anothers_space, 2, 2, 64, 0),
    CASE(mapped_global_address, 2, 2, 64, 0),
    CASE(remote_uninitialised, 2, 2, 64, 0),
};

extern "C" int run_bug(const char* name, float* out, const float* in, int n) {
  return run(cases, name, out, in, n);
}
