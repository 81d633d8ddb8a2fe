// Lets one function serve CPU and CUDA kernels: nvcc needs the attributes, a C++ compiler none.
#pragma once

#ifdef __CUDACC__
#define REGOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define REGOPS_HOST_DEVICE inline __attribute__((always_inline))
#endif
