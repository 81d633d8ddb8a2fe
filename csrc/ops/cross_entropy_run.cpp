// One pass of cross-entropy over the logits: from tensors to the kernels' call, on each device.
//
// Longer than other files: geometry, call and devices share the tensors that a call's pointers
// point into, and each is too small to stand alone.
#include <numeric>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorUtils.h>
#include <c10/core/DeviceGuard.h>

#include "cpu/cross_entropy_block.h"
#include "ops/arguments.h"
#include "ops/cross_entropy.h"
#include "ops/device.h"
#include "ops/output.h"
#include "ops/parallel.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/cross_entropy.h"
#endif

namespace regops {

using at::Tensor;

namespace {

// ---- geometry: [N, C, d...] as [outer, C, inner] ------------------------------------------------

enum class Order { rows, columns };  // the stride that is 1: of classes, or of inner

// Strides of a tensor in an order, if it has them as it lies.
std::optional<ClassStrides> class_strides(const Tensor& tensor, Order order) {
  const at::IntArrayRef sizes = tensor.sizes(), strides = tensor.strides();
  at::DimVector size, stride, shape;
  const auto add = [&](int64_t dim) {
    size.push_back(sizes[dim]);
    stride.push_back(strides[dim]);
  };
  const int64_t dims = tensor.dim(), class_dim = dims > 1 ? 1 : 0;
  const int64_t rows = tensor.numel() / sizes[class_dim];
  if (order == Order::columns && dims == 2) {  // neighbouring rows are those of dimension 0
    add(1);
    add(0);
    shape = {1, sizes[1], sizes[0]};
  } else {
    if (dims > 1) add(0);
    if (order == Order::columns) add(class_dim);
    for (int64_t d = 2; d < dims; ++d) add(d);
    if (order == Order::rows) add(class_dim);
    const int64_t outer = dims > 1 ? sizes[0] : 1;
    shape = {outer, rows / outer, sizes[class_dim]};
    if (order == Order::columns) std::swap(shape[1], shape[2]);
  }
  const auto view = at::detail::computeStride(size, stride, shape);
  if (!view || (shape[2] > 1 && (*view)[2] != 1)) return std::nullopt;
  if (order == Order::rows) return ClassStrides{(*view)[0], 1, (*view)[1]};
  return ClassStrides{(*view)[0], (*view)[1], 1};
}

// The dimension that comes last in memory in an order.
int64_t last_dim(const Tensor& tensor, Order order) {
  if (tensor.dim() == 1) return 0;
  return order == Order::rows ? 1 : tensor.dim() == 2 ? 0 : tensor.dim() - 1;
}

Tensor empty_dense(const Tensor& like, Order order) {
  const int64_t dim = last_dim(like, order);
  const Tensor moved = like.movedim(dim, -1);
  return at::empty(moved.sizes(), like.options()).movedim(-1, dim);
}

// The tensors of one call as the kernels can walk them: those given where possible.
struct Operands {
  Order order;
  Tensor input, gradient, probability, probability_gradient;
};

bool lies_in(const Tensor& tensor, Order order) {
  return !tensor.defined() || class_strides(tensor, order).has_value();
}

Operands operands(const Tensor& input, const Tensor& probability, const CrossEntropyPass& pass) {
  Operands o = {Order::rows, input, pass.gradient, probability, pass.target_gradient};
  if (!lies_in(input, Order::rows)) {
    if (lies_in(input, Order::columns)) {
      o.order = Order::columns;
    } else {
      o.order = input.dim() > 2 ? Order::columns : Order::rows;
      o.input = empty_dense(input, o.order).copy_(input);
    }
  }
  if (!lies_in(o.gradient, o.order)) o.gradient = empty_dense(input, o.order);
  if (!lies_in(probability, o.order)) {
    o.probability = empty_dense(probability, o.order).copy_(probability);
  }
  if (o.probability_gradient.defined()) {  // of one stride with the probabilities
    if (!o.probability.is_non_overlapping_and_dense()) {
      o.probability = empty_dense(probability, o.order).copy_(probability);
    }
    if (o.probability_gradient.strides() != o.probability.strides()) {
      o.probability_gradient = at::empty_strided(o.probability.sizes(), o.probability.strides(),
                                                 o.probability.options());
    }
  }
  return o;
}

// ---- the call, and the tensors that its pointers point into -------------------------------------

Tensor reals(const Tensor& tensor, const CrossEntropyContract& c, const Tensor& input) {
  return tensor.to(input.device(), c.real).contiguous();
}

}  // namespace

PreparedCrossEntropy prepare_targets(const CrossEntropyArguments& a,
                                     const CrossEntropyContract& c) {
  PreparedCrossEntropy p;
  CrossEntropyCall& call = p.call;
  call.dtype = dtype_of(a.input);
  call.outer = c.rows.expect_int();
  call.classes = c.classes.expect_int();
  call.inner = 1;
  call.ignore_index = a.ignore_index;
  double share = a.label_smoothing;  // of the uniform distribution
  if (a.smoothing == "others") {
    const double k = static_cast<double>(call.classes);
    share *= call.classes > 1 ? k / (k - 1.0) : 0.0;
  }
  call.keep = 1.0 - share;
  call.off = share / static_cast<double>(call.classes);
  call.z_loss = a.z_loss;
  call.entropy_weight = a.entropy_weight;
  p.kept.reserve(8);
  const auto labels = [&](const Tensor& tensor) {
    return p.keep(tensor.to(at::kLong).contiguous()).const_data_ptr<int64_t>();
  };
  if (!c.probabilities) call.target = labels(a.target);
  if (a.target_b) {
    call.target_b = labels(*a.target_b);
    const Tensor& lam = p.keep(reals(*a.lam, c, a.input));
    call.lam = lam.const_data_ptr();
    call.rows_per_lam = std::max<int64_t>(call.outer, 1) / std::max<int64_t>(lam.numel(), 1);
  }
  if (a.weight) call.weight = p.keep(reals(*a.weight, c, a.input)).const_data_ptr();
  return p;
}

const void* keep_reals(const Tensor& tensor, const CrossEntropyContract& c, const Tensor& input,
                       PreparedCrossEntropy& p) {
  return tensor.defined() ? p.keep(reals(tensor, c, input)).const_data_ptr() : nullptr;
}

namespace {

int64_t row_count(const CrossEntropyCall& call) { return call.outer * call.inner; }

template <class Function>
auto for_real(const CrossEntropyContract& c, Function function) {
  return c.real == at::kDouble ? function(double()) : function(float());
}

// The same for every thread count: partial sums over fixed chunks, added in order.
constexpr int64_t kRowsPerChunk = 8192;

cpu::CrossEntropyTargets scan_targets(const CrossEntropyCall& call) {
  const int64_t rows = row_count(call), chunks = (rows + kRowsPerChunk - 1) / kRowsPerChunk;
  if (chunks <= 1) return cpu::cross_entropy_targets(call, 0, rows);
  std::vector<cpu::CrossEntropyTargets> parts(chunks);
  at::parallel_for(0, chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      parts[i] = cpu::cross_entropy_targets(call, i * kRowsPerChunk,
                                            std::min((i + 1) * kRowsPerChunk, rows));
    }
  });
  cpu::CrossEntropyTargets all;
  for (const auto& part : parts) {
    all.weight += part.weight;
    if (all.bad_row < 0 && part.bad_row >= 0) {
      all.bad_row = part.bad_row;
      all.bad_target = part.bad_target;
      all.bad_is_b = part.bad_is_b;
    }
  }
  return all;
}

