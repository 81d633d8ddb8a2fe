// Optimizer steps of any element types and with every extra. Options are branches that a whole
// launch takes alike, not template parameters: a million combinations are four kernels, and what a
// step costs is its bytes.
//
// A thread owns groups of 8 neighbours (4 in float64), counted from the global parameter's first
// element, so that one Philox block serves each rounding and two serve the noise, and loads all
// tensors' before it computes. Groups cut off by a tensor's or a row's ends, and tensors that are
// not aligned, are read and written one by one. With strides of its own each element is a group:
// neighbouring threads then stand at neighbours wherever memory does.
//
// max_norm needs a row's new norm before it can store: a block takes a row, computes it twice and
// stores the second time. Random numbers belong to elements, so both times are the same, and what
// is read again is mostly in the L2 cache; a row of new weights has no other place to wait.
#include <cmath>
#include <type_traits>

#include "cuda/optimizer_step_arithmetic.cuh"
#include "cuda/optimizer_step_group.cuh"
#include "cuda/optimizer_step_launch.h"
#include "cuda/reduce.cuh"
#include "cuda/tensor_table.cuh"
#include "math/optimizer_step.h"

namespace regops {
namespace {

constexpr int kThreads = 256;
constexpr int kGroups = 4;  // of a thread, where a block does not take a row

struct GeneralTensor {
  void *param, *grad, *first, *second, *largest, *master, *ema;
  int64_t numel;
  int64_t row;  // 0 where max_norm limits nothing
  uint64_t first_index;
};

template <bool kStrided>
struct GeneralCall {
  StepOptions options;
  const StepScalars* scalars;
  bool unscale;
  std::conditional_t<kStrided, StepLayout, NoLayout> layout;
  TensorTable<GeneralTensor, kStrided ? 1 : 43> table;
};
static_assert(sizeof(GeneralCall<false>) <= kParameterBytes);
static_assert(sizeof(GeneralCall<true>) <= kParameterBytes);

template <int kSize>
__device__ __forceinline__ Range range_of(const GeneralTensor& tensor, int64_t block) {
  if (tensor.row > 0) return {block * tensor.row, (block + 1) * tensor.row};
  constexpr int64_t kChunk = kThreads * kGroups * kSize;
  const int64_t begin = block * kChunk - static_cast<int64_t>(tensor.first_index % kSize);
  return {max(begin, int64_t(0)), min(begin + kChunk, tensor.numel)};
}

template <int kSize>
int64_t blocks_of(const StepTensors& tensor, int64_t row) {
  if (row > 0) return tensor.numel / row;
  constexpr int64_t kChunk = kThreads * kGroups * kSize;
  if (tensor.numel == 0) return 0;
  const int64_t phase = static_cast<int64_t>(tensor.first_index % kSize);
  return (phase + tensor.numel + kChunk - 1) / kChunk;
}

__device__ __forceinline__ bool all_aligned(const GeneralTensor& tensor) {
  return is_aligned(tensor.param) && is_aligned(tensor.grad) && is_aligned(tensor.first) &&
         is_aligned(tensor.second) && is_aligned(tensor.largest) && is_aligned(tensor.master) &&
         is_aligned(tensor.ema);
}

template <class Real, int kSize, bool kStrided>
__device__ __forceinline__ void load(const StepOptions& options, const GeneralTensor& tensor,
                                     const Group<kSize, kStrided>& group,
                                     Elements<Real, kSize>& x) {
  RawGroup<Real, kSize> param, grad, first = {}, second = {}, largest = {}, master = {}, ema = {};
  const bool image = tensor.master != nullptr && options.master == Master::fp32;
  const bool kahan = tensor.master != nullptr && options.master == Master::kahan;
  for_param<Real>(options.param, [&](auto type) {
    using T = decltype(type);
    load_group<T>(tensor.param, kParam, group, param);
    if (kahan) load_group<T>(tensor.master, kMaster, group, master);
  });
  for_grad<Real>(options.grad,
                 [&](auto type) { load_group<decltype(type)>(tensor.grad, kGrad, group, grad); });
  for_state<Real>(options.state, [&](auto type) {
    using T = decltype(type);
    if (tensor.first != nullptr) load_group<T>(tensor.first, kFirst, group, first);
    if (tensor.second != nullptr) load_group<T>(tensor.second, kSecond, group, second);
    if (tensor.largest != nullptr) load_group<T>(tensor.largest, kLargest, group, largest);
  });
  if (image) load_group<Real>(tensor.master, kMaster, group, master);
  if (tensor.ema != nullptr) load_group<Real>(tensor.ema, kEma, group, ema);

  for_param<Real>(options.param, [&](auto type) {
    using T = decltype(type);
    Real other[kSize];
    widen_group<T>(param, x.w);
    if (image) {
      widen_group<Real>(master, other);
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        // A parameter that was changed since, for example loaded, is no image of its master.
        const Real rounded = Element<T>::widen(Element<T>::round(other[k]));
        if (rounded == x.w[k]) x.w[k] = other[k];
      }
    } else if (kahan) {
      widen_group<T>(master, other);
#pragma unroll
      for (int k = 0; k < kSize; ++k) x.w[k] += other[k];
    }
  });
  for_grad<Real>(options.grad, [&](auto type) { widen_group<decltype(type)>(grad, x.g); });
  for_state<Real>(options.state, [&](auto type) {
    using T = decltype(type);
    widen_group<T>(first, x.first);
    widen_group<T>(second, x.second);
    widen_group<T>(largest, x.largest);
  });
  widen_group<Real>(ema, x.ema);
}

// The gradient, cleared or unscaled where asked for.
template <class Real, int kSize, bool kStrided>
__device__ __forceinline__ void store_grad(const StepOptions& options, const GeneralTensor& tensor,
                                           const Group<kSize, kStrided>& group, Real factor,
                                           const Real (&g)[kSize]) {
  Real stored[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) stored[k] = options.zero_grad ? Real(0) : g[k] * factor;
  for_grad<Real>(options.grad, [&](auto type) {
    store_group<decltype(type)>(tensor.grad, kGrad, group, stored);
  });
}

template <class Real, int kSize, bool kStrided>
__device__ __forceinline__ void store(const StepOptions& options, const GeneralTensor& tensor,
                                      const Key* keys, const Group<kSize, kStrided>& group,
                                      Elements<Real, kSize>& x) {
  if (tensor.ema != nullptr) {
    const Real decay = static_cast<Real>(options.ema_decay);
    const Real rest = static_cast<Real>(1.0 - options.ema_decay);
#pragma unroll
    for (int k = 0; k < kSize; ++k) x.ema[k] = average(x.ema[k], x.w[k], decay, rest);
    store_group<Real>(tensor.ema, kEma, group, x.ema);
  }
  if (options.state == DType::bfloat16) {
    // The largest is rounded to nearest: at random it would be that of many roundings, and rise.
    const PhiloxBlock random = variate_block(keys[kRoundMoments], group.index / 8);
    round_at_random(options.state, random, group.index, x.first);
    round_at_random(options.state, random, group.index, x.second);
  }
  for_state<Real>(options.state, [&](auto type) {
    using T = decltype(type);
    if (tensor.first != nullptr) store_group<T>(tensor.first, kFirst, group, x.first);
    if (tensor.second != nullptr) store_group<T>(tensor.second, kSecond, group, x.second);
    if (tensor.largest != nullptr) store_group<T>(tensor.largest, kLargest, group, x.largest);
  });
  if (tensor.master != nullptr && options.master == Master::fp32) {
    store_group<Real>(tensor.master, kMaster, group, x.w);
  }
  if (options.master == Master::stochastic && options.param != DType::float32 &&
      options.param != DType::float64) {
    const PhiloxBlock random = variate_block(keys[kRoundParam], group.index / 8);
    round_at_random(options.param, random, group.index, x.w);
  }
  for_param<Real>(options.param, [&](auto type) {
    using T = decltype(type);
    store_group<T>(tensor.param, kParam, group, x.w);
    if (tensor.master != nullptr && options.master == Master::kahan) {
      Real error[kSize];
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        error[k] =
            rounding_error(x.w[k], static_cast<Real>(Element<T>::widen(Element<T>::round(x.w[k]))));
      }
      store_group<T>(tensor.master, kMaster, group, error);
    }
  });
}

