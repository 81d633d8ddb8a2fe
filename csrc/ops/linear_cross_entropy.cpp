// regops::linear_cross_entropy: cross_entropy(linear(input, linear_weight, linear_bias), target)
// whose logits never exist all at once.
//
// Rows are taken in chunks: logits by the BLAS into one reused buffer, cross-entropy over it in
// place, then the products of its gradient with weight and input. Where forward can compute the
// gradients (see cross_entropy.cpp for where not), that is three products and one pass over each
// chunk of logits, and backward scales the finished gradients.
//
// Longer than other files: an op's contract, devices, autograd and registration stand in one, and
// this op has the linear layer's besides the loss's.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/cross_entropy_autograd.h"
#include "ops/cross_entropy_signature.h"

namespace regops {

using at::Tensor;

namespace {

constexpr const char* kName = "linear_cross_entropy";

using Mask = std::array<bool, 3>;  // whether gradients of input, linear_weight, linear_bias
using LossAndLse = std::tuple<Tensor, Tensor>;
using WithGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of the above, and of target

// ---- the contract -------------------------------------------------------------------------------

// The linear layer, and cross-entropy's own contract on the logits that it would make.
struct Contract {
  CrossEntropyArguments logits;  // arguments on a stand-in for all logits: one element, expanded
  CrossEntropyContract loss;
};

// Logits of a chunk. The three products want some hundred rows to run at full speed; more only cost
// memory.
constexpr int64_t kChunkBytesCpu = int64_t{64} << 20;
constexpr int64_t kChunkBytesCuda = int64_t{256} << 20;
constexpr int64_t kLeastRows = 128;

int64_t chunk_rows(const Tensor& input, int64_t rows, int64_t row_size, int64_t asked) {
  if (asked > 0) return asked;
  const int64_t bytes = input.is_cuda() ? kChunkBytesCuda : kChunkBytesCpu;
  const int64_t row_bytes = std::max<int64_t>(row_size * input.element_size(), 1);
  const int64_t most = std::max(bytes / row_bytes, kLeastRows);
  const int64_t chunks = (rows + most - 1) / most;  // all of about one size
  return chunks > 1 ? (rows + chunks - 1) / chunks : std::max<int64_t>(rows, 1);
}

Contract check(const CrossEntropyArguments& a, const Tensor& linear_weight,
               const OptionalTensor& linear_bias, int64_t asked_rows) {
  // Worded as torch words them.
  const Tensor& input = a.input;
  TORCH_CHECK(input.dim() == 1 || input.dim() == 2, "regops.", kName,
              ": expected input with dimensionality 1 or 2, got ", input.dim());
  TORCH_CHECK(linear_weight.dim() >= 2, "regops.", kName,
              ": expected linear_weight with dimensionality at least 2, got ", linear_weight.dim());
  TORCH_CHECK(input.sym_size(-1) == linear_weight.sym_size(-1), "regops.", kName,
              ": expected equal input and linear_weight last dimensions (in_features), got ",
              input.sym_size(-1), " and ", linear_weight.sym_size(-1), ", respectively");
  const c10::SymIntArrayRef features = linear_weight.sym_sizes().slice(0, linear_weight.dim() - 1);
  TORCH_CHECK(!linear_bias || linear_bias->sym_sizes() == features, "regops.", kName,
              ": expected linear_bias shape (", c10::Join(", ", features),
              features.size() == 1 ? ",)" : ")", ", got (",
              linear_bias ? c10::Join(", ", linear_bias->sym_sizes()) : "",
              linear_bias && linear_bias->dim() == 1 ? ",)" : ")");
  TORCH_CHECK(input.dim() == 2 || features.size() == 1, "regops.", kName,
              ": K-dimensional loss defined by linear_weight shape (",
              c10::Join(", ", linear_weight.sym_sizes()), ") requires batched input, (N, ",
              input.sym_size(-1), "), got unbatched input with shape (", input.sym_size(0), ",)");
  for (const Tensor& tensor : {linear_weight, linear_bias.value_or(linear_weight)}) {
    TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "regops.", kName,
                ": expected linear_weight and linear_bias of the input's dtype ",
                c10::toString(input.scalar_type()), ", got ", c10::toString(tensor.scalar_type()));
    TORCH_CHECK(tensor.device() == input.device(), "regops.", kName,
                ": expected linear_weight and linear_bias on the input's device ", input.device(),
                ", got ", tensor.device());
  }
  TORCH_CHECK_VALUE(asked_rows >= 0, "regops.", kName,
                    ": expected a positive number of rows a chunk, got ", asked_rows);

