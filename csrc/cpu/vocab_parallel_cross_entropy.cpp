// Cross-entropy over classes that are split over processes: a shard's statistics, the losses from
// those of all shards, and the shard's gradient. The logits are read twice, as other processes have
// a say between their sums and their gradient, which is written once: 3 x itemsize bytes an
// element.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/cross_entropy_block.h"
#include "cpu/for_dtype.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/vocab_parallel_cross_entropy.h"
#include "math/cross_entropy.h"

#define REGOPS_ISA_FILE "cpu/vocab_parallel_cross_entropy.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/vector.h"
#include "cpu/exp.h"
#include "cpu/half_floats.h"
#include "cpu/reals.h"
#include "cpu/stream.h"
#include "cpu/cross_entropy_row.h"
#include "cpu/cross_entropy_sums.h"
#include "cpu/cross_entropy_gradient.h"
#include "cpu/cross_entropy_row_kernel.h"

namespace regops::cpu::REGOPS_ISA {

// Of a row whose largest logit is `max`: what its sums are relative to.
static inline CrossEntropyPart part_of(double max, double sum, double cross) {
  const bool none = max == -std::numeric_limits<double>::infinity();
  return {none ? 0.0 : max, sum, cross, 0.0, 0.0};
}

template <class T>
static void statistics_of(const VocabParallelCall& call, int64_t begin, int64_t end) {
  using Real = RealOf<T>;
  using Shard = CrossEntropyShard<Real>;
  static_assert(sizeof(Shard) == kShardStatistics * sizeof(Real));
  const RowKernel<T> kernel(call.shard);
  const CrossEntropyScalars scalars = cross_entropy_scalars<Real>(call.all);
  const int64_t blocks = kernel.blocks();
  auto* parts =
      static_cast<CrossEntropyBlock*>(thread_scratch((blocks + 1) * sizeof(CrossEntropyBlock)));
  alignas(64) Real exponentials[kBlock];
  for (int64_t index = begin; index < end; ++index) {
    const CrossEntropyRow row = cross_entropy_row<Real>(call.all, scalars, index);
    Shard shard = {-std::numeric_limits<Real>::infinity(), 0, 0, 0, 0,
                   static_cast<Real>(call.shard.classes)};
    if (blocks > 0 && (call.reads_ignored || !row.ignored)) {
      for (int64_t b = 0; b < blocks; ++b) {
        parts[b].sums = kernel.sums(index, b * kBlock, exponentials, [] {});
      }
      merge(parts, blocks);
      const CrossEntropyPart& sums = parts[0].row;
      if (sums.sum != 0.0) shard.max = static_cast<Real>(sums.reference);
      shard.sum = static_cast<Real>(sums.sum);
      shard.cross = static_cast<Real>(sums.cross);
      shard.mass = static_cast<Real>(sums.mass);
      const int64_t label = row.a - call.first_class;
      if (row.a >= 0 && label >= 0 && label < call.shard.classes) {
        widen(kernel.input(index) + label, &shard.label, 1);
      }
    }
    static_cast<Shard*>(call.statistics)[index] = shard;
  }
}

template <class Real>
static void losses_of(const VocabParallelCall& call, int64_t begin, int64_t end) {
  const CrossEntropyScalars scalars = cross_entropy_scalars<Real>(call.all);
  const auto* gathered = static_cast<const CrossEntropyShard<Real>*>(call.gathered);
  const double infinity = std::numeric_limits<double>::infinity();
  for (int64_t index = begin; index < end; ++index) {
    const auto shard_of = [&](int64_t k) {
      const CrossEntropyShard<Real>& shard = gathered[k * call.all.outer + index];
      return CrossEntropyShard<double>{shard.max,  shard.sum,   shard.cross,
                                       shard.mass, shard.label, shard.classes};
    };
    CrossEntropyShard<double> all = {-infinity, 0.0, 0.0, 0.0, 0.0, 0.0};
    for (int64_t k = 0; k < call.shards; ++k) all.max = std::max(all.max, shard_of(k).max);
    for (int64_t k = 0; k < call.shards; ++k) {
      const CrossEntropyShard<double> shard = shard_of(k);
      const double d = shard.max == -infinity ? 0.0 : shard.max - all.max;
      cross_entropy_add_shard(shard, d, std::exp(d), &all);
    }
    const CrossEntropyRow row = cross_entropy_row<Real>(call.all, scalars, index);
    const CrossEntropyPart part = part_of(all.max, all.sum, all.cross);
    write_loss<Real>(call.all, scalars, index, row, part, finished<double>(part, 0.0), all.label,
                     0.0);
    Real* normalizers = static_cast<Real*>(call.normalizers) + index * kNormalizers;
    normalizers[0] = static_cast<Real>(all.max);
    normalizers[1] = static_cast<Real>(all.sum);
  }
}

template <class T>
static void gradient_of(const VocabParallelCall& call, int64_t begin, int64_t end) {
  using Real = RealOf<T>;
  const RowKernel<T> kernel(call.shard);
  const CrossEntropyScalars scalars = cross_entropy_scalars<Real>(call.all);
  const int64_t blocks = kernel.blocks();
  if (blocks == 0) return;  // there may be no memory at all
  for (int64_t index = begin; index < end; ++index) {
    CrossEntropyRow row = cross_entropy_row<Real>(call.all, scalars, index);
    if (row.gradient_is_zero) {
      kernel.zero_gradient(index, 0, call.shard.classes);
      continue;
    }
    const Real* normalizers = static_cast<const Real*>(call.normalizers) + index * kNormalizers;
    const CrossEntropyPart part = part_of(normalizers[0], normalizers[1], 0.0);
    const CrossEntropyRowGradient of_row =
        row_gradient(call.all, row, part, finished<double>(part, 0.0));
    if (row.a >= 0) row.a -= call.first_class;
    const CrossEntropyBlock relative_to_all = {part, 1.0, part};
    for (int64_t b = 0; b < blocks; ++b) {
      kernel.gradient({index, row, of_row}, relative_to_all, b * kBlock, nullptr);
    }
  }
  if (call.shard.stream) stream_fence();
}

void vocab_parallel_statistics(const VocabParallelCall& call, int64_t begin, int64_t end) {
#define REGOPS_CALL(T) statistics_of<T>(call, begin, end)
  REGOPS_FOR_DTYPE(call.all.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void vocab_parallel_losses(const VocabParallelCall& call, int64_t begin, int64_t end) {
#define REGOPS_CALL(T) losses_of<RealOf<T>>(call, begin, end)
  REGOPS_FOR_DTYPE(call.all.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void vocab_parallel_gradient(const VocabParallelCall& call, int64_t begin, int64_t end) {
#define REGOPS_CALL(T) gradient_of<T>(call, begin, end)
  REGOPS_FOR_DTYPE(call.all.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void vocab_parallel_statistics(const VocabParallelCall& call, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(vocab_parallel_statistics, call, begin, end);
}

void vocab_parallel_losses(const VocabParallelCall& call, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(vocab_parallel_losses, call, begin, end);
}

void vocab_parallel_gradient(const VocabParallelCall& call, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(vocab_parallel_gradient, call, begin, end);
}

}  // namespace regops::cpu

#endif
