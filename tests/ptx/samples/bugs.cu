// One defect a kernel. `BUG: message` marks the line that the interpreter must name, and what it
// must say.

#include "cases.h"

#define THREAD static_cast<int>(threadIdx.x)

__global__ void read_before_barrier(float* out, const float* in, int n) {
  __shared__ float s[256];
  s[THREAD] = in[THREAD];
  out[THREAD] = s[255 - THREAD];  // BUG: shared memory race: read
}

__global__ void write_after_read(float* out, const float* in, int n) {
  __shared__ float s[256];
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < n; ++k) {
    s[THREAD] = in[THREAD] + k;  // BUG: shared memory race: write
    __syncthreads();
    sum += s[(THREAD + 1) & 255];
  }
  out[THREAD] = sum;
}

__global__ void halves_of_one_word(float* out, const float* in, int n) {
  __shared__ short s[256];
  s[THREAD] = static_cast<short>(n);
  __syncthreads();
  s[THREAD ^ 1] = static_cast<short>(THREAD);
  out[THREAD] = s[THREAD];  // BUG: shared memory race: read
}

__global__ void different_values_at_once(float* out, const float* in, int n) {
  __shared__ float s;
  s = in[THREAD] + THREAD;  // BUG: shared memory race: lanes write different values
  __syncthreads();
  out[THREAD] = s;
}

__global__ void different_values_by_turns(float* out, const float* in, int n) {
  __shared__ float s;
  if (THREAD == 0) s = in[0];
  if (THREAD == 32) s = in[1];  // BUG: shared memory race: write
  __syncthreads();
  out[THREAD] = s;
}

__global__ void plain_write_beside_atomics(float* out, const float* in, int n) {
  __shared__ float s;
  if (THREAD == 0) s = 0;
  atomicAdd(&s, 1.0f);  // BUG: shared memory race: atomic
  __syncthreads();
  out[THREAD] = s;
}

__global__ void missing_syncwarp(float* out, const float* in, int n) {
  __shared__ float s[32];
  s[THREAD] = in[THREAD];
  out[THREAD] = s[31 - THREAD];  // BUG: shared memory race: read
}

__global__ void missing_syncwarp_before_reuse(float* out, const float* in, int n) {
  __shared__ float s[32];
  s[THREAD] = in[THREAD];
  __syncwarp();
  const float sum = s[0] + s[31 - THREAD];
  s[THREAD ^ 1] = sum;  // BUG: shared memory race: write
  __syncwarp();
  out[THREAD] = s[THREAD];
}

__global__ void barrier_in_two_branches(float* out, const float* in, int n) {
  if (THREAD < 100) {
    out[THREAD] = 1;
    __syncthreads();  // BUG: divergent barrier: threads of one block wait at different barriers
    out[THREAD] = in[THREAD];
  } else {
    out[THREAD] = 2;
    __syncthreads();
    out[THREAD] = 2 * in[THREAD];
  }
}

__global__ void barrier_stepped_around(float* out, const float* in, int n) {
  if (THREAD < 100) __syncthreads();  // BUG: divergent barrier
  out[THREAD] = in[THREAD];
}

__global__ void barrier_count_differs(float* out, const float* in, int n) {
#pragma unroll 1
  for (int i = 0; i < 1 + (THREAD >= 128); ++i) {
    __syncthreads();  // BUG: divergent barrier
    __syncwarp();
  }
  out[THREAD] = 1;
}

__global__ void named_barrier_short_of_threads(float* out, const float* in, int n) {
  if (THREAD < 32) asm volatile("bar.sync 1, 64;" ::: "memory");  // BUG: divergent bar
  out[THREAD] = 1;
}

__global__ void shuffle_in_branch(float* out, const float* in, int n) {
  float v = in[THREAD];
  if ((THREAD & 31) < 16) v = __shfl_xor_sync(~0u, v, 1);  // BUG: lanes 16, 17, 18, 19, ... of the
  out[THREAD] = v;
}

__global__ void shuffle_against_barrier(float* out, const float* in, int n) {
  float v = in[THREAD];
  if ((THREAD & 31) < 16) v = __shfl_xor_sync(~0u, v, 1);  // BUG: divergent shfl
  __syncthreads();
  out[THREAD] = v;
}

__global__ void shuffle_after_return(float* out, const float* in, int n) {
  if (THREAD >= n - 20) return;
  float v = in[THREAD];
  v += __shfl_down_sync(~0u, v, 16);  // BUG: member mask have exited
  out[THREAD] = v;
}

__global__ void shuffle_in_partial_warp(float* out, const float* in, int n) {
  out[THREAD] = __shfl_xor_sync(~0u, in[THREAD], 1);  // BUG: lanes 16, 17, 18, 19, ... of the
}