  Contract c;
  std::vector<c10::SymInt> shape = features.vec();
  if (input.dim() == 2) shape.insert(shape.begin(), input.sym_size(0));
  c.logits = a;
  c.logits.input = at::empty({1}, input.options()).expand_symint(shape);
  c.loss = check_cross_entropy(kName, c.logits);
  return c;
}

// ---- devices ------------------------------------------------------------------------------------

struct Wanted {
  bool loss = false;  // and lse
  Mask gradients = {false, false, false};
  bool target_gradient = false;
  Tensor upstream_loss, upstream_lse;
};

struct Found {
  Tensor loss, lse, input, linear_weight, linear_bias, target;  // the last four: gradients
};

// Sums products over chunks. bfloat16 and float16 add up in float32: each further chunk would
// otherwise round the sum so far.
class Accumulator {
 public:
  Accumulator(const Tensor& like, bool wanted, bool one_chunk, at::ScalarType real)
      : wanted_(wanted), type_(like.scalar_type()), like_(like) {
    if (wanted_) {
      sum_ = at::empty(like.sizes(), like.options().dtype(one_chunk ? type_ : real));
    }
  }

  // sum += a b
  void add_product(const Tensor& a, const Tensor& b) {
    if (!wanted_) return;
    if (empty_) {
      sum_.scalar_type() == type_ ? (void)at::mm_out(sum_, a, b) : (void)sum_.copy_(a.mm(b));
    } else {
      sum_.scalar_type() == type_ ? sum_.addmm_(a, b) : sum_.add_(a.mm(b));
    }
    empty_ = false;
  }

  void add_column_sums(const Tensor& a) {
    if (!wanted_) return;
    const Tensor sums = a.sum(0, /*keepdim=*/false, sum_.scalar_type());
    empty_ ? sum_.copy_(sums) : sum_.add_(sums);
    empty_ = false;
  }

  Tensor result(at::IntArrayRef shape) const {
    if (!wanted_) return at::empty({0}, like_.options());
    if (empty_) sum_.zero_();
    return sum_.to(type_).view(shape);
  }

