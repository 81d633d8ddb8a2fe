// Stands in for libcudart in tests: host code compiled by nvcc runs unmodified, and a kernel launch
// calls back into the interpreter. Device memory is host memory. A function that is missing here
// fails at link time.

#include "fake_cudart.h"

#include <stdlib.h>

enum { kMaxKernels = 4096, kMaxPending = 64 };

typedef struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
} Configuration;

static LaunchCallback launch_callback;
static FactsCallback facts_callback;
Properties device_properties;
static Kernel kernels[kMaxKernels];
static int kernel_count;
static Configuration pending[kMaxPending];
static int pending_count;
static int last_error;
static int capture_status;

int fail(int error) {
  if (error != kSuccess) last_error = error;
  return error;
}

Kernel* find_kernel(const void* function) {
  for (int i = 0; i < kernel_count; ++i) {
    if (kernels[i].function == function) return &kernels[i];
  }
  return NULL;
}

Facts facts_of(const Kernel* kernel) {
  Facts facts;
  facts_callback(kernel->name, &facts);
  return facts;
}

int take_last_error(void) {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}
int peek_last_error(void) { return last_error; }
int get_capture_status(void) { return capture_status; }

// For the tests.

void fake_cudart_set_device(const Properties* properties, LaunchCallback launch,
                            FactsCallback facts) {
  device_properties = *properties, launch_callback = launch, facts_callback = facts;
}
void fake_cudart_set_capture_status(int status) { capture_status = status; }
void fake_cudart_reset(void) { last_error = pending_count = capture_status = 0; }

// What nvcc's host code calls to register kernels and to launch them.

void** __cudaRegisterFatBinary(void* fatbin) {
  static void* handle;
  (void)fatbin;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { (void)handle; }

void __cudaRegisterVar(void** handle, char* host, char* address, const char* name, int external,
                       size_t size, int constant, int global) {
  (void)handle, (void)host, (void)address, (void)name;
  (void)external, (void)size, (void)constant, (void)global;
}

void __cudaRegisterFunction(void** handle, const char* function, char* device_function,
                            const char* name, int thread_limit, void* thread_id, void* block_id,
                            void* block_dim, void* grid_dim, int* warp_size) {
  (void)handle, (void)device_function, (void)thread_limit, (void)thread_id;
  (void)block_id, (void)block_dim, (void)grid_dim, (void)warp_size;
  if (kernel_count == kMaxKernels) abort();
  kernels[kernel_count++] = (Kernel){function, name, -1, 0};
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  if (pending_count == kMaxPending) return (unsigned)fail(kCallLimit);
  pending[pending_count++] = (Configuration){grid, block, shared, stream};
  return kSuccess;
}

int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  if (pending_count == 0) return fail(kInvalidConfiguration);
  const Configuration* top = &pending[--pending_count];
  *grid = top->grid, *block = top->block, *shared = top->shared, *stream = top->stream;
  return kSuccess;
}

int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = (void*)function;
  return kSuccess;
}

long dynamic_limit(const Kernel* kernel, const Facts* facts) {
  if (kernel->dynamic_shared_limit >= 0) return kernel->dynamic_shared_limit;
  return (long)kDefaultShared - facts->static_shared;
}

// The numbers of these errors follow the documentation; they were not compared with a GPU's.
int check_cluster(const Kernel* kernel, const Facts* facts, Dim3 grid, Dim3 cluster) {
  const unsigned* fixed = facts->cluster;
  const int differs = cluster.x != fixed[0] || cluster.y != fixed[1] || cluster.z != fixed[2];
  const size_t size = (size_t)cluster.x * cluster.y * cluster.z;
  if (!device_properties.cluster_launch && size != 1) return kNotSupported;
  if (size == 0 || (fixed[0] && differs)) return kInvalidClusterSize;
  if (size > (size_t)(kernel->large_clusters ? kLargestCluster : kPortableCluster)) {
    return kInvalidClusterSize;
  }
  const int whole = grid.x % cluster.x == 0 && grid.y % cluster.y == 0 && grid.z % cluster.z == 0;
  return whole ? kSuccess : kInvalidClusterSize;
}

// `cluster` is null where the launch does not name one.
static int launch(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                  const Dim3* cluster) {
  const Kernel* kernel = find_kernel(function);
  if (kernel == NULL || launch_callback == NULL) return fail(kInvalidDeviceFunction);
  const int empty = !grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z;
  const int grid_too_large = grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535;
  const int block_too_large = block.x > 1024 || block.y > 1024 || block.z > 64 ||
                              (size_t)block.x * block.y * block.z > 1024;
  if (empty || grid_too_large || block_too_large) return fail(kInvalidConfiguration);
  const Facts facts = facts_of(kernel);
  const Properties* device = &device_properties;
  if (facts.target > 10 * device->major + device->minor) return fail(kNoKernelImage);
  if ((long)shared > dynamic_limit(kernel, &facts)) return fail(kInvalidValue);
  const int fixed = facts.cluster[0] != 0;
  Dim3 blocks = {1, 1, 1};
  if (fixed) blocks = (Dim3){facts.cluster[0], facts.cluster[1], facts.cluster[2]};
  if (cluster != NULL) blocks = *cluster;
  const int is_explicit = fixed || cluster != NULL;
  const int error = is_explicit ? check_cluster(kernel, &facts, grid, blocks) : kSuccess;
  if (error != kSuccess) return fail(error);
  return fail(
      launch_callback(kernel->name, &grid.x, &block.x, &blocks.x, is_explicit, arguments, shared));
}

int __cudaLaunchKernel(void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                       void* stream) {
  (void)stream;
  return launch(kernel, grid, block, arguments, shared, NULL);
}

int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                     void* stream) {
  (void)stream;
  return launch(function, grid, block, arguments, shared, NULL);
}

int find_cluster(const LaunchConfig* config, const Dim3** cluster) {
  *cluster = NULL;
  for (unsigned i = 0; i < config->attribute_count; ++i) {
    const LaunchAttribute* attribute = &config->attributes[i];
    if (attribute->id == kAttributeCluster) {
      *cluster = &attribute->value.cluster;
    } else if (attribute->id != kAttributeIgnore && attribute->id != kAttributeClusterScheduling) {
      return kNotSupported;
    }
  }
  return kSuccess;
}

int cudaLaunchKernelExC(const LaunchConfig* config, const void* function, void** arguments) {
  const Dim3* cluster;
  const int error = find_cluster(config, &cluster);
  if (error != kSuccess) return fail(error);
  return launch(function, config->grid, config->block, arguments, config->shared, cluster);
}