[[noreturn]] void throw_bad_target(const char* op, int64_t classes, int64_t target, int64_t row,
                                   bool is_b) {
  TORCH_CHECK_INDEX(false, "regops.", op, ": expected ", is_b ? "target_b" : "target", " in [0, ",
                    classes, "), got ", target, " at row ", row);
  __builtin_unreachable();
}

Tensor totals_cpu(const char* op, const CrossEntropyArguments& a, const CrossEntropyContract& c) {
  const PreparedCrossEntropy p = prepare_targets(a, c);
  const int64_t classes = p.call.classes;
  double divisor = 1.0, weight_sum = static_cast<double>(classes);
  cpu::CrossEntropyTargets found;
  if (c.probabilities) {
    found.weight = static_cast<double>(row_count(p.call));
  } else {
    found = scan_targets(p.call);
    if (found.bad_row >= 0) {
      throw_bad_target(op, classes, found.bad_target, found.bad_row, found.bad_is_b);
    }
  }
  if (c.reduction == Reduction::mean) {
    divisor = a.num_items ? a.num_items->item().toDouble() : found.weight;
  }
  if (a.weight) {
    weight_sum = for_real(c, [&](auto real) {
      const auto* weight = static_cast<const decltype(real)*>(p.call.weight);
      return std::accumulate(weight, weight + classes, 0.0);
    });
  }
  const Tensor totals = at::empty({2}, a.input.options().dtype(c.real));
  for_real(c, [&](auto real) {
    auto* data = totals.mutable_data_ptr<decltype(real)>();
    data[0] = static_cast<decltype(real)>(divisor);
    data[1] = static_cast<decltype(real)>(weight_sum);
  });
  return totals;
}

