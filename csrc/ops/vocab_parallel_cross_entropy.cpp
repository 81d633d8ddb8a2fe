// Cross-entropy over classes that are split over processes, in three ops with a collective between
// the first two: a shard's statistics; the losses, from the statistics of all shards; the gradient
// of the shard's logits. Two reads of the logits and one write: 3 x their bytes.
//
// `input` is a shard of the logits, (rows, its classes); `weight` is of all classes.
// regops/functional/vocab_parallel_cross_entropy.py puts them together.
#include <limits>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cpu/vocab_parallel_cross_entropy.h"
#include "math/cross_entropy.h"
#include "ops/cross_entropy.h"
#include "ops/cross_entropy_signature.h"
#include "ops/device.h"
#include "ops/output.h"
#include "ops/parallel.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/vocab_parallel_cross_entropy.h"
#endif

namespace regops {

using at::Tensor;

namespace {

constexpr const char* kName = "cross_entropy";

using Statistics = std::tuple<Tensor, Tensor>;      // of the shard; totals of all classes
using Losses = std::tuple<Tensor, Tensor, Tensor>;  // loss and lse by row, normalizers

// ---- contract -----------------------------------------------------------------------------------

// The call over all classes: what cross_entropy would get from one process that has them.
struct OfAllClasses {
  CrossEntropyArguments arguments;
  CrossEntropyContract contract;
};

OfAllClasses check(const CrossEntropyArguments& a, int64_t classes) {
  TORCH_CHECK_VALUE(a.input.dim() == 2, "regops.", kName,
                    ": expected a shard of the logits of shape [N, C], got ", a.input.sym_sizes());
  TORCH_CHECK_VALUE(!a.target_b && a.entropy_weight == 0.0 && !a.inplace_backward, "regops.", kName,
                    ": target_b, entropy_weight and inplace_backward are not supported for ",
                    "classes that are split over processes");
  OfAllClasses all = {a, {}};
  // No logits are looked at: one element of memory stands for them.
  all.arguments.input = at::empty_symint({1, 1}, a.input.options())
                            .expand_symint({a.input.sym_size(0), c10::SymInt(classes)});
  all.contract = check_cross_entropy(kName, all.arguments);
  TORCH_CHECK_VALUE(!all.contract.probabilities, "regops.", kName,
                    ": expected class indices as target for classes that are split over "
                    "processes, got probabilities");
  return all;
}

void check_shard(const CrossEntropyArguments& a, int64_t classes, int64_t first_class) {
  const c10::SymInt end = first_class + a.input.sym_size(1);
  TORCH_CHECK_VALUE(first_class >= 0 && end <= classes, "regops.", kName, ": expected a shard of ",
                    classes, " classes, got those in [", first_class, ", ", end, ")");
}

void check_rows(const char* name, const Tensor& tensor, const OfAllClasses& all, int64_t columns) {
  const int64_t dims = tensor.dim();
  TORCH_CHECK_VALUE(dims >= 2 && tensor.sym_size(dims - 2) == all.contract.rows &&
                        tensor.sym_size(dims - 1) == columns &&
                        tensor.scalar_type() == all.contract.real,
                    "regops.", kName, ": expected ", name, " of ", all.contract.rows, " rows of ",
                    columns, " numbers of dtype ", c10::toString(all.contract.real), ", got shape ",
                    tensor.sym_sizes(), " and dtype ", c10::toString(tensor.scalar_type()));
}

at::TensorOptions reals(const CrossEntropyArguments& a, const OfAllClasses& all) {
  return a.input.options().dtype(all.contract.real);
}

Tensor empty_statistics(const CrossEntropyArguments& a, const OfAllClasses& all) {
  return at::empty_symint({all.contract.rows, c10::SymInt(kShardStatistics)}, reals(a, all));
}

Losses empty_losses(const CrossEntropyArguments& a, const OfAllClasses& all) {
  const c10::SymInt& rows = all.contract.rows;
  return {at::empty_symint({rows}, reals(a, all)),
          at::empty_symint({a.return_lse ? rows : c10::SymInt(0)}, reals(a, all)),
          at::empty_symint({rows, c10::SymInt(kNormalizers)}, reals(a, all))};
}

// ---- the call -----------------------------------------------------------------------------------

struct Prepared {
  PreparedCrossEntropy kept;
  VocabParallelCall call = {};
};

Prepared prepare(const CrossEntropyArguments& a, const OfAllClasses& all, const Tensor& totals) {
  Prepared p = {prepare_targets(all.arguments, all.contract), {}};
  p.call.all = p.kept.call;
  p.call.all.totals = p.kept.keep(totals).const_data_ptr();
  p.call.reads_ignored = a.return_lse;
  return p;
}

// Adds the shard. Its rows must lie in one piece.
void add_shard(VocabParallelCall& call, const Tensor& input, int64_t first_class) {
  call.first_class = first_class;
  call.shard = call.all;
  call.shard.classes = input.size(1);
  call.shard.input = input.const_data_ptr();
  call.shard.input_strides = {input.stride(0), 1, 0};
  if (call.all.weight != nullptr) {
    const int64_t bytes = call.all.dtype == DType::float64 ? sizeof(double) : sizeof(float);
    call.shard.weight = static_cast<const char*>(call.all.weight) + first_class * bytes;
  }
}

Tensor in_rows(const Tensor& tensor) {
  return tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : tensor.contiguous();
}

template <class Run>
void parallel_rows(const VocabParallelCall& call, int64_t numbers, Run run) {
  at::parallel_for(0, call.all.outer, kGrain / std::max<int64_t>(numbers, 1) + 1,
                   [&](int64_t begin, int64_t end) { run(call, begin, end); });
}

// ---- devices ------------------------------------------------------------------------------------

Statistics statistics(const CrossEntropyArguments& a, int64_t classes, int64_t first_class) {
  const OfAllClasses all = check(a, classes);
  check_shard(a, classes, first_class);
  // Finds targets out of range: before the collective, and so in every process that has them.
  const Tensor totals = cross_entropy_totals(kName, all.arguments, all.contract);
  const Tensor result = empty_statistics(a, all);
  const c10::DeviceGuard guard(a.input.device());
  const Tensor input = in_rows(a.input);
  Prepared p = prepare(a, all, totals);
  add_shard(p.call, input, first_class);
  p.call.statistics = result.mutable_data_ptr();
  if (a.input.is_cpu()) {
    parallel_rows(p.call, p.call.shard.classes, cpu::vocab_parallel_statistics);
  } else {
#ifdef REGOPS_WITH_CUDA
    check_launch(kName, regops_vocab_parallel_statistics_cuda(&p.call, current_stream(a.input)));
#endif
  }
  return {result, totals};
}

// In the device's place the kernel makes the rows nan: reading its memory would wait for it.
void check_shards(const Tensor& gathered, int64_t classes) {
  if (!gathered.is_cpu() || gathered.numel() == 0) return;
  constexpr int kClasses = offsetof(CrossEntropyShard<double>, classes) / sizeof(double);
  const double found = gathered.select(-1, kClasses).select(-1, 0).sum().item().toDouble();
  TORCH_CHECK_VALUE(cross_entropy_adds_up(found, static_cast<double>(classes)), "regops.", kName,
                    ": expected shards of ", classes, " classes in all, got ", found,
                    ": DTensor.from_local needs shape= and stride= where shards are uneven");
}

Losses losses(const CrossEntropyArguments& a, int64_t classes, const Tensor& gathered,
              const Tensor& totals) {
  const OfAllClasses all = check(a, classes);
  check_rows("statistics of all shards", gathered, all, kShardStatistics);
  check_shards(gathered, classes);
  const auto [loss, lse, normalizers] = empty_losses(a, all);
  const c10::DeviceGuard guard(a.input.device());
  Prepared p = prepare(a, all, totals);
  p.call.shards = gathered.numel() / std::max<int64_t>(p.call.all.outer * kShardStatistics, 1);
  p.call.gathered = p.kept.keep(gathered.contiguous()).const_data_ptr();
  p.call.normalizers = normalizers.mutable_data_ptr();
  p.call.all.loss = loss.mutable_data_ptr();
  if (a.return_lse) p.call.all.lse = lse.mutable_data_ptr();
  if (a.input.is_cpu()) {
    parallel_rows(p.call, p.call.shards * kShardStatistics, cpu::vocab_parallel_losses);
  } else {
#ifdef REGOPS_WITH_CUDA
    check_launch(kName, regops_vocab_parallel_losses_cuda(&p.call, current_stream(a.input)));
#endif
  }
  return {loss, lse, normalizers};
}

Tensor backward(const CrossEntropyArguments& a, int64_t classes, int64_t first_class,
                const Tensor& normalizers, const Tensor& totals, const OptionalTensor& grad_loss,
                const OptionalTensor& grad_lse) {
  const OfAllClasses all = check(a, classes);
  check_shard(a, classes, first_class);
  check_rows("normalizers", normalizers, all, kNormalizers);
  const Tensor result = empty_output(a.input);
  const c10::DeviceGuard guard(a.input.device());
  const Tensor input = in_rows(a.input);
  const Tensor gradient = in_rows(result);
  const Tensor upstream = grad_loss ? *grad_loss : at::zeros({}, reals(a, all));
  Prepared p = prepare(a, all, totals);
  CrossEntropyCall& call = p.call.all;
  call.upstream = keep_reals(upstream, all.contract, a.input, p.kept);
  call.upstream_stride = upstream.dim() > 0 ? 1 : 0;
  if (grad_lse) call.upstream_lse = keep_reals(*grad_lse, all.contract, a.input, p.kept);
  add_shard(p.call, input, first_class);
  p.call.normalizers = p.kept.keep(normalizers.contiguous()).data_ptr();
  p.call.shard.gradient = gradient.mutable_data_ptr();
  p.call.shard.gradient_strides = {gradient.stride(0), 1, 0};
  p.call.shard.stream = static_cast<int64_t>(gradient.nbytes()) >= kStreamBytes;
  if (a.input.is_cpu()) {
    parallel_rows(p.call, p.call.shard.classes, cpu::vocab_parallel_gradient);
  } else {
#ifdef REGOPS_WITH_CUDA
    check_launch(kName, regops_vocab_parallel_gradient_cuda(&p.call, current_stream(a.input)));
#endif
  }
  if (!gradient.is_same(result)) result.copy_(gradient);
  return result;
}

Statistics statistics_meta(const CrossEntropyArguments& a, int64_t classes, int64_t first_class) {
  const OfAllClasses all = check(a, classes);
  check_shard(a, classes, first_class);
  return {empty_statistics(a, all), at::empty({2}, reals(a, all))};
}

Losses losses_meta(const CrossEntropyArguments& a, int64_t classes, const Tensor& gathered,
                   const Tensor&) {
  const OfAllClasses all = check(a, classes);
  check_rows("statistics of all shards", gathered, all, kShardStatistics);
  return empty_losses(a, all);
}

Tensor backward_meta(const CrossEntropyArguments& a, int64_t classes, int64_t first_class,
                     const Tensor& normalizers, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&) {
  check_rows("normalizers", normalizers, check(a, classes), kNormalizers);
  check_shard(a, classes, first_class);
  return at::empty_like(a.input);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regops, m) {
  define_cross_entropy(m, "cross_entropy_shard_statistics", ", int classes, int first_class",
                       "(Tensor, Tensor)");
  define_cross_entropy(m, "cross_entropy_shard_losses",
                       ", int classes, Tensor statistics, Tensor totals",
                       "(Tensor, Tensor, Tensor)");
  define_cross_entropy(m, "cross_entropy_shard_backward",
                       ", int classes, int first_class, Tensor normalizers, Tensor totals, "
                       "Tensor? grad_loss, Tensor? grad_lse",
                       "Tensor");
}

#define REGOPS_VOCAB_PARALLEL_KERNELS(device)                               \
  TORCH_LIBRARY_IMPL(regops, device, m) {                                   \
    m.impl("cross_entropy_shard_statistics", &Unpacked<&statistics>::call); \
    m.impl("cross_entropy_shard_losses", &Unpacked<&losses>::call);         \
    m.impl("cross_entropy_shard_backward", &Unpacked<&backward>::call);     \
  }

REGOPS_VOCAB_PARALLEL_KERNELS(CPU)
#ifdef REGOPS_WITH_CUDA
REGOPS_VOCAB_PARALLEL_KERNELS(CUDA)
#endif
#undef REGOPS_VOCAB_PARALLEL_KERNELS

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("cross_entropy_shard_statistics", &Unpacked<&statistics_meta>::call);
  m.impl("cross_entropy_shard_losses", &Unpacked<&losses_meta>::call);
  m.impl("cross_entropy_shard_backward", &Unpacked<&backward_meta>::call);
}

}  // namespace regops
