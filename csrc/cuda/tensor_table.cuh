// Lists of tensors as kernels take them: a table by value, so that no copy to the device precedes a
// launch and a CUDA graph holds the pointers itself. Each tensor has blocks of its own.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/grid.h"

namespace regops {

// Bytes of parameters that every CUDA version and GPU takes: 32764 need CUDA 12.1 and its driver.
constexpr size_t kParameterBytes = 4096;

template <class Entry, int kCapacity>
struct TensorTable {
  int count;
  int64_t first_block[kCapacity];
  Entry entry[kCapacity];

  // Which tensor a block belongs to. Tensors without blocks are nobody's: of several that begin at
  // the same block it is the last.
  __device__ __forceinline__ int tensor_of(int64_t block) const {
    int low = 0;
    for (int high = count - 1; low < high;) {
      const int middle = (low + high + 1) / 2;
      if (first_block[middle] <= block) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// Fills tables of the tensors 0 to count - 1 and calls launch(first tensor, blocks) for each that
// has any blocks. `fill(entry, tensor)` returns the tensor's number of blocks.
template <class Entry, int kCapacity, class Fill, class Launch>
void for_each_table(TensorTable<Entry, kCapacity>& table, int64_t count, Fill fill, Launch launch) {
  for (int64_t first = 0; first < count; first += kCapacity) {
    table.count = static_cast<int>(std::min<int64_t>(kCapacity, count - first));
    int64_t blocks = 0;
    for (int t = 0; t < table.count; ++t) {
      table.first_block[t] = blocks;
      blocks += fill(table.entry[t], first + t);
    }
    if (blocks > 0) launch(first, blocks);
  }
}

}  // namespace regops