// From so many classes on, few rows are worth splitting over the threads.
constexpr int64_t kSplitClasses = 32768;

void run_split(const CrossEntropyCall& call) {
  const int64_t block = cpu::cross_entropy_block_size();
  const int64_t blocks = (call.classes + block - 1) / block;
  const int64_t grain = std::max<int64_t>(kGrain / block, 1);
  std::vector<cpu::CrossEntropyBlock> sums(blocks);
  for (int64_t row = 0; row < row_count(call); ++row) {
    at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) cpu::cross_entropy_block_sums(call, row, i, &sums[i]);
    });
    cpu::cross_entropy_row_loss(call, row, sums.data());
    if (call.gradient == nullptr && call.probability_gradient == nullptr) continue;
    at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        cpu::cross_entropy_block_gradient(call, row, i, sums.data());
    });
  }
}

void run_cpu(const CrossEntropyCall& call, Order order) {
  const int64_t rows = row_count(call);
  if (order == Order::columns) {
    constexpr int64_t kColumns = 64;
    const int64_t tiles = (call.inner + kColumns - 1) / kColumns;
    at::parallel_for(0, call.outer * tiles, kGrain / (kColumns * call.classes) + 1,
                     [&](int64_t begin, int64_t end) {
                       while (begin < end) {  // neighbouring tiles in one call
                         const int64_t outer = begin / tiles, tile = begin % tiles;
                         const int64_t last = std::min(tile + end - begin, tiles);
                         cpu::cross_entropy_columns(call, outer, tile * kColumns,
                                                    std::min(last * kColumns, call.inner));
                         begin += last - tile;
                       }
                     });
  } else if (call.classes >= kSplitClasses && rows < at::get_num_threads()) {
    run_split(call);
  } else {
    at::parallel_for(0, rows, kGrain / call.classes + 1, [&](int64_t begin, int64_t end) {
      cpu::cross_entropy_rows(call, begin, end);
    });
  }
}

}  // namespace

void check_targets(const char* op, const CrossEntropyArguments& a, const CrossEntropyContract& c) {
  if (c.probabilities || a.input.is_cpu()) return;
  const int64_t classes = c.classes.expect_int();
  for (const bool is_b : {false, true}) {
    const auto& labels = is_b ? a.target_b : std::optional<Tensor>(a.target);
    if (!labels) continue;
    const Tensor flat = labels->reshape({-1}).to(at::kLong);
    const Tensor bad =
        (flat.lt(0).logical_or_(flat.ge(classes))).logical_and_(flat.ne(a.ignore_index)).nonzero();
    if (bad.numel() == 0) continue;
    const int64_t row = bad[0].item<int64_t>();
    throw_bad_target(op, classes, flat[row].item<int64_t>(), row, is_b);
  }
}

Tensor cross_entropy_totals(const char* op, const CrossEntropyArguments& a,
                            const CrossEntropyContract& c) {
  if (a.input.is_cpu()) return totals_cpu(op, a, c);
#ifdef REGOPS_WITH_CUDA
  const c10::DeviceGuard guard(a.input.device());
  const PreparedCrossEntropy p = prepare_targets(a, c);
  const Tensor totals = at::empty({2}, a.input.options().dtype(c.real));
  const Tensor num_items = a.num_items ? reals(*a.num_items, c, a.input) : Tensor();
  check_launch(op, regops_cross_entropy_prepare_cuda(
                       &p.call, c.reduction == Reduction::mean,
                       num_items.defined() ? num_items.const_data_ptr() : nullptr,
                       totals.mutable_data_ptr(), current_stream(a.input)));
  return totals;
#else
  TORCH_CHECK(false, "regops.", op, ": this build has no CUDA kernels");
#endif
}

