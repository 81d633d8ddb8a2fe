// How many blocks of a kernel a multiprocessor holds, by the toolkit's own calculator.
#include <cuda_occupancy.h>

// -1 where the calculator refuses.
extern "C" int resident_blocks(int major, int minor, int processor_shared, int block_threads,
                               int registers, int block_shared) {
  // Technical Specifications per Compute Capability, CUDA C++ Programming Guide. Alike in 8.0, 9.0
  // and 10.0, but for the shared memory.
  cudaOccDeviceProp device;
  device.computeMajor = major;
  device.computeMinor = minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 2048;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 * 1024;
  device.sharedMemPerMultiprocessor = processor_shared;
  device.numSms = 1;
  device.reservedSharedMemPerBlock = 1024;
  device.sharedMemPerBlockOptin = processor_shared - device.reservedSharedMemPerBlock;

  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = block_threads;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = block_shared;

  cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError error =
      cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, block_threads, 0);
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1;
}
