// Kernels that look like those of bugs.cu and are correct: the interpreter must stay silent.
// `VALUE: expression` gives out[t], for t from 0 to the number of threads; in[i] = i + 1, n = 256.

#include "cases.h"

#define THREAD static_cast<int>(threadIdx.x)

// VALUE: 256 - t
__global__ void barrier_between(float* out, const float* in, int n) {
  __shared__ float s[256];
  s[THREAD] = in[THREAD];
  __syncthreads();
  out[THREAD] = s[255 - THREAD];
}

// VALUE: where(t < 100, 0, t + 1)
__global__ void early_return_before_barrier(float* out, const float* in, int n) {
  if (THREAD < 100) return;
  __syncthreads();
  out[THREAD] = in[THREAD];
}

// VALUE: 256
__global__ void same_value_flag(float* out, const float* in, int n) {
  __shared__ int flag;
  flag = n;
  __syncthreads();
  out[THREAD] = flag;
}

// VALUE: where(t == 0, 7, 0)
__global__ void same_value_global(float* out, const float* in, int n) { out[0] = 7; }

// VALUE: where(t == 0, 8 * 9 / 2, 0)
__global__ void blocks_add_atomically(float* out, const float* in, int n) {
  if (THREAD == 0) atomicAdd(out, in[blockIdx.x]);
}

// VALUE: where(t == 0, 8, where(t == 1, 36, where((t >= 2) & (t < 10), t - 1, 0)))
__global__ void last_block_sums(float* out, const float* in, int n) {
  if (THREAD != 0) return;
  out[2 + blockIdx.x] = in[blockIdx.x];
  __threadfence();
  if (atomicAdd(out, 1.0f) != gridDim.x - 1) return;
  __threadfence();
  float sum = 0;
  for (int i = 0; i < static_cast<int>(gridDim.x); ++i) sum += out[2 + i];
  out[1] = sum;
}

// VALUE: 32 - t
__global__ void syncwarp_between(float* out, const float* in, int n) {
  __shared__ float s[32];
  s[THREAD] = in[THREAD];
  __syncwarp();
  out[THREAD] = s[31 - THREAD];
}

// VALUE: 1 + t
__global__ void broadcast_then_reuse(float* out, const float* in, int n) {
  __shared__ float s[32];
  if (THREAD == 0) s[0] = in[0];
  __syncwarp();
  const float first = s[0];
  __syncwarp();
  s[THREAD] = first + THREAD;
  __syncwarp();
  out[THREAD] = s[THREAD];
}

// VALUE: where(t < 255, t + 2, 1)
__global__ void global_in_place_with_barrier(float* out, const float* in, int n) {
  out[THREAD] = in[THREAD];
  __syncthreads();
  const float next = out[(THREAD + 1) & 255];
  __syncthreads();
  out[THREAD] = next;
}

// VALUE: 32 * 33 / 2 + 1024 * (t // 32)
__global__ void warp_sum(float* out, const float* in, int n) {
  float v = in[THREAD];
  for (int k = 16; k > 0; k >>= 1) v += __shfl_xor_sync(~0u, v, k);
  out[THREAD] = v;
}

// VALUE: where(t < 40, 1, 0)
__global__ void tail_with_ballot_mask(float* out, const float* in, int n) {
  const unsigned mask = __ballot_sync(~0u, THREAD < 40);
  if (THREAD < 40) out[THREAD] = __shfl_sync(mask, 1.0f, 0);
}

// VALUE: where(t % 2 == 1, t, t + 2)
__global__ void shuffle_within_halves(float* out, const float* in, int n) {
  const unsigned odd = 0xaaaaaaaau;
  float v = in[THREAD];
  if (THREAD & 1) {
    v = __shfl_xor_sync(odd, v, 2);
    v = __shfl_xor_sync(odd, v, 2) - 1;
  } else {
    v = __shfl_xor_sync(~odd, v, 30);
    v = __shfl_xor_sync(~odd, v, 30) + 1;
  }
  out[THREAD] = v;
}