void run_cross_entropy(const CrossEntropyArguments& a, const CrossEntropyContract& c,
                       const CrossEntropyPass& pass) {
  const int64_t rows = c.rows.expect_int();
  if (rows == 0 || c.classes == 0) {
    if (pass.loss.defined()) pass.loss.zero_();  // of rows without a class: only ignored ones
    if (pass.lse.defined()) pass.lse.fill_(-std::numeric_limits<double>::infinity());
    return;
  }
  const c10::DeviceGuard guard(a.input.device());
  PreparedCrossEntropy p = prepare_targets(a, c);
  CrossEntropyCall& call = p.call;
  const Operands o = operands(a.input, c.probabilities ? a.target : Tensor(), pass);
  const auto strides = [&](const Tensor& tensor) { return *class_strides(tensor, o.order); };

  call.outer = o.order == Order::columns && a.input.dim() == 2 ? 1
               : a.input.dim() > 1                             ? a.input.size(0)
                                                               : 1;
  call.inner = rows / call.outer;
  call.input = o.input.const_data_ptr();
  call.input_strides = strides(o.input);
  if (o.gradient.defined()) {
    call.gradient = o.gradient.mutable_data_ptr();
    call.gradient_strides = strides(o.gradient);
    call.stream =
        call.gradient != call.input && static_cast<int64_t>(o.gradient.nbytes()) >= kStreamBytes;
  }
  if (c.probabilities) {
    call.probability_dtype = dtype_of(o.probability);
    call.probability = o.probability.const_data_ptr();
    call.probability_strides = strides(o.probability);
    if (o.probability_gradient.defined()) {
      call.probability_gradient = o.probability_gradient.mutable_data_ptr();
    }
  }
  call.totals = pass.totals.const_data_ptr();
  call.upstream = keep_reals(pass.upstream_loss, c, a.input, p);
  call.upstream_stride = pass.upstream_loss.defined() && pass.upstream_loss.dim() > 0 ? 1 : 0;
  call.upstream_lse = keep_reals(pass.upstream_lse, c, a.input, p);
  if (pass.loss.defined()) call.loss = pass.loss.mutable_data_ptr();
  if (pass.lse.defined()) call.lse = pass.lse.mutable_data_ptr();

  if (a.input.is_cpu()) {
    run_cpu(call, o.order);
  } else {
#ifdef REGOPS_WITH_CUDA
    check_launch("cross_entropy", regops_cross_entropy_cuda(&call, current_stream(a.input)));
#endif
  }
  if (!o.gradient.is_same(pass.gradient)) pass.gradient.copy_(o.gradient);
  if (!o.probability_gradient.is_same(pass.target_gradient)) {
    pass.target_gradient.copy_(o.probability_gradient);
  }
}

Tensor total_loss(const Tensor& loss, const Tensor& totals) {
  Tensor total = at::empty({}, loss.options());
  if (loss.is_cpu()) {
    const auto sum = [&](auto real) {
      using Real = decltype(real);
      constexpr int kLanes = 8;  // independent sums, for speed: the same for every thread count
      double lane[kLanes] = {};
      const Real* data = loss.const_data_ptr<Real>();
      const int64_t n = loss.numel();
      for (int64_t i = 0; i < n; ++i) lane[i % kLanes] += data[i];
      const double all = std::accumulate(lane, lane + kLanes, 0.0);
      *total.mutable_data_ptr<Real>() =
          static_cast<Real>(all / static_cast<double>(*totals.const_data_ptr<Real>()));
    };
    loss.scalar_type() == at::kDouble ? sum(double()) : sum(float());
    return total;
  }
#ifdef REGOPS_WITH_CUDA
  const c10::DeviceGuard guard(loss.device());
  CrossEntropyCall call = {};
  call.dtype = dtype_of(loss);
  call.outer = loss.numel();
  call.inner = 1;
  call.loss = loss.mutable_data_ptr();
  call.totals = totals.const_data_ptr();
  check_launch("cross_entropy", regops_cross_entropy_total_cuda(&call, total.mutable_data_ptr(),
                                                                current_stream(loss)));
#endif
  return total;
}

void scale_gradient(const Tensor& gradient, const Tensor& factor) {
  if (gradient.is_cpu()) {
    if (factor.item().toDouble() != 1.0) gradient.mul_(factor);
    return;
  }
#ifdef REGOPS_WITH_CUDA
  const c10::DeviceGuard guard(gradient.device());
  const Tensor real = factor.contiguous();
  check_launch("cross_entropy",
               regops_cross_entropy_scale_cuda(static_cast<int>(dtype_of(gradient)),
                                               gradient.mutable_data_ptr(), gradient.numel(),
                                               real.const_data_ptr(), current_stream(gradient)));
#endif
}

}  // namespace regops
