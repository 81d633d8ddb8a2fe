// Launching small kernels of one signature by name.

#pragma once

#include <cuda_runtime.h>

#include <cstring>

struct Case {
  const char* name;
  void (*kernel)(float* out, const float* in, int n);
  int grid, block, dynamic_shared;
};

#define CASE(kernel, grid, block, dynamic_shared) {#kernel, kernel, grid, block, dynamic_shared}

template <int N>
int run(const Case (&cases)[N], const char* name, float* out, const float* in, int n) {
  for (const Case& c : cases) {
    if (std::strcmp(c.name, name) == 0) {
      c.kernel<<<c.grid, c.block, c.dynamic_shared>>>(out, in, n);
      return cudaGetLastError();
    }
  }
  return -1;
}
