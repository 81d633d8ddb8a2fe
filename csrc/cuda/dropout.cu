// Dropout on the device: one read and one write an element, 16 random bits an element, no mask.
//
// A thread owns vectors of 16 bytes and makes the random bits for them in registers while their
// loads are in flight. In fp32 (fp64) 2 (4) neighbouring threads make the same Philox block and use
// a part of it each: trading words by shuffles would save integer work of which these kernels,
// bound by memory with 4 (8) bytes an element, have plenty.
#include "cuda/dropout.h"

#include <algorithm>

#include "cuda/vector.cuh"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // vectors in flight a thread: 64 bytes, 128 KiB an SM at 8 blocks

template <class T>
__device__ __forceinline__ typename Element<T>::Compute scale_of(const DropoutRule& rule) {
  if constexpr (sizeof(T) == 8) {
    return rule.scale_f64;
  } else {
    return rule.scale;
  }
}

template <class T>
__device__ __forceinline__ T apply(T x, bool keep, typename Element<T>::Compute scale) {
  return Element<T>::round(dropout_element(Element<T>::widen(x), keep, scale));
}

// Where a kernel's rule comes from: from the host, which also chooses the kernel of its precision,
template <bool kFine>
struct RuleOfHost {
  DropoutRule rule;

  __device__ DropoutRule load() const { return rule; }
  __device__ static uint32_t keep_bits(Key key, uint64_t group, const DropoutRule& rule) {
    return dropout_keep_bits<kFine>(key, group, rule.threshold);
  }
};

// or from a p that only the device knows, and that may be any number. Each thread makes the rule:
// some 30 instructions of float64 and a uniform branch, next to the Philox rounds of 64 bytes.
struct RuleOfDevice {
  const double* p;

  __device__ DropoutRule load() const {
    if (*p > 0.0 && *p < 1.0) return dropout_rule(*p);
    if (*p == 1.0) return {0, false, 0.0f, 0.0};  // a scale of 0: none is kept
    const double scale = *p == 0.0 ? 1.0 : __longlong_as_double(0x7FF8000000000000);
    return {0, false, static_cast<float>(scale), scale};  // all are kept, or all are nan
  }
  __device__ static uint32_t keep_bits(Key key, uint64_t group, const DropoutRule& rule) {
    if (rule.scale_f64 == 0.0) return 0;
    return rule.fine ? dropout_keep_bits<true>(key, group, rule.threshold)
                     : dropout_keep_bits<false>(key, group, rule.threshold);
  }
};

// Vectors of kSize elements; kSize divides 8, so a vector lies within one group of random bits.
// first_index is a multiple of kSize. kSize = 1 serves any alignment.
template <class T, int kSize, class Rule>
__global__ void __launch_bounds__(kThreads)
    dropout_run(const T* input, T* output, int64_t vectors, uint64_t first_index, CudaKey cuda_key,
                Rule source) {
  using Pack = Vector<T, kSize>;
  const Pack* in = reinterpret_cast<const Pack*>(input);
  Pack* out = reinterpret_cast<Pack*>(output);
  const Key key = cuda_key.load();
  const DropoutRule rule = source.load();
  const auto scale = scale_of<T>(rule);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;

  Pack pack[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = first + u * kThreads;
    if (i < vectors) pack[u] = in[i];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = first + u * kThreads;
    if (i >= vectors) return;
    const uint64_t index = first_index + static_cast<uint64_t>(i) * kSize;
    const uint32_t keep =
        Rule::keep_bits(key, index / kDropoutGroup, rule) >> (index % kDropoutGroup);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      pack[u].element[k] = apply(pack[u].element[k], keep >> k & 1u, scale);
    }
    out[i] = pack[u];
  }
}

// Permuted memory. A thread owns one group of 8 consecutive logical indices (rows) in each of kSize
// neighbouring columns: one Philox block a column serves 8 loads and stores. threadIdx.x walks
// columns, or rows where those are the contiguous dimension (kSize is 1 then).
template <class T, int kSize, bool kFine>
__global__ void __launch_bounds__(kThreads)
    dropout_permuted(const T* input, T* output, PermutedLayout layout, int64_t groups,
                     bool rows_first, CudaKey cuda_key, DropoutRule rule) {
  using Pack = Vector<T, kSize>;
  const Key key = cuda_key.load();
  const auto scale = scale_of<T>(rule);
  const int64_t packs = layout.columns / kSize;
  const int64_t fast_size = rows_first ? groups : packs;
  const int64_t slow_size = rows_first ? packs : groups;
  const int64_t fast = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (fast >= fast_size) return;

  for (int64_t o = blockIdx.z; o < layout.outer; o += gridDim.z) {
    const OuterOrigin origin = outer_origin(layout, o);
    for (int64_t slow = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
         slow < slow_size; slow += static_cast<int64_t>(gridDim.y) * blockDim.y) {
      const int64_t column = (rows_first ? slow : fast) * kSize;
      const int64_t group = rows_first ? fast : slow;
      // Groups of random bits are counted from the one that holds the column's first row; with
      // kSize > 1 column_logical is a multiple of 8, so all kSize columns have the same phase.
      const int64_t top = origin.logical + column * layout.column_logical;
      const int64_t row = group * kDropoutGroup - top % kDropoutGroup;
      uint32_t keep[kSize];
#pragma unroll
      for (int c = 0; c < kSize; ++c) {
        const int64_t first = top + c * layout.column_logical;
        keep[c] = dropout_keep_bits<kFine>(key, first / kDropoutGroup + group, rule.threshold);
      }
      const int64_t base = origin.memory + column * layout.column_memory;
#pragma unroll 4  // 64 bytes in flight a thread; all 8 rows took 170 registers, or spilled
      for (int r = 0; r < kDropoutGroup; ++r) {
        if (row + r < 0 || row + r >= layout.rows) continue;
        const int64_t at = base + (row + r) * layout.row_memory;
        Pack pack = *reinterpret_cast<const Pack*>(input + at);
#pragma unroll
        for (int c = 0; c < kSize; ++c) {
          pack.element[c] = apply(pack.element[c], keep[c] >> r & 1u, scale);
        }
        store_vector(output + at, pack);
      }
    }
  }
}