template <class Real, int kSize, bool kStrided>
__global__ void __launch_bounds__(kThreads, 2)
    step_general(const __grid_constant__ GeneralCall<kStrided> call) {
  __shared__ double partial[32];
  const StepOptions& options = call.options;
  const int64_t block = block_number();
  const int t = call.table.tensor_of(block);
  const GeneralTensor& tensor = call.table.entry[t];
  const Range range = range_of<kSize>(tensor, block - call.table.first_block[t]);
  if (range.begin >= tensor.numel) return;
  const bool aligned = tensor.first_index % kSize == 0 && all_aligned(tensor);
  const int64_t phase =
      static_cast<int64_t>((tensor.first_index + static_cast<uint64_t>(range.begin)) % kSize);
  const int64_t start = range.begin - phase + static_cast<int64_t>(threadIdx.x) * kSize;
  constexpr int64_t kStep = kThreads * kSize;
  const auto for_each_group = [&](auto function) {
    for (int64_t i = start; i < range.end; i += kStep) {
      function(group_at<kSize>(tensor.first_index, range, i, aligned, call.layout));
    }
  };

  const StepScalars& scalars = call.scalars[t];
  if (scalars.skip) {
    const Real zeros[kSize] = {};
    if (!options.zero_grad) return;
    for_each_group([&](const auto& group) { store_grad(options, tensor, group, Real(0), zeros); });
    return;
  }
  const Factors<Real> factors(options, scalars);
  const bool stores_grad = options.zero_grad || call.unscale;
  Real row_scale = Real(1);
  double squares = 0.0;
#pragma unroll 1
  for (int pass = tensor.row > 0 ? 0 : 1; pass < 2; ++pass) {
    for_each_group([&](const auto& group) {
      Elements<Real, kSize> x;
      load(options, tensor, group, x);
      if (pass == 1 && stores_grad) {
        store_grad(options, tensor, group, factors.unscale, x.g);
      }
      update(options, tensor.first != nullptr, tensor.largest != nullptr, factors,
             scalars.keys[kGradientNoise], group.index, x);
      if (pass == 0) {
#pragma unroll
        for (int k = 0; k < kSize; ++k) {
          const double w = static_cast<double>(x.w[k]);
          if (group.has(k)) squares += w * w;
        }
        return;
      }
#pragma unroll
      for (int k = 0; k < kSize; ++k) x.w[k] *= row_scale;
      store(options, tensor, scalars.keys, group, x);
    });
    if (pass == 0) {
      row_scale = static_cast<Real>(row_factor(block_sum(squares, partial), options.max_norm));
    }
  }
}

