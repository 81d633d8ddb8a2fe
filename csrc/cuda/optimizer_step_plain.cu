// Optimizer steps of float32 parameters, gradients and states, without extras: what most training
// runs, at the fewest instructions. AdamW reads 16 bytes an element and writes 12; the kernels of
// optimizer_step_general.cu serve all other steps.
//
// A thread owns two vectors of 16 bytes of each tensor and loads all of them before it waits for
// the step's scalars: 128 bytes in flight a thread, 128 KiB an SM at 1024 threads.
#include <cmath>

#include "cuda/optimizer_step_launch.h"
#include "cuda/tensor_table.cuh"
#include "cuda/vector.cuh"
#include "math/adamw.h"
#include "math/sgdw.h"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;
constexpr int kSize = 4;
constexpr int64_t kChunk = kThreads * kUnroll * kSize;
constexpr int kCapacity = 80;

struct PlainTensor {
  float *param, *grad, *first, *second;
  int64_t numel;
};

struct PlainCall {
  StepOptions options;
  const StepScalars* scalars;
  bool unscale;
  TensorTable<PlainTensor, kCapacity> table;
};
static_assert(sizeof(PlainCall) <= kParameterBytes);

template <StepRule kRule>
struct Rule;

template <>
struct Rule<StepRule::adamw> {
  AdamWFactors<float> factors;
  __device__ Rule(const StepOptions& options, const StepScalars& scalars, bool)
      : factors(adamw_factors<float>(options, scalars)) {}
  __device__ float update(float w, float g, float& first, float& second) const {
    float largest = 0.0f;
    return adamw_update<false>(w, g, first, second, largest, factors);
  }
};

template <>
struct Rule<StepRule::sgdw> {
  SgdwFactors<float> factors;
  bool momentum, nesterov;
  __device__ Rule(const StepOptions& options, const StepScalars& scalars, bool has_first)
      : factors(sgdw_factors<float>(options, scalars)),
        momentum(has_first),
        nesterov(options.nesterov) {}
  __device__ float update(float w, float g, float& first, float&) const {
    if (!momentum) return sgdw_update<false, false>(w, g, first, factors);
    if (nesterov) return sgdw_update<true, true>(w, g, first, factors);
    return sgdw_update<true, false>(w, g, first, factors);
  }
};

// The tensors of a block, from its first element on.
template <StepRule kRule>
struct Pointers {
  static constexpr bool kHasSecond = kRule == StepRule::adamw;
  float *param, *grad, *first, *second;

  __device__ Pointers(const PlainTensor& tensor, int64_t begin)
      : param(tensor.param + begin),
        grad(tensor.grad + begin),
        first(kHasSecond || tensor.first != nullptr ? tensor.first + begin : nullptr),
        second(kHasSecond ? tensor.second + begin : nullptr) {}

  __device__ bool aligned() const {
    return is_aligned(param) && is_aligned(grad) && is_aligned(first) && is_aligned(second);
  }
};

// As many elements of each tensor as Pack has.
template <class Pack, StepRule kRule>
struct Elements {
  Pack param, grad, first, second;

  __device__ __forceinline__ void load(const Pointers<kRule>& from, int i) {
    param = reinterpret_cast<const Pack*>(from.param)[i];
    grad = reinterpret_cast<const Pack*>(from.grad)[i];
    first = from.first == nullptr ? Pack{} : reinterpret_cast<const Pack*>(from.first)[i];
    if constexpr (from.kHasSecond) second = reinterpret_cast<const Pack*>(from.second)[i];
  }

  __device__ __forceinline__ void store(const Pointers<kRule>& to, int i, bool with_grad) const {
    reinterpret_cast<Pack*>(to.param)[i] = param;
    if (with_grad) reinterpret_cast<Pack*>(to.grad)[i] = grad;
    if (to.first != nullptr) reinterpret_cast<Pack*>(to.first)[i] = first;
    if constexpr (to.kHasSecond) reinterpret_cast<Pack*>(to.second)[i] = second;
  }
};