template <class T, int kSize, class Rule>
int launch_run(const void* input, void* output, int64_t n, uint64_t first_index, const CudaKey& key,
               const Rule& rule, cudaStream_t stream) {
  const int64_t vectors = n / kSize;
  if (vectors > 0) {
    const unsigned blocks =
        static_cast<unsigned>((vectors + kThreads * kUnroll - 1) / (kThreads * kUnroll));
    dropout_run<T, kSize, Rule><<<blocks, kThreads, 0, stream>>>(
        static_cast<const T*>(input), static_cast<T*>(output), vectors, first_index, key, rule);
  }
  if (const int64_t done = vectors * kSize; done < n) {
    return launch_run<T, 1, Rule>(static_cast<const T*>(input) + done,
                                  static_cast<T*>(output) + done, n - done, first_index + done, key,
                                  rule, stream);
  }
  return static_cast<int>(cudaGetLastError());
}

// `rule` is of the host or of the device.
template <class Rule>
int launch_contiguous(int dtype, const void* input, void* output, int64_t n, uint64_t first_index,
                      const CudaKey& key, const Rule& rule, void* stream) {
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kSize = kVectorSize<T>;
    const bool vectors = is_aligned(input) && is_aligned(output) && first_index % kSize == 0;
    const auto launch = vectors ? launch_run<T, kSize, Rule> : launch_run<T, 1, Rule>;
    return launch(input, output, n, first_index, key, rule, static_cast<cudaStream_t>(stream));
  });
}

template <class T, int kSize>
int launch_permuted(const void* input, void* output, const PermutedLayout& layout,
                    const CudaKey& key, const DropoutRule& rule, cudaStream_t stream) {
  // Where columns begin in mid-group, their rows touch one group more.
  const int64_t groups = (layout.rows + kDropoutGroup - 1) / kDropoutGroup + 1;
  const bool rows_first = layout.row_memory == 1;
  const int64_t packs = layout.columns / kSize;
  const int64_t fast = rows_first ? groups : packs;
  const int64_t slow = rows_first ? packs : groups;
  unsigned width = 1;
  while (width < kThreads && width < fast) width *= 2;
  const dim3 block(width, kThreads / width);
  const dim3 grid(static_cast<unsigned>((fast + width - 1) / width),
                  static_cast<unsigned>(std::min<int64_t>((slow + block.y - 1) / block.y, 65535)),
                  static_cast<unsigned>(std::min<int64_t>(layout.outer, 65535)));
  const auto kernel =
      rule.fine ? dropout_permuted<T, kSize, true> : dropout_permuted<T, kSize, false>;
  kernel<<<grid, block, 0, stream>>>(static_cast<const T*>(input), static_cast<T*>(output), layout,
                                     groups, rows_first, key, rule);
  return static_cast<int>(cudaGetLastError());
}

// Whether kSize neighbouring columns can move as one, in the same phase of their groups.
bool columns_align(const PermutedLayout& layout, const void* input, const void* output,
                   int64_t size) {
  // In dense memory all other strides are multiples of `columns` then.
  return layout.column_memory == 1 && layout.columns % size == 0 &&
         layout.column_logical % kDropoutGroup == 0 && is_aligned(input) && is_aligned(output);
}

}  // namespace
}  // namespace regops

extern "C" int regops_dropout_cuda(int dtype, const void* input, void* output, int64_t n,
                                   uint64_t first_index, const regops::CudaKey* key,
                                   const regops::DropoutRule* rule, void* stream) {
  const auto launch = [&](const auto& of_host) {
    return regops::launch_contiguous(dtype, input, output, n, first_index, *key, of_host, stream);
  };
  return rule->fine ? launch(regops::RuleOfHost<true>{*rule})
                    : launch(regops::RuleOfHost<false>{*rule});
}

extern "C" int regops_dropout_tensor_p_cuda(int dtype, const void* input, void* output, int64_t n,
                                            const regops::CudaKey* key, const double* p,
                                            void* stream) {
  return regops::launch_contiguous(dtype, input, output, n, 0, *key, regops::RuleOfDevice{p},
                                   stream);
}

extern "C" int regops_dropout_permuted_cuda(int dtype, const void* input, void* output,
                                            const regops::PermutedLayout* layout,
                                            const regops::CudaKey* key,
                                            const regops::DropoutRule* rule, void* stream) {
  return regops::for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kSize = regops::kVectorSize<T>;
    const bool vectors = regops::columns_align(*layout, input, output, kSize);
    const auto launch = vectors ? regops::launch_permuted<T, kSize> : regops::launch_permuted<T, 1>;
    return launch(input, output, *layout, *key, *rule, static_cast<cudaStream_t>(stream));
  });
}
