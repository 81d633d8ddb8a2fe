// regops::grad_norm: the 2-norm of all gradients together, each read once.
#include "ops/grad_norm.h"

#include <cmath>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cpu/optimizer_step.h"
#include "ops/device.h"
#include "ops/parallel.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/optimizer_step.h"
#endif

namespace regops {

using at::Tensor;
using at::TensorList;

namespace {

DType check_dtype(const Tensor& grad, size_t k) {
  switch (grad.scalar_type()) {
    case at::kDouble:
      return DType::float64;
    case at::kFloat:
      return DType::float32;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      TORCH_CHECK(false,
                  "regops.grad_norm: expected grads of dtype float64, float32, bfloat16 or "
                  "float16, got ",
                  c10::getDtypeNames(grad.scalar_type()).first, " at index ", k);
  }
}

void check(TensorList grads) {
  for (size_t k = 0; k < grads.size(); ++k) {
    const Tensor& grad = grads[k];
    TORCH_CHECK(grad.layout() == at::kStrided && !grad.is_nested(),
                "regops.grad_norm: expected strided grads, got ",
                grad.is_nested() ? "a nested one" : c10::str(grad.layout()), " at index ", k);
    check_dtype(grad, k);
    TORCH_CHECK(grad.device() == grads[0].device(),
                "regops.grad_norm: expected all grads on one device, got ", grads[0].device(),
                " and ", grad.device());
  }
}

// The order of memory does not matter, only that each element is there once.
std::vector<Tensor> dense(TensorList grads) {
  std::vector<Tensor> list;
  list.reserve(grads.size());
  for (const Tensor& grad : grads) {
    list.push_back(grad.is_non_overlapping_and_dense() ? grad : grad.contiguous());
  }
  return list;
}

Tensor empty_norm(TensorList grads) {
  return at::empty({}, at::TensorOptions().dtype(at::kDouble).device(grads[0].device()));
}

Tensor grad_norm_cpu(TensorList grads) {
  check(grads);
  const std::vector<Tensor> list = dense(grads);
  struct Chunk {
    DType dtype;
    const void* values;
    int64_t begin, end;
  };
  std::vector<Chunk> chunks;
  for (size_t k = 0; k < list.size(); ++k) {
    const int64_t n = list[k].numel();
    for (int64_t begin = 0; begin < n; begin += kGrain) {
      chunks.push_back(
          {check_dtype(list[k], k), list[k].const_data_ptr(), begin, std::min(begin + kGrain, n)});
    }
  }
  // One sum a chunk, added up in order: the same for any number of threads.
  std::vector<double> sums(chunks.size());
  at::parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[i];
      sums[i] = cpu::sum_of_squares(chunk.dtype, chunk.values, chunk.begin, chunk.end);
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  Tensor norm = empty_norm(grads);
  *norm.mutable_data_ptr<double>() = std::sqrt(total);
  return norm;
}

#ifdef REGOPS_WITH_CUDA
Tensor grad_norm_cuda(TensorList grads) {
  check(grads);
  const c10::DeviceGuard guard(grads[0].device());
  const std::vector<Tensor> list = dense(grads);
  std::vector<CudaGradient> gradients;
  for (size_t k = 0; k < list.size(); ++k) {
    gradients.push_back({check_dtype(list[k], k), list[k].const_data_ptr(), list[k].numel()});
  }
  const int64_t count = static_cast<int64_t>(gradients.size());
  Tensor norm = empty_norm(grads);
  const Tensor partial =
      at::empty({regops_grad_norm_partials(gradients.data(), count)}, norm.options());
  check_launch("grad_norm",
               regops_grad_norm_cuda(gradients.data(), count, partial.mutable_data_ptr<double>(),
                                     norm.mutable_data_ptr<double>(), current_stream(norm)));
  return norm;
}
#endif

Tensor grad_norm_meta(TensorList grads) {
  check(grads);
  return empty_norm(grads);
}

}  // namespace

Tensor grad_norm_eager(const std::vector<Tensor>& grads) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::grad_norm", "")
                             .typed<Tensor(TensorList)>();
  return grads.empty() ? at::zeros({}, at::kDouble) : op.call(grads);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def("grad_norm(Tensor[] grads) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) { m.impl("grad_norm", &grad_norm_cpu); }

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) { m.impl("grad_norm", &grad_norm_cuda); }
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) { m.impl("grad_norm", &grad_norm_meta); }

// The check refuses them, in words of its own.
TORCH_LIBRARY_IMPL(regops, SparseCPU, m) { m.impl("grad_norm", &grad_norm_meta); }
TORCH_LIBRARY_IMPL(regops, SparseCUDA, m) { m.impl("grad_norm", &grad_norm_meta); }
TORCH_LIBRARY_IMPL(regops, SparseCsrCPU, m) { m.impl("grad_norm", &grad_norm_meta); }
TORCH_LIBRARY_IMPL(regops, SparseCsrCUDA, m) { m.impl("grad_norm", &grad_norm_meta); }

// As clip_grad_norm_, it is no part of the graph.
TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("grad_norm", torch::CppFunction::makeFallthrough());
}

}  // namespace regops
