// What the files of the stand-in for libcudart share; see fake_cudart.c.

#pragma once

#include <stddef.h>

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

extern Properties device_properties;

// Notes an error for cudaGetLastError, and returns it.
int fail(int error);
int take_last_error(void);
int peek_last_error(void);
int get_capture_status(void);

Kernel* find_kernel(const void* function);
Facts facts_of(const Kernel* kernel);

// What a block may have beside its static shared memory.
long dynamic_limit(const Kernel* kernel, const Facts* facts);

// The error of launching a kernel in such clusters.
int check_cluster(const Kernel* kernel, const Facts* facts, Dim3 grid, Dim3 cluster);

// The cluster that a configuration names, or null; other attributes (programmatic dependent launch,
// cooperative launch) are not interpreted.
int find_cluster(const LaunchConfig* config, const Dim3** cluster);
