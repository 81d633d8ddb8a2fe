// Stands in for libcudart in tests: host code compiled by nvcc runs unmodified, and a kernel launch
// calls back into the interpreter. Device memory is host memory. A function that is missing here
// fails at link time.

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned x, y, z;
} Dim3;

// Values of cudaError_t.
enum {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDeviceFunction = 98,
  kInvalidDevice = 101,
  kNoKernelImage = 209,
  kLaunchFailure = 719,
  kNotSupported = 801,
  kCallLimit = 900,  // not CUDA's: a table of this file is full
  kInvalidClusterSize = 912,
};

enum { kMaxKernels = 4096, kMaxPending = 64 };
// Shared memory a block may use without cudaFuncSetAttribute.
enum { kDefaultShared = 48 * 1024 };
// Blocks in a cluster on every device that has them, and where a kernel allows more.
enum { kPortableCluster = 8, kLargestCluster = 16 };

// What a test says of its device; see Properties in runtime.py.
typedef struct {
  int major, minor, processors, largest_shared, shared_per_processor, cluster_launch, l2_bytes;
  int clock_khz;
} Properties;

// What the interpreter knows of a kernel from its PTX.
typedef struct {
  int target;  // 10 * major + minor of its PTX
  int static_shared, max_threads;
  unsigned cluster[3];  // zeros where the kernel does not fix it
} Facts;

typedef int (*LaunchCallback)(const char* name, const unsigned* grid, const unsigned* block,
                              const unsigned* cluster, int explicit_cluster, void** arguments,
                              size_t dynamic_shared);
typedef void (*FactsCallback)(const char* name, Facts* facts);

typedef struct {
  const void* function;
  const char* name;
  int dynamic_shared_limit;  // -1 until cudaFuncSetAttribute
  int large_clusters;
} Kernel;

typedef struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
} Configuration;

static LaunchCallback launch_callback;
static FactsCallback facts_callback;
static Properties device_properties;
static Kernel kernels[kMaxKernels];
static int kernel_count;
static Configuration pending[kMaxPending];
static int pending_count;
static int last_error;
static int capture_status;

static int fail(int error) {
  if (error != kSuccess) last_error = error;
  return error;
}

static Kernel* find_kernel(const void* function) {
  for (int i = 0; i < kernel_count; ++i) {
    if (kernels[i].function == function) return &kernels[i];
  }
  return NULL;
}

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

// What a block may have beside its static shared memory.
static long dynamic_limit(const Kernel* kernel, const Facts* facts) {
  if (kernel->dynamic_shared_limit >= 0) return kernel->dynamic_shared_limit;
  return (long)kDefaultShared - facts->static_shared;
}

static int check_cluster(const Kernel* kernel, const Facts* facts, Dim3 grid, Dim3 cluster,
                         int is_explicit) {
  const unsigned* fixed = facts->cluster;
  const int differs = cluster.x != fixed[0] || cluster.y != fixed[1] || cluster.z != fixed[2];
  const size_t size = (size_t)cluster.x * cluster.y * cluster.z;
  if (!is_explicit) return kSuccess;
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
  Facts facts;
  facts_callback(kernel->name, &facts);
  const Properties* device = &device_properties;
  if (facts.target > 10 * device->major + device->minor) return fail(kNoKernelImage);
  if ((long)shared > dynamic_limit(kernel, &facts)) return fail(kInvalidValue);
  const int fixed = facts.cluster[0] != 0;
  Dim3 blocks = {1, 1, 1};
  if (fixed) blocks = (Dim3){facts.cluster[0], facts.cluster[1], facts.cluster[2]};
  if (cluster != NULL) blocks = *cluster;
  const int is_explicit = fixed || cluster != NULL;
  const int error = check_cluster(kernel, &facts, grid, blocks, is_explicit);
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

// cudaLaunchAttribute: a number that says which, and 64 bytes of value.
enum { kAttributeIgnore = 0, kAttributeCluster = 4, kAttributeClusterScheduling = 5 };
typedef struct {
  int id, unused;
  union {
    Dim3 cluster;
    char bytes[64];
  } value;
} LaunchAttribute;

typedef struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
} LaunchConfig;

// The cluster that a configuration names, if any; other attributes (programmatic dependent launch,
// cooperative launch) are not interpreted.
static int find_cluster(const LaunchConfig* config, const Dim3** cluster) {
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

// The runtime's public functions.

int cudaGetLastError(void) {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}
int cudaPeekAtLastError(void) { return last_error; }

static const char* const* error_texts(int error) {
  static const char* const texts[][2] = {
      {"cudaSuccess", "no error"},
      {"cudaErrorInvalidValue", "invalid argument"},
      {"cudaErrorInvalidConfiguration", "invalid configuration argument"},
      {"cudaErrorInvalidDeviceFunction", "invalid device function"},
      {"cudaErrorInvalidDevice", "invalid device ordinal"},
      {"cudaErrorLaunchFailure", "unspecified launch failure"},
      {"cudaErrorNotSupported", "operation not supported"},
      {"cudaErrorInvalidClusterSize", "cluster misconfiguration"},
      {"cudaErrorNoKernelImageForDevice",
       "no kernel image is available for execution on the device"},
      {"cudaErrorUnknown", "unrecognized error code"},
  };
  switch (error) {
    case kSuccess:
      return texts[0];
    case kInvalidValue:
      return texts[1];
    case kInvalidConfiguration:
      return texts[2];
    case kInvalidDeviceFunction:
      return texts[3];
    case kInvalidDevice:
      return texts[4];
    case kLaunchFailure:
      return texts[5];
    case kNotSupported:
      return texts[6];
    case kInvalidClusterSize:
      return texts[7];
    case kNoKernelImage:
      return texts[8];
    default:
      return texts[9];
  }
}
const char* cudaGetErrorName(int error) { return error_texts(error)[0]; }
const char* cudaGetErrorString(int error) { return error_texts(error)[1]; }

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
  Facts facts;
  facts_callback(kernel->name, &facts);
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
  Facts facts;
  facts_callback(kernel->name, &facts);
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
  Facts facts;
  facts_callback(kernel->name, &facts);
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
  Facts facts;
  facts_callback(kernel->name, &facts);
  const Dim3 one = {1, 1, 1};
  const Dim3* named;
  int error = find_cluster(config, &named);
  const Dim3 cluster = named != NULL ? *named : one;
  if (error == kSuccess) error = check_cluster(kernel, &facts, config->grid, cluster, 1);
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
  *status = capture_status;
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