template <StepRule kRule>
__global__ void __launch_bounds__(kThreads, 4) step_plain(const __grid_constant__ PlainCall call) {
  const int64_t block = block_number();
  const int t = call.table.tensor_of(block);
  const PlainTensor& tensor = call.table.entry[t];
  const int64_t begin = (block - call.table.first_block[t]) * kChunk;
  if (begin >= tensor.numel) return;
  const Pointers<kRule> at(tensor, begin);
  const int size = static_cast<int>(min(tensor.numel - begin, kChunk));
  const int vectors = at.aligned() ? size / kSize : 0;

  Elements<Vector<float, kSize>, kRule> pack[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int i = threadIdx.x + u * kThreads;
    if (i < vectors) pack[u].load(at, i);
  }
  const StepScalars& scalars = call.scalars[t];
  const Rule<kRule> rule(call.options, scalars, at.first != nullptr);
  const float grad_factor = static_cast<float>(scalars.grad_factor);
  const float unscale = static_cast<float>(scalars.unscale);
  const bool zero_grad = call.options.zero_grad;
  if (scalars.skip) {
    if (!zero_grad) return;
    // Each thread what it has loaded: others may not have loaded theirs yet.
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = threadIdx.x + u * kThreads;
      if (i < vectors) reinterpret_cast<Vector<float, kSize>*>(at.grad)[i] = {};
    }
    for (int i = vectors * kSize + threadIdx.x; i < size; i += kThreads) at.grad[i] = 0.0f;
    return;
  }
  const bool stores_grad = zero_grad || call.unscale;
  const auto step = [&](float& w, float& g, float& first, float& second) {
    w = rule.update(w, g * grad_factor, first, second);
    g = zero_grad ? 0.0f : g * unscale;
  };
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int i = threadIdx.x + u * kThreads;
    if (i >= vectors) break;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      step(pack[u].param.element[k], pack[u].grad.element[k], pack[u].first.element[k],
           pack[u].second.element[k]);
    }
    pack[u].store(at, i, stores_grad);
  }
  // The last few of a tensor, and all of one that is not aligned.
  for (int i = vectors * kSize + threadIdx.x; i < size; i += kThreads) {
    Elements<float, kRule> one;
    one.load(at, i);
    step(one.param, one.grad, one.first, one.second);
    one.store(at, i, stores_grad);
  }
}

}  // namespace

bool is_plain(const CudaStep& step) {
  const StepOptions& o = step.options;
  bool plain = o.param == DType::float32 && o.grad == DType::float32 && o.state == DType::float32 &&
               o.l1 == 0.0 && o.l2 == 0.0 && o.noise_variance == 0.0 && std::isinf(o.clip_value) &&
               std::isinf(o.max_norm);
  for (int64_t t = 0; t < step.count; ++t) {
    const StepTensors& tensor = step.tensors[t];
    plain &= tensor.largest == nullptr && tensor.master == nullptr && tensor.ema == nullptr;
  }
  return plain;
}

int plain_step(const CudaStep& step) {
  PlainCall call;
  call.options = step.options;
  call.unscale = step.unscale;
  const auto fill = [&](PlainTensor& to, int64_t t) {
    const StepTensors& from = step.tensors[t];
    to = {static_cast<float*>(from.param), static_cast<float*>(from.grad),
          static_cast<float*>(from.first), static_cast<float*>(from.second), from.numel};
    return (from.numel + kChunk - 1) / kChunk;
  };
  const auto kernel = step.options.rule == StepRule::adamw ? step_plain<StepRule::adamw>
                                                           : step_plain<StepRule::sgdw>;
  for_each_table(call.table, step.count, fill, [&](int64_t first, int64_t blocks) {
    call.scalars = step.scalars + first;
    kernel<<<grid_of(blocks), kThreads, 0, step.stream>>>(call);
  });
  return static_cast<int>(cudaGetLastError());
}

}  // namespace regops