template <class Real, int kSize, bool kStrided>
int launch(const CudaStep& step, GeneralCall<kStrided>& call) {
  call.options = step.options;
  call.unscale = step.unscale;
  const bool limited = !std::isinf(step.options.max_norm);
  const auto fill = [&](GeneralTensor& to, int64_t t) {
    const StepTensors& from = step.tensors[t];
    const int64_t row = limited && from.numel > 0 ? from.row : 0;
    to = {from.param,  from.grad, from.first, from.second, from.largest,
          from.master, from.ema,  from.numel, row,         from.first_index};
    return blocks_of<kSize>(from, row);
  };
  for_each_table(call.table, step.count, fill, [&](int64_t first, int64_t blocks) {
    call.scalars = step.scalars + first;
    const auto kernel = step_general<Real, kSize, kStrided>;
    kernel<<<grid_of(blocks), kThreads, 0, step.stream>>>(call);
  });
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int general_step(const CudaStep& step) {
  GeneralCall<false> call;
  return step.options.param == DType::float64 ? launch<double, 4>(step, call)
                                              : launch<float, 8>(step, call);
}

int strided_step(const CudaStep& step, const StepLayout& layout) {
  GeneralCall<true> call;
  call.layout = layout;
  return step.options.param == DType::float64 ? launch<double, 1>(step, call)
                                              : launch<float, 1>(step, call);
}

}  // namespace regops
