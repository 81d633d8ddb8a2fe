// regops::new_key, the only source of randomness in the library, and regops::fold_in.
//
// new_key draws from torch's own generators, so torch.manual_seed rules. It alone is tagged
// nondeterministic_seeded: ops that take a key are pure functions of it.
#include "ops/random.h"

#include <mutex>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

#include "ops/device.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/random.h"
#endif

namespace regops {

using at::Tensor;
using OptionalGenerator = std::optional<at::Generator>;

void check_key(const char* op, const Tensor& key, const Tensor& input) {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kLong, "regops.", op,
                   ": expected key of dtype torch.int64, got torch.",
                   c10::getDtypeNames(key.scalar_type()).first);
  TORCH_CHECK_VALUE(key.dim() == 1 && key.size(0) == 2, "regops.", op,
                    ": expected key of shape (2,), got ", key.sizes());
  TORCH_CHECK(key.device() == input.device() || key.is_cpu(), "regops.", op, ": expected key on ",
              input.device(), input.is_cpu() ? "" : " or cpu", ", got ", key.device());
}

Key host_key(const Tensor& key) {
  const int64_t* value = key.const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(value[0]), static_cast<uint64_t>(value[key.stride(0)])};
}

#ifdef REGOPS_WITH_CUDA
CudaKey cuda_key(const Tensor& key) {
  if (key.is_cpu()) return {host_key(key), nullptr};
  TORCH_INTERNAL_ASSERT(key.is_contiguous());
  return {{0, 0}, key.const_data_ptr<int64_t>()};
}
#endif

namespace {

Tensor empty_key(const c10::Device& device) {
  return at::empty({2}, at::TensorOptions().dtype(at::kLong).device(device));
}

Tensor key_on_host(Key key) {
  Tensor tensor = empty_key(at::kCPU);
  int64_t* value = tensor.mutable_data_ptr<int64_t>();
  value[0] = static_cast<int64_t>(key.seed);
  value[1] = static_cast<int64_t>(key.offset);
  return tensor;
}

void check_generator(const at::Generator& generator, const c10::Device& device) {
  TORCH_CHECK(generator.device().type() == device.type(),
              "regops.new_key: expected a generator on ", device, ", got one on ",
              generator.device());
}

// Two draws of 64 bits: the Mersenne twister keeps no counter that an offset could be read from.
Key draw_cpu(const OptionalGenerator& generator) {
  const at::Generator& source = generator ? *generator : at::detail::getDefaultCPUGenerator();
  check_generator(source, at::kCPU);
  auto* twister = at::check_generator<at::CPUGeneratorImpl>(source);
  const std::lock_guard<std::mutex> lock(twister->mutex_);
  const uint64_t seed = twister->random64();
  return {seed, twister->random64()};
}

Tensor new_key_cpu(const Tensor&, const OptionalGenerator& generator) {
  return key_on_host(draw_cpu(generator));
}

Tensor new_key_meta(const Tensor& like, const OptionalGenerator&) {
  return empty_key(like.device());
}

Tensor fold_in_cpu(const Tensor& key, int64_t data) {
  check_key("fold_in", key, key);
  return key_on_host(fold_in(host_key(key), static_cast<uint64_t>(data)));
}

Tensor fold_in_meta(const Tensor& key, c10::SymInt) {
  check_key("fold_in", key, key);
  return empty_key(key.device());
}

#ifdef REGOPS_WITH_CUDA

bool is_capturing(const Tensor& like) {
  const int answer = regops_cuda_is_capturing(current_stream(like));
  check_launch("new_key", answer < 0 ? -answer : 0);
  return answer == 1;
}

// torch's CUDA generators are counter-based too: (seed, offset) is the key, and the offset moves on
// by the 4 that torch's own kernels move it by for one random number a thread.
Key draw_cuda(const OptionalGenerator& generator, const c10::Device& device) {
  at::Generator source = generator ? *generator : at::globalContext().defaultGenerator(device);
  check_generator(source, device);
  const std::lock_guard<std::mutex> lock(source.mutex());
  const uint64_t offset = source.get_offset();
  source.set_offset(offset + 4);
  return {source.current_seed(), offset};
}

Tensor new_key_cuda(const Tensor& like, const OptionalGenerator& generator) {
  const c10::DeviceGuard guard(like.device());
  Tensor key = empty_key(like.device());
  if (is_capturing(like)) {
    // The generator's offset is known only at replay, so torch's own capturable kernel draws.
    return key.random_(generator);
  }
  const Key drawn = draw_cuda(generator, like.device());
  check_launch("new_key", regops_store_key_cuda(key.mutable_data_ptr<int64_t>(), drawn.seed,
                                                drawn.offset, current_stream(key)));
  return key;
}

Tensor fold_in_cuda(const Tensor& key, int64_t data) {
  check_key("fold_in", key, key);
  const c10::DeviceGuard guard(key.device());
  const Tensor source = key.contiguous();
  Tensor folded = empty_key(key.device());
  check_launch("fold_in",
               regops_fold_in_cuda(source.const_data_ptr<int64_t>(), data,
                                   folded.mutable_data_ptr<int64_t>(), current_stream(key)));
  return folded;
}

#endif

}  // namespace

Tensor new_key(const Tensor& like, const OptionalGenerator& generator) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regops::new_key", "")
                             .typed<Tensor(const Tensor&, const OptionalGenerator&)>();
  return op.call(like, generator);
}

Tensor new_eager_key(const Tensor& like, const OptionalGenerator& generator) {
#ifdef REGOPS_WITH_CUDA
  const bool plain = !like.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) &&
                     !c10::impl::TorchDispatchModeTLS::any_modes_set();
  if (like.is_cuda() && plain && !is_capturing(like)) {
    return key_on_host(draw_cuda(generator, like.device()));
  }
#endif
  return new_key(like, generator);
}

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def("new_key(Tensor like, *, Generator? generator=None) -> Tensor",
        {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def("fold_in(Tensor key, SymInt data) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) {
  m.impl("new_key", &new_key_cpu);
  m.impl("fold_in", &fold_in_cpu);
}

TORCH_LIBRARY_IMPL(regops, Meta, m) {
  m.impl("new_key", &new_key_meta);
  m.impl("fold_in", &fold_in_meta);
}

// Integers have no gradient.
TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("new_key", torch::CppFunction::makeFallthrough());
  m.impl("fold_in", torch::CppFunction::makeFallthrough());
}

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) {
  m.impl("new_key", &new_key_cuda);
  m.impl("fold_in", &fold_in_cuda);
}
#endif

}  // namespace regops