 private:
  bool wanted_, empty_ = true;
  at::ScalarType type_;
  Tensor like_, sum_;
};

Tensor rows_of(const Tensor& tensor, int64_t begin, int64_t count) {
  return tensor.dim() == 0 ? tensor : tensor.narrow(0, begin, count);
}

Found run(const CrossEntropyArguments& a, const Tensor& linear_weight,
          const OptionalTensor& linear_bias, const Contract& c, int64_t asked_rows,
          const Wanted& wanted) {
  const bool batched = a.input.dim() == 2;
  const auto batch = [&](const Tensor& tensor) {
    return batched || !tensor.defined() ? tensor : tensor.unsqueeze(0);
  };
  const Tensor input = batch(a.input);
  const int64_t rows = input.size(0);
  const Tensor weight = linear_weight.flatten(0, -2);
  const Tensor bias = linear_bias ? linear_bias->reshape({-1}) : Tensor();
  const auto reals = a.input.options().dtype(c.loss.real);
  const int64_t most_rows = chunk_rows(input, rows, weight.size(0), asked_rows);
  const bool one_chunk = most_rows >= rows;

  Found found;
  CrossEntropyPass whole;
  whole.totals = cross_entropy_totals(kName, c.logits, c.loss);
  if (wanted.loss) {
    whole.loss = at::empty_symint(c.loss.rows_shape, reals);
    found.lse = a.return_lse ? at::empty_like(whole.loss) : at::empty({0}, reals);
    if (a.return_lse) whole.lse = found.lse;
  }
  const bool any = wanted.gradients[0] || wanted.gradients[1] || wanted.gradients[2];
  found.input = wanted.gradients[0] ? at::empty(a.input.sizes(), a.input.options())
                                    : at::empty({0}, a.input.options());
  if (wanted.target_gradient) {
    whole.target_gradient = at::empty(a.target.sizes(), a.target.options());
  }
  found.target =
      wanted.target_gradient ? whole.target_gradient : at::empty({0}, a.target.options());
  Accumulator of_weight(weight, wanted.gradients[1], one_chunk, c.loss.real);
  Accumulator of_bias(bias.defined() ? bias : weight, wanted.gradients[2], false, c.loss.real);

  const Tensor buffer = at::empty({std::min(most_rows, rows), weight.size(0)}, a.input.options());
  for (int64_t begin = 0; begin < rows; begin += most_rows) {
    const int64_t n = std::min(most_rows, rows - begin);
    const auto part = [&](const Tensor& tensor) {
      return tensor.defined() ? rows_of(batch(tensor), begin, n) : tensor;
    };
    const Tensor x = input.narrow(0, begin, n);
    Tensor logits = buffer.narrow(0, 0, n);
    bias.defined() ? at::addmm_out(logits, bias, x, weight.t()) : at::mm_out(logits, x, weight.t());

    std::vector<int64_t> shape = linear_weight.sizes().vec();
    shape.pop_back();
    shape.insert(shape.begin(), n);
    CrossEntropyArguments chunk = c.logits;
    chunk.input = logits.view(shape);
    const auto labels = [&](const Tensor& tensor) {  // an unbatched one may have a batch of its own
      return c.loss.probabilities || tensor.dim() == 0 ? part(tensor) : rows_of(tensor, begin, n);
    };
    chunk.target = labels(a.target);
    if (a.target_b) chunk.target_b = labels(*a.target_b);
    if (a.lam) chunk.lam = rows_of(*a.lam, begin, n);
    chunk.num_items = std::nullopt;  // in the totals
    const CrossEntropyContract loss = check_cross_entropy(kName, chunk);
    CrossEntropyPass pass;
    pass.totals = whole.totals;
    pass.loss = part(whole.loss);
    pass.lse = part(whole.lse);
    pass.target_gradient = part(whole.target_gradient);
    const auto upstream = [&](const Tensor& tensor) {
      return tensor.defined() && tensor.dim() > 0 ? part(tensor) : tensor;
    };
    pass.upstream_loss = upstream(wanted.upstream_loss);
    pass.upstream_lse = wanted.upstream_lse.defined() ? part(wanted.upstream_lse) : Tensor();
    if (any) pass.gradient = chunk.input;
    run_cross_entropy(chunk, loss, pass);

    if (wanted.gradients[0]) {
      Tensor into = batch(found.input).narrow(0, begin, n);
      at::mm_out(into, logits, weight);
    }
    of_weight.add_product(logits.t(), x);
    of_bias.add_column_sums(logits);
  }
  found.linear_weight = of_weight.result(linear_weight.sizes());
  found.linear_bias =
      of_bias.result(linear_bias ? linear_bias->sizes() : weight.sizes().slice(0, 1));
  if (wanted.loss) {
    found.loss =
        c.loss.reduction == Reduction::none ? whole.loss : total_loss(whole.loss, whole.totals);
  }
  return found;
}

LossAndLse linear_cross_entropy(const CrossEntropyArguments& a, const Tensor& linear_weight,
                                const OptionalTensor& linear_bias, int64_t chunk_rows) {
  Wanted wanted;
  wanted.loss = true;
  const Found found = run(a, linear_weight, linear_bias,
                          check(a, linear_weight, linear_bias, chunk_rows), chunk_rows, wanted);
  return {found.loss, found.lse};
}

WithGradients linear_cross_entropy_with_gradients(const CrossEntropyArguments& a,
                                                  const Tensor& linear_weight,
                                                  const OptionalTensor& linear_bias,
                                                  int64_t chunk_rows, Mask mask) {
  Wanted wanted;
  wanted.loss = true;
  wanted.gradients = mask;
  const Found found = run(a, linear_weight, linear_bias,
                          check(a, linear_weight, linear_bias, chunk_rows), chunk_rows, wanted);
  return {found.loss, found.lse, found.input, found.linear_weight, found.linear_bias};
}

Gradients linear_cross_entropy_backward(const CrossEntropyArguments& a, const Tensor& linear_weight,
                                        const OptionalTensor& linear_bias, int64_t chunk_rows,
                                        Mask mask, const OptionalTensor& grad_loss,
                                        const OptionalTensor& grad_lse, bool target_gradient) {
  const Contract c = check(a, linear_weight, linear_bias, chunk_rows);
  Wanted wanted;
  wanted.gradients = mask;
  wanted.target_gradient = target_gradient;
  wanted.upstream_loss =
      grad_loss ? *grad_loss : at::zeros({}, a.input.options().dtype(c.loss.real));
  if (grad_lse) wanted.upstream_lse = *grad_lse;
  const Found found = run(a, linear_weight, linear_bias, c, chunk_rows, wanted);
  return {found.input, found.linear_weight, found.linear_bias, found.target};
}

LossAndLse linear_cross_entropy_meta(const CrossEntropyArguments& a, const Tensor& linear_weight,
                                     const OptionalTensor& linear_bias, int64_t chunk_rows) {
  const Contract c = check(a, linear_weight, linear_bias, chunk_rows);
  const auto reals = a.input.options().dtype(c.loss.real);
  const auto empty_rows = [&](bool rows, at::IntArrayRef otherwise) {
    return rows ? at::empty_symint(c.loss.rows_shape, reals) : at::empty(otherwise, reals);
  };
  return {empty_rows(c.loss.reduction == Reduction::none, {}), empty_rows(a.return_lse, {0})};
}

Tensor empty_gradient(const Tensor& like, bool wanted) {
  return wanted ? at::empty_symint(like.sym_sizes(), like.options())
                : at::empty({0}, like.options());
}

WithGradients linear_cross_entropy_with_gradients_meta(const CrossEntropyArguments& a,
                                                       const Tensor& linear_weight,
                                                       const OptionalTensor& linear_bias,
                                                       int64_t chunk_rows, Mask mask) {
  const auto [loss, lse] = linear_cross_entropy_meta(a, linear_weight, linear_bias, chunk_rows);
  return {loss, lse, empty_gradient(a.input, mask[0]), empty_gradient(linear_weight, mask[1]),
          empty_gradient(linear_bias.value_or(linear_weight), mask[2])};
}

Gradients linear_cross_entropy_backward_meta(const CrossEntropyArguments& a,
                                             const Tensor& linear_weight,
                                             const OptionalTensor& linear_bias, int64_t, Mask mask,
                                             const OptionalTensor&, const OptionalTensor&,
                                             bool target_gradient) {
  return {empty_gradient(a.input, mask[0]), empty_gradient(linear_weight, mask[1]),
          empty_gradient(linear_bias.value_or(linear_weight), mask[2]),
          empty_gradient(a.target, target_gradient)};
}

// ---- autograd -----------------------------------------------------------------------------------

LossAndLse call_forward(const CrossEntropyArguments& a, const Tensor& linear_weight,
                        const OptionalTensor& linear_bias, int64_t chunk_rows) {
  static const CrossEntropyOp<LossAndLse, const Tensor&, const OptionalTensor&, int64_t> op(
      "regops::linear_cross_entropy");
  return op(a, linear_weight, linear_bias, chunk_rows);
}

WithGradients call_with_gradients(const CrossEntropyArguments& a, const Tensor& linear_weight,
                                  const OptionalTensor& linear_bias, int64_t chunk_rows,
                                  Mask mask) {
  static const CrossEntropyOp<WithGradients, const Tensor&, const OptionalTensor&, int64_t, Mask>
      op("regops::linear_cross_entropy_with_gradients");
  return op(a, linear_weight, linear_bias, chunk_rows, mask);
}

Gradients call_backward(const CrossEntropyArguments& a, const Tensor& linear_weight,
                        const OptionalTensor& linear_bias, int64_t chunk_rows, Mask mask,
                        const OptionalTensor& grad_loss, const OptionalTensor& grad_lse,
                        bool target_gradient) {
  static const CrossEntropyOp<Gradients, const Tensor&, const OptionalTensor&, int64_t, Mask,
                              const OptionalTensor&, const OptionalTensor&, bool>
      op("regops::linear_cross_entropy_backward");
  return op(a, linear_weight, linear_bias, chunk_rows, mask, grad_loss, grad_lse, target_gradient);
}

LossAndLse call_composite(const CrossEntropyArguments& a, const Tensor& linear_weight,
                          const OptionalTensor& linear_bias) {
  static const CrossEntropyOp<LossAndLse, const Tensor&, const OptionalTensor&, int64_t> op(
      "regops::linear_cross_entropy_composite");
  return op(a, linear_weight, linear_bias, 0);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum Saved { kLinearWeight = kSavedArguments, kLinearBias, kOfInput, kOfWeight, kOfBias };

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
  // The tensors of the arguments that may require grad are given apart for autograd to find.
  static variable_list forward(AutogradContext* context, const Tensor& input,
                               const Tensor& linear_weight, const OptionalTensor& linear_bias,
                               const Tensor& target, const CrossEntropyArguments& a,
                               int64_t chunk_rows) {
    const Mask mask = {input.requires_grad(), linear_weight.requires_grad(),
                       linear_bias && linear_bias->requires_grad()};
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->set_materialize_grads(false);
    Tensor loss, lse, of_input, of_weight, of_bias;
    if ((mask[0] || mask[1] || mask[2]) && is_gradient_ready(a)) {
      std::tie(loss, lse, of_input, of_weight, of_bias) =
          call_with_gradients(a, linear_weight, linear_bias, chunk_rows, mask);
    } else {
      std::tie(loss, lse) = call_forward(a, linear_weight, linear_bias, chunk_rows);
    }
    variable_list saved = save_arguments(context, a);
    for (const Tensor& tensor :
         {linear_weight, linear_bias.value_or(Tensor()), of_input, of_weight, of_bias}) {
      saved.push_back(tensor);
    }
    context->save_for_backward(saved);
    context->saved_data["chunk_rows"] = chunk_rows;
    if (!a.return_lse) context->mark_non_differentiable({lse});
    return {loss, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    const Tensor &grad_loss = upstream[0], &grad_lse = upstream[1];
    variable_list result(6);
    if (!grad_loss.defined() && !grad_lse.defined()) return result;
    const variable_list saved = context->get_saved_variables();
    const CrossEntropyArguments a = saved_arguments(context, saved);
    const Tensor& linear_weight = saved[kLinearWeight];
    const OptionalTensor linear_bias = optional(saved[kLinearBias]);
    if (at::GradMode::is_enabled()) {  // create_graph=True
      CrossEntropyArguments apart = a;
      apart.input = on_its_own(a.input);
      apart.target = on_its_own(a.target);
      const Tensor weight = on_its_own(linear_weight);
      const Tensor bias = on_its_own(saved[kLinearBias]);
      const auto [loss, lse] = call_composite(apart, weight, optional(bias));
      return differentiable_gradients(
          {loss, lse}, upstream, {apart.input, weight, bias, apart.target, Tensor(), Tensor()});
    }
    const Mask mask = {context->needs_input_grad(0), context->needs_input_grad(1),
                       linear_bias && context->needs_input_grad(2)};
    const bool target_gradient = context->needs_input_grad(linear_bias ? 3 : 2);
    if (saved[kOfWeight].defined() && !grad_lse.defined()) {
      for (int i = 0; i < 3; ++i) {
        if (mask[i]) result[i] = scaled_gradient(saved[kOfInput + i], grad_loss);
      }
      return result;
    }
    const auto [of_input, of_weight, of_bias, of_target] =
        call_backward(a, linear_weight, linear_bias, context->saved_data["chunk_rows"].toInt(),
                      mask, optional(grad_loss), optional(grad_lse), target_gradient);
    if (mask[0]) result[0] = of_input;
    if (mask[1]) result[1] = of_weight;
    if (mask[2]) result[2] = of_bias;
    if (target_gradient) result[3] = of_target;
    return result;
  }
};

LossAndLse linear_cross_entropy_autograd(const CrossEntropyArguments& a,
                                         const Tensor& linear_weight,
                                         const OptionalTensor& linear_bias, int64_t chunk_rows) {
  const bool needs_node =
      at::GradMode::is_enabled() &&
      (a.input.requires_grad() || linear_weight.requires_grad() || a.target.requires_grad() ||
       (linear_bias && linear_bias->requires_grad()));
  if (needs_node) {
    check(a, linear_weight, linear_bias, chunk_rows);
    const variable_list outputs = LinearCrossEntropyFunction::apply(
        a.input, linear_weight, linear_bias, a.target, a, chunk_rows);
    return {outputs[0], outputs[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward(a, linear_weight, linear_bias, chunk_rows);
}

// ---- autocast: as torch does for linear ---------------------------------------------------------

template <c10::DeviceType device>
LossAndLse linear_cross_entropy_autocast(const CrossEntropyArguments& a,
                                         const Tensor& linear_weight,
                                         const OptionalTensor& linear_bias, int64_t chunk_rows) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [](const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  CrossEntropyArguments lower = a;
  lower.input = cast(a.input);
  return call_forward(lower, cast(linear_weight),
                      linear_bias ? OptionalTensor(cast(*linear_bias)) : std::nullopt, chunk_rows);
}

}  // namespace

std::tuple<Tensor, Tensor> linear_cross_entropy_eager(const CrossEntropyArguments& a,
                                                      const Tensor& linear_weight,
                                                      const OptionalTensor& linear_bias,
                                                      int64_t chunk_rows,
                                                      const std::optional<std::string>& mode) {
  if (is_check_asked_for(kName, mode)) {
    const Contract c = check(a, linear_weight, linear_bias, chunk_rows);
    check_targets(kName, c.logits, c.loss);
  }
  return call_forward(a, linear_weight, linear_bias, chunk_rows);
}

void check_linear_cross_entropy_eager(const CrossEntropyArguments& a, const Tensor& linear_weight,
                                      const OptionalTensor& linear_bias, int64_t chunk_rows) {
  check(a, linear_weight, linear_bias, chunk_rows);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  const std::string linear = ", Tensor linear_weight, Tensor? linear_bias, int chunk_rows";
  define_cross_entropy(m, "linear_cross_entropy", linear, "(Tensor, Tensor)");
  define_cross_entropy(m, "linear_cross_entropy_with_gradients", linear + ", bool[3] output_mask",
                       "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  define_cross_entropy(
      m, "linear_cross_entropy_backward",
      linear + ", bool[3] output_mask, Tensor? grad_loss, Tensor? grad_lse, bool target_gradient",
      "(Tensor, Tensor, Tensor, Tensor)");
  define_cross_entropy(m, "linear_cross_entropy_composite", linear,
                       "(Tensor, Tensor)");  // implemented in Python
}

#define REGOPS_LINEAR_CROSS_ENTROPY_KERNELS(device)                                           \
  TORCH_LIBRARY_IMPL(regops, device, m) {                                                     \
    m.impl("linear_cross_entropy", &Unpacked<&linear_cross_entropy>::call);                   \
    m.impl("linear_cross_entropy_with_gradients",                                             \
           &Unpacked<&linear_cross_entropy_with_gradients>::call);                            \
    m.impl("linear_cross_entropy_backward", &Unpacked<&linear_cross_entropy_backward>::call); \
  }

REGOPS_LINEAR_CROSS_ENTROPY_KERNELS(CPU)
#ifdef REGOPS_WITH_CUDA
REGOPS_LINEAR_CROSS_ENTROPY_KERNELS(CUDA)
#endif
#undef REGOPS_LINEAR_CROSS_ENTROPY_KERNELS

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("linear_cross_entropy", &Unpacked<&linear_cross_entropy_meta>::call);
  m.impl("linear_cross_entropy_with_gradients",
         &Unpacked<&linear_cross_entropy_with_gradients_meta>::call);
  m.impl("linear_cross_entropy_backward", &Unpacked<&linear_cross_entropy_backward_meta>::call);
}

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("linear_cross_entropy", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("linear_cross_entropy", &Unpacked<&linear_cross_entropy_autograd>::call);
}

TORCH_LIBRARY_IMPL(regops, AutocastCPU, m) {
  m.impl("linear_cross_entropy", &Unpacked<&linear_cross_entropy_autocast<at::kCPU>>::call);
}

TORCH_LIBRARY_IMPL(regops, AutocastCUDA, m) {
  m.impl("linear_cross_entropy", &Unpacked<&linear_cross_entropy_autocast<at::kCUDA>>::call);
}

}  // namespace regops
