// Tensor-core products, a warp each: d = a b + c with a of 16 x 16, b of 16 x 8, c of 16 x 8, all
// in row-major order, one after the other for each warp.

#include <cstdint>

__device__ uint32_t pair(const uint16_t* matrix, int first, int second) {
  return matrix[first] | static_cast<uint32_t>(matrix[second]) << 16;
}

#define PRODUCT(name, type)                                                                    \
  __global__ void name(float* d, const uint16_t* a, const uint16_t* b, const float* c) {       \
    const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;                             \
    const int g = threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 2;                               \
    a += warp * 256, b += warp * 128, c += warp * 128, d += warp * 128;                        \
    uint32_t a_pair[4], b_pair[2];                                                             \
    for (int i = 0; i < 4; ++i) {                                                              \
      const int at = (g + i % 2 * 8) * 16 + k + i / 2 * 8;                                     \
      a_pair[i] = pair(a, at, at + 1);                                                         \
    }                                                                                          \
    for (int i = 0; i < 2; ++i) {                                                              \
      const int row = k + i * 8;                                                               \
      b_pair[i] = pair(b, row * 8 + g, row * 8 + 8 + g);                                       \
    }                                                                                          \
    const int upper = g * 8 + k, lower = upper + 64;                                           \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                 \
        ".f32 {%0, %1, %2, %3}, "                                                              \
        "{%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                                    \
        : "=f"(d[upper]), "=f"(d[upper + 1]), "=f"(d[lower]), "=f"(d[lower + 1])               \
        : "r"(a_pair[0]), "r"(a_pair[1]), "r"(a_pair[2]), "r"(a_pair[3]), "r"(b_pair[0]),      \
          "r"(b_pair[1]), "f"(c[upper]), "f"(c[upper + 1]), "f"(c[lower]), "f"(c[lower + 1])); \
  }                                                                                            \
  extern "C" int run_##name(float* d, const uint16_t* a, const uint16_t* b, const float* c,    \
                            int blocks) {                                                      \
    name<<<blocks, 64>>>(d, a, b, c);                                                          \
    return cudaGetLastError();                                                                 \
  }

PRODUCT(product_of_bfloats, "bf16")
PRODUCT(product_of_halves, "f16")
