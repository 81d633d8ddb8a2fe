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
  kLaunchFailure = 719,
  kNotSupported = 801,
  kCallLimit = 900,  // not CUDA's: a table of this file is full
};

enum { kMaxKernels = 4096, kMaxPending = 64 };
// Shared memory a block may use without cudaFuncSetAttribute, and with it, on sm_90.
enum { kDefaultShared = 48 * 1024, kLargestShared = 227 * 1024, kSharedPerProcessor = 228 * 1024 };

typedef int (*LaunchCallback)(const char* name, const unsigned* grid, const unsigned* block,
                              void** arguments, size_t dynamic_shared);

typedef struct {
  const void* function;
  const char* name;
  size_t dynamic_shared_limit;
} Kernel;

typedef struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
} Configuration;

static LaunchCallback launch_callback;
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

void fake_cudart_set_launch(LaunchCallback callback) { launch_callback = callback; }
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
  kernels[kernel_count++] = (Kernel){function, name, kDefaultShared};
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

static int launch(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared) {
  const Kernel* kernel = find_kernel(function);
  if (kernel == NULL || launch_callback == NULL) return fail(kInvalidDeviceFunction);
  const int empty = !grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z;
  const int grid_too_large = grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535;
  const int block_too_large = block.x > 1024 || block.y > 1024 || block.z > 64 ||
                              (size_t)block.x * block.y * block.z > 1024;
  if (empty || grid_too_large || block_too_large) return fail(kInvalidConfiguration);
  if (shared > kernel->dynamic_shared_limit) return fail(kInvalidValue);
  return fail(launch_callback(kernel->name, &grid.x, &block.x, arguments, shared));
}

int __cudaLaunchKernel(void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                       void* stream) {
  (void)stream;
  return launch(kernel, grid, block, arguments, shared);
}

int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                     void* stream) {
  (void)stream;
  return launch(function, grid, block, arguments, shared);
}

typedef struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
  void* attributes;
  unsigned attribute_count;
} LaunchConfig;

// Launch attributes (clusters, programmatic dependent launch) are not interpreted.
int cudaLaunchKernelExC(const LaunchConfig* config, const void* function, void** arguments) {
  if (config->attribute_count != 0) return fail(kNotSupported);
  return launch(function, config->grid, config->block, arguments, config->shared);
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
    default:
      return texts[7];
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

// Values of an H200, by the numbers of cudaDeviceAttr.
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 0) return fail(kInvalidDevice);
  switch (attribute) {
    case 1:
      *value = 1024;
      break;  // threads in a block
    case 8:
      *value = kDefaultShared;
      break;  // shared memory of a block
    case 10:
      *value = 32;
      break;  // warp size
    case 12:
      *value = 65536;
      break;  // registers of a block
    case 13:
      *value = 1980000;
      break;  // clock rate, kHz
    case 16:
      *value = 132;
      break;  // multiprocessors
    case 38:
      *value = 50 * 1024 * 1024;
      break;  // bytes of L2 cache
    case 39:
      *value = 2048;
      break;  // threads on a multiprocessor
    case 75:
      *value = 9;
      break;  // compute capability, major
    case 76:
      *value = 0;
      break;  // compute capability, minor
    case 81:
      *value = kSharedPerProcessor;
      break;  // shared memory of a multiprocessor
    case 95:
      *value = 1;
      break;  // cooperative launch
    case 97:
      *value = kLargestShared;
      break;  // shared memory of a block that opts in
    case 106:
      *value = 32;
      break;  // blocks on a multiprocessor
    default:
      return fail(kInvalidValue);
  }
  return kSuccess;
}

int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  Kernel* kernel = find_kernel(function);
  if (kernel == NULL) return fail(kInvalidDeviceFunction);
  if (attribute == 9) return kSuccess;  // preferred carve-out: a hint
  if (attribute != 8 || value < 0 || value > kLargestShared) return fail(kInvalidValue);
  kernel->dynamic_shared_limit = (size_t)value;
  return kSuccess;
}

// By threads and shared memory alone: the stand-in does not know how many registers a kernel uses.
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                           int threads, size_t shared,
                                                           unsigned flags) {
  (void)flags;
  if (find_kernel(function) == NULL) return fail(kInvalidDeviceFunction);
  if (threads <= 0 || threads > 1024) return fail(kInvalidValue);
  const int by_threads = 2048 / ((threads + 31) / 32 * 32);
  const int by_shared = (int)(kSharedPerProcessor / (shared + 1024));  // 1 KB a block is reserved
  *blocks = by_threads < by_shared ? by_threads : by_shared;
  if (*blocks > 32) *blocks = 32;
  return kSuccess;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                  size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared,
                                                                0);
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
