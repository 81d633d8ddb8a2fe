// The functions of the stand-in for libcudart that ask and set: errors, devices, kernels, memory.

#include <string.h>

#include "fake_cudart.h"

int cudaGetLastError(void) { return take_last_error(); }
int cudaPeekAtLastError(void) { return peek_last_error(); }

typedef struct {
  int error;
  const char *name, *text;
} ErrorText;

static const ErrorText* error_text(int error) {
  static const ErrorText texts[] = {
      {kSuccess, "cudaSuccess", "no error"},
      {kInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
      {kInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
      {kInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
      {kInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
      {kNoKernelImage, "cudaErrorNoKernelImageForDevice",
       "no kernel image is available for execution on the device"},
      {kLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
      {kNotSupported, "cudaErrorNotSupported", "operation not supported"},
      {kInvalidClusterSize, "cudaErrorInvalidClusterSize", "cluster misconfiguration"},
  };
  static const ErrorText unknown = {-1, "cudaErrorUnknown", "unrecognized error code"};
  for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); ++i) {
    if (texts[i].error == error) return &texts[i];
  }
  return &unknown;
}
const char* cudaGetErrorName(int error) { return error_text(error)->name; }
const char* cudaGetErrorString(int error) { return error_text(error)->text; }

int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaSetDevice(int device) { return device == 0 ? kSuccess : fail(kInvalidDevice); }
int cudaGetDeviceCount(int* count) {
  *count = 1;
  return kSuccess;
}

// By the numbers of cudaDeviceAttr.
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 0) return fail(kInvalidDevice);
  const Properties* p = &device_properties;
  const int table[][2] = {
      {1, 1024},                      // threads in a block
      {8, kDefaultShared},            // shared memory of a block
      {10, 32},                       // warp size
      {12, 65536},                    // registers of a block
      {13, p->clock_khz},             // clock rate
      {16, p->processors},            // multiprocessors
      {38, p->l2_bytes},              // bytes of L2 cache
      {39, 2048},                     // threads on a multiprocessor
      {75, p->major},                 // compute capability, major
      {76, p->minor},                 // compute capability, minor
      {81, p->shared_per_processor},  // shared memory of a multiprocessor
      {95, 1},                        // cooperative launch
      {97, p->largest_shared},        // shared memory of a block that opts in
      {106, 32},                      // blocks on a multiprocessor
      {120, p->cluster_launch},       // clusters
  };
  for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); ++i) {
    if (table[i][0] == attribute) {
      *value = table[i][1];
      return kSuccess;
    }
  }
  return fail(kInvalidValue);
}

// By the numbers of cudaFuncAttribute.
int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  Kernel* kernel = find_kernel(function);
  if (kernel == NULL) return fail(kInvalidDeviceFunction);
  const Facts facts = facts_of(kernel);
  switch (attribute) {
    case 8:
      if (value < 0 || value > device_properties.largest_shared - facts.static_shared) {
        return fail(kInvalidValue);
      }
      kernel->dynamic_shared_limit = value;
      return kSuccess;
    case 9:
      return kSuccess;  // preferred carve-out: a hint
    case 14:
      kernel->large_clusters = value != 0;
      return device_properties.cluster_launch ? kSuccess : fail(kNotSupported);
    default:
      return fail(kInvalidValue);
  }
}

// cudaFuncAttributes. What only the assembler knows (registers, local memory) is 0.
typedef struct {
  size_t shared, constant, local;
  int max_threads, registers, ptx_version, binary_version, cache_mode;
  int max_dynamic_shared, carve_out, cluster_required, cluster[3], cluster_policy, large_clusters;
  int reserved[16];
} FunctionAttributes;

int cudaFuncGetAttributes(FunctionAttributes* attributes, const void* function) {
  const Kernel* kernel = find_kernel(function);
  if (kernel == NULL) return fail(kInvalidDeviceFunction);
  const Facts facts = facts_of(kernel);
  memset(attributes, 0, sizeof(*attributes));
  attributes->shared = (size_t)facts.static_shared;
  attributes->max_threads = facts.max_threads;
  attributes->ptx_version = attributes->binary_version = facts.target;
  attributes->max_dynamic_shared = (int)dynamic_limit(kernel, &facts);
  attributes->carve_out = -1;
  attributes->cluster_required = facts.cluster[0] != 0;
  for (int i = 0; i < 3; ++i) attributes->cluster[i] = (int)facts.cluster[i];
  attributes->large_clusters = kernel->large_clusters;
  return kSuccess;
}

// By threads and shared memory alone: the stand-in does not know how many registers a kernel uses.
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                           int threads, size_t shared,
                                                           unsigned flags) {
  (void)flags;
  const Kernel* kernel = find_kernel(function);
  if (kernel == NULL) return fail(kInvalidDeviceFunction);
  if (threads <= 0 || threads > 1024) return fail(kInvalidValue);
  const Facts facts = facts_of(kernel);
  const int by_threads = 2048 / ((threads + 31) / 32 * 32);
  const size_t each = shared + (size_t)facts.static_shared + 1024;  // 1 KB a block is reserved
  const int by_shared = (int)((size_t)device_properties.shared_per_processor / each);
  *blocks = by_threads < by_shared ? by_threads : by_shared;
  if (*blocks > 32) *blocks = 32;
  return kSuccess;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                  size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared,
                                                                0);
}

// As if all multiprocessors stood in one group; in truth a cluster lies within one of about 16.
int cudaOccupancyMaxActiveClusters(int* clusters, const void* function,
                                   const LaunchConfig* config) {
  const Kernel* kernel = find_kernel(function);
  if (kernel == NULL) return fail(kInvalidDeviceFunction);
  const Facts facts = facts_of(kernel);
  const Dim3 one = {1, 1, 1};
  const Dim3* named;
  int error = find_cluster(config, &named);
  const Dim3 cluster = named != NULL ? *named : one;
  if (error == kSuccess) error = check_cluster(kernel, &facts, config->grid, cluster);
  if (error != kSuccess) return fail(error);
  if ((long)config->shared > dynamic_limit(kernel, &facts)) return fail(kInvalidValue);
  int blocks;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks, function, (int)(config->block.x * config->block.y * config->block.z),
      config->shared);
  *clusters = error == kSuccess
                  ? blocks * device_properties.processors / (int)(cluster.x * cluster.y * cluster.z)
                  : 0;
  return error;
}
int cudaOccupancyMaxPotentialClusterSize(int* size, const void* function,
                                         const LaunchConfig* config) {
  (void)config;
  const Kernel* kernel = find_kernel(function);
  if (kernel == NULL) return fail(kInvalidDeviceFunction);
  if (!device_properties.cluster_launch) return fail(kNotSupported);
  *size = kernel->large_clusters ? kLargestCluster : kPortableCluster;
  return kSuccess;
}

int cudaStreamIsCapturing(void* stream, int* status) {
  (void)stream;
  *status = get_capture_status();
  return kSuccess;
}

int cudaMemcpyAsync(void* target, const void* source, size_t bytes, int kind, void* stream) {
  (void)kind, (void)stream;
  memmove(target, source, bytes);
  return kSuccess;
}
int cudaMemsetAsync(void* target, int value, size_t bytes, void* stream) {
  (void)stream;
  memset(target, value, bytes);
  return kSuccess;
}
