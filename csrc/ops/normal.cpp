// regops::normal_like(like, key): standard normal numbers of a tensor's shape, by logical index.
#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cpu/normal.h"
#include "ops/arguments.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/random.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/normal.h"
#endif

namespace regops {

using at::Tensor;

namespace {

void check(const Tensor& like, const Tensor& key) {
  check_dtype("normal_like", "like", like);
  check_strided("normal_like", "like", like);
  check_key("normal_like", key, like);
}

// Numbers are float32; those of another type are these, converted.
Tensor normal_cpu(const Tensor& like, const Tensor& key) {
  check(like, key);
  const Tensor numbers = at::empty(like.sizes(), like.options().dtype(at::kFloat));
  float* output = numbers.mutable_data_ptr<float>();
  const Key host = host_key(key);
  parallel_contiguous(numbers.numel(), [&](int64_t begin, int64_t end) {
    cpu::normal_run(host, begin, output + begin, end - begin);
  });
  return numbers.to(like.scalar_type());
}

#ifdef REGOPS_WITH_CUDA
Tensor normal_cuda(const Tensor& like, const Tensor& key) {
  check(like, key);
  const c10::DeviceGuard guard(like.device());
  const Tensor numbers = at::empty(like.sizes(), like.options().dtype(at::kFloat));
  const Tensor contiguous_key = key.contiguous();
  const CudaKey on_device = cuda_key(contiguous_key);
  check_launch("normal_like", regops_normal_cuda(&on_device, numbers.mutable_data_ptr<float>(),
                                                 numbers.numel(), current_stream(like)));
  return numbers.to(like.scalar_type());
}
#endif

Tensor normal_meta(const Tensor& like, const Tensor& key) {
  check(like, key);
  return at::empty_symint(like.sym_sizes(), like.options());
}

// Not differentiable: of `like` only shape, type and device matter.
Tensor normal_autograd(const Tensor& like, const Tensor& key) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::normal_like", "")
                             .typed<Tensor(const Tensor&, const Tensor&)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(like, key);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def("normal_like(Tensor like, Tensor key) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) { m.impl("normal_like", &normal_cpu); }

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) { m.impl("normal_like", &normal_cuda); }
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) { m.impl("normal_like", &normal_meta); }

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("normal_like", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(regops, Autograd, m) { m.impl("normal_like", &normal_autograd); }

}  // namespace regops