// VALUE: 3 * (t + 1) + where(t % 2 == 0, 3, -3)
__global__ void shuffle_in_loop_with_cold_branch(float* out, const float* in, int n) {
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < 3; ++k) {
    float v = __shfl_xor_sync(~0u, in[THREAD], 1);
    if ((THREAD + k) % 5 == 0) {
      __threadfence_block();
      asm volatile("" ::: "memory");
    }
    sum += v;
  }
  out[THREAD] = sum;
}

// VALUE: where(t < 32, 1, 2)
__global__ void named_barriers(float* out, const float* in, int n) {
  __shared__ float s[64];
  if (THREAD < 32) {
    s[THREAD] = 1;
    asm volatile("bar.sync 1, 32;" ::: "memory");
    out[THREAD] = s[31 - THREAD];
  } else {
    s[THREAD] = 2;
    asm volatile("bar.sync 2, 32;" ::: "memory");
    out[THREAD] = s[95 - THREAD];
  }
}

// VALUE: 1000 * 100 + 10 * 1 + 0
__global__ void reducing_barriers(float* out, const float* in, int n) {
  const int count = __syncthreads_count(THREAD < 100);
  const int any = __syncthreads_or(THREAD == 5);
  const int all = __syncthreads_and(THREAD != 5);
  out[THREAD] = 1000 * count + 10 * any + all;
}

// VALUE: where(t < 72, 2 * t + 130, t + 1)
__global__ void grid_stride_tail(float* out, const float* in, int n) {
  const int stride = gridDim.x * blockDim.x, start = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int i = start; i < 200; i += stride) sum += in[i];
  out[start] = sum;
}

// VALUE: (t + 1) * (t % 8)
__global__ void local_array(float* out, const float* in, int n) {
  float local[8];
#pragma unroll 1
  for (int i = 0; i < 8; ++i) local[i] = in[THREAD] * i;
  out[THREAD] = local[THREAD & 7];
}

__device__ float* pick(float* a, float* b, bool first) { return first ? a : b; }

// VALUE: where(t % 2 == 0, 2 * (t + 1), t + 1)
__global__ void generic_addresses(float* out, const float* in, int n) {
  __shared__ float s[256];
  float* p = pick(s + THREAD, out + THREAD, THREAD % 2 == 0);
  *p = in[THREAD];
  if (THREAD % 2 == 0) out[THREAD] = 2 * s[THREAD];
}

__device__ int counter = 3;
__constant__ float table[4] = {10, 20, 30, 40};

// VALUE: 10 + 10 * (t % 4) + 3
__global__ void module_variables(float* out, const float* in, int n) {
  out[THREAD] = table[THREAD & 3] + counter;
}

static const Case cases[] = {
    CASE(barrier_between, 1, 256, 0),
    CASE(early_return_before_barrier, 1, 256, 0),
    CASE(same_value_flag, 1, 256, 0),
    CASE(same_value_global, 4, 64, 0),
    CASE(blocks_add_atomically, 8, 32, 0),
    CASE(last_block_sums, 8, 32, 0),
    CASE(syncwarp_between, 1, 32, 0),
    CASE(broadcast_then_reuse, 1, 32, 0),
    CASE(global_in_place_with_barrier, 1, 256, 0),
    CASE(warp_sum, 1, 256, 0),
    CASE(tail_with_ballot_mask, 1, 64, 0),
    CASE(shuffle_within_halves, 1, 32, 0),
    CASE(shuffle_in_loop_with_cold_branch, 1, 64, 0),
    CASE(named_barriers, 1, 64, 0),
    CASE(reducing_barriers, 1, 256, 0),
    CASE(grid_stride_tail, 2, 64, 0),
    CASE(local_array, 1, 256, 0),
    CASE(generic_addresses, 1, 256, 0),
    CASE(module_variables, 1, 64, 0),
};

extern "C" int run_legal(const char* name, float* out, const float* in, int n) {
  return run(cases, name, out, in, n);
}