__global__ void shuffle_from_absent_lane(float* out, const float* in, int n) {
  float v = in[THREAD];
  if (THREAD < 16) v = __shfl_sync(0xffffu, v, 16);  // BUG: reads lane 16
  out[THREAD] = v;
}

__global__ void ballot_in_branch(float* out, const float* in, int n) {
  unsigned votes = 0;
  if (THREAD < 20) votes = __ballot_sync(~0u, in[THREAD] > 0);  // BUG: member mask have exited
  out[THREAD] = votes;
}

__global__ void match_after_return(float* out, const float* in, int n) {
  if (THREAD >= 20) return;
  out[THREAD] = __match_any_sync(~0u, THREAD & 3);  // BUG: member mask have exited
}

__global__ void different_masks(float* out, const float* in, int n) {
  const unsigned mask = THREAD == 5 ? 0x7fffffffu : ~0u;
  out[THREAD] = __shfl_xor_sync(mask, in[THREAD], 1);  // BUG: lanes name different member masks
}

__global__ void syncwarp_against_barrier(float* out, const float* in, int n) {
  if (THREAD & 1) __syncwarp();  // BUG: divergent bar
  __syncthreads();
  out[THREAD] = in[THREAD];
}

// Lanes of a warp multiply matrices of their input, and add them to x to x3.
#define PRODUCT(x)                                                             \
  asm volatile(                                                                \
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, " \
      "{%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"                          \
      : "+f"(x), "+f"(x##1), "+f"(x##2), "+f"(x##3)                            \
      : "r"(__float_as_int(in[THREAD])))
#define PRODUCT_VALUE(x) float x = in[THREAD], x##1 = x, x##2 = x, x##3 = x

__global__ void product_in_branch(float* out, const float* in, int n) {
  PRODUCT_VALUE(v);
  if (in[THREAD] < 9) PRODUCT(v);  // BUG: lanes 8, 9, 10, 11, ... of the
  out[THREAD] = v;
}

__global__ void product_against_barrier(float* out, const float* in, int n) {
  PRODUCT_VALUE(v);
  if (in[THREAD] < 9) PRODUCT(v);  // BUG: divergent mma
  __syncthreads();
  out[THREAD] = v;
}

__global__ void product_after_return(float* out, const float* in, int n) {
  if (THREAD >= n - 20) return;
  PRODUCT_VALUE(v);
  PRODUCT(v);  // BUG: member mask have exited
  out[THREAD] = v;
}

__global__ void product_in_partial_warp(float* out, const float* in, int n) {
  PRODUCT_VALUE(v);
  PRODUCT(v);  // BUG: lanes 16, 17, 18, 19, ... of the
  out[THREAD] = v;
}

__global__ void global_past_end(float* out, const float* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) out[i] = 1;  // BUG: out of bounds: write of 4 bytes
}

__global__ void global_between_buffers(float* out, const float* in, int n) {
  const long long distance = in - out;
  out[THREAD] = out[distance / 2 + THREAD];  // BUG: out of bounds: read of 4 bytes
}

__global__ void shared_past_end(float* out, const float* in, int n) {
  __shared__ float s[256];
  s[THREAD] = in[THREAD];
  __syncthreads();
  if (THREAD == n - 1) s[n] = 2;  // BUG: out of bounds: write at byte 1024 of 1024
  out[THREAD] = s[THREAD];
}

__global__ void dynamic_shared_past_end(float* out, const float* in, int n) {
  extern __shared__ float dynamic[];
  dynamic[THREAD + 1] = in[THREAD];  // BUG: out of bounds: write at byte 1024 of 1024
  __syncthreads();
  out[THREAD] = dynamic[THREAD + 1];
}

__global__ void misaligned_global(float* out, const float* in, int n) {
  const float4* const vectors = reinterpret_cast<const float4*>(in + 1);
  *reinterpret_cast<float4*>(out) = vectors[0];  // BUG: misaligned 16-byte access
}

__global__ void misaligned_shared(float* out, const float* in, int n) {
  extern __shared__ float dynamic[];
  dynamic[THREAD] = in[THREAD];
  __syncthreads();
  const float2 v = *reinterpret_cast<float2*>(dynamic + n - 1);  // BUG: misaligned 8-byte access
  out[THREAD] = v.x + v.y;
}

__global__ void blocks_add_plainly(float* out, const float* in, int n) {
  if (THREAD == 0) *out += in[blockIdx.x];  // BUG: global memory race
}

__global__ void neighbour_in_place(float* out, const float* in, int n) {
  const float v = out[(THREAD + 1) & 255];
  out[THREAD] = v + 1;  // BUG: global memory race: write, and read
}

__global__ void plain_write_beside_global_atomics(float* out, const float* in, int n) {
  if (THREAD == 0) out[0] = 0;
  atomicAdd(out, 1.0f);  // BUG: global memory race: atomic, and write
}

__global__ void last_block_without_fence(float* out, const float* in, int n) {
  if (THREAD != 0) return;
  out[2 + blockIdx.x] = in[blockIdx.x];
  if (atomicAdd(out, 1.0f) != gridDim.x - 1) return;
  float sum = 0;
  for (int i = 0; i < static_cast<int>(gridDim.x); ++i) {
    sum += out[2 + i];  // BUG: global memory race: read, and write
  }
  out[1] = sum;
}

__global__ void uninitialised_shared(float* out, const float* in, int n) {
  __shared__ float s[256];
  if (THREAD < 128) s[THREAD] = in[THREAD];
  __syncthreads();
  out[THREAD] = s[THREAD];  // BUG: read of uninitialised shared memory
}

__global__ void uninitialised_local(float* out, const float* in, int n) {
  float local[8];
#pragma unroll 1
  for (int i = 0; i < (THREAD & 7); ++i) local[i] = in[i];
  out[THREAD] = local[n & 7];  // BUG: read of uninitialised local memory
}

#define SET_IF_BELOW_7 "{ .reg .s32 t; .reg .pred p; setp.lt.s32 p, %1, 7; @p mov.s32 t, 5; "

__global__ void register_of_one_branch(float* out, const float* in, int n) {
  int v;
  asm(SET_IF_BELOW_7 "mov.s32 %0, t; }" : "=r"(v) : "r"(THREAD));  // BUG: uninitialised register t
  out[THREAD] = v;
}

__global__ void selected_register(float* out, const float* in, int n) {
  int v;
  asm(SET_IF_BELOW_7 "selp.s32 %0, 3, t, p; }" : "=r"(v) : "r"(THREAD));  // BUG: register t
  out[THREAD] = v;
}

__global__ void write_to_read_only(float* out, const float* in, int n) {
  const_cast<float*>(in)[THREAD] = out[THREAD];  // BUG: write to read-only buffer of float32[300]
}

__global__ void failed_trap(float* out, const float* in, int n) {
  if (in[THREAD] > 0) __trap();  // BUG: trap
}

static const Case cases[] = {
    CASE(read_before_barrier, 1, 256, 0),
    CASE(write_after_read, 1, 256, 0),
    CASE(halves_of_one_word, 1, 256, 0),
    CASE(different_values_at_once, 1, 64, 0),
    CASE(plain_write_beside_atomics, 1, 64, 0),
    CASE(missing_syncwarp, 1, 32, 0),
    CASE(missing_syncwarp_before_reuse, 1, 32, 0),
    CASE(barrier_in_two_branches, 1, 256, 0),
    CASE(barrier_stepped_around, 1, 256, 0),
    CASE(barrier_count_differs, 1, 256, 0),
    CASE(named_barrier_short_of_threads, 1, 64, 0),
    CASE(shuffle_in_branch, 1, 64, 0),
    CASE(shuffle_against_barrier, 1, 64, 0),
    CASE(shuffle_after_return, 1, 256, 0),
    CASE(shuffle_in_partial_warp, 1, 48, 0),
    CASE(shuffle_from_absent_lane, 1, 32, 0),
    CASE(ballot_in_branch, 1, 32, 0),
    CASE(match_after_return, 1, 32, 0),
    CASE(different_masks, 1, 32, 0),
    CASE(syncwarp_against_barrier, 1, 32, 0),
    CASE(product_in_branch, 1, 64, 0),
    CASE(product_against_barrier, 1, 64, 0),
    CASE(product_after_return, 1, 256, 0),
    CASE(product_in_partial_warp, 1, 48, 0),
    CASE(global_past_end, 2, 256, 0),
    CASE(different_values_by_turns, 1, 64, 0),
    CASE(global_between_buffers, 1, 32, 0),
    CASE(shared_past_end, 1, 256, 0),
    CASE(dynamic_shared_past_end, 1, 256, 1024),
    CASE(misaligned_global, 1, 1, 0),
    CASE(misaligned_shared, 1, 256, 1024),
    CASE(blocks_add_plainly, 8, 64, 0),
    CASE(neighbour_in_place, 1, 256, 0),
    CASE(plain_write_beside_global_atomics, 1, 256, 0),
    CASE(last_block_without_fence, 8, 32, 0),
    CASE(uninitialised_shared, 1, 256, 0),
    CASE(uninitialised_local, 1, 256, 0),
    CASE(register_of_one_branch, 1, 32, 0),
    CASE(selected_register, 1, 32, 0),
    CASE(write_to_read_only, 1, 32, 0),
    CASE(failed_trap, 1, 32, 0),
};

extern "C" int run_bug(const char* name, float* out, const float* in, int n) {
  return run(cases, name, out, in, n);
}
