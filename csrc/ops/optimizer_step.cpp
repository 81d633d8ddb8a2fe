// One step of all parameters: which kernel does what, on which thread.
#include "ops/optimizer_step.h"

#include <algorithm>
#include <memory>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "cpu/optimizer_step.h"
#include "math/optimizer_step.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/random.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/optimizer_step.h"
#endif

namespace regops {

using at::Tensor;

namespace {

double number(const OptionalTensor& tensor, double otherwise) {
  return tensor ? tensor->item().toDouble() : otherwise;
}

// Work is dealt out in units of about so many elements: 2 KiB of float32, whole cache lines.
constexpr int64_t kUnit = 512;

// One parameter on the CPU.
struct Job {
  StepTensors tensors;
  size_t scalars;                      // index: parameters of the same step share them
  std::unique_ptr<StepLayout> layout;  // null: all tensors in one piece
  int64_t first_unit;

  bool rows(const StepOptions& options) const {
    return tensors.row > 0 && !std::isinf(options.max_norm);
  }
  int64_t units_per_row() const { return (tensors.row + kUnit - 1) / kUnit; }
  int64_t units(const StepOptions& options) const {
    return rows(options) ? tensors.numel / tensors.row * units_per_row()
                         : (tensors.numel + kUnit - 1) / kUnit;
  }

  // Units [begin, end) of its own; a row belongs to whoever has its first unit.
  void run(const StepOptions& options, const StepScalars& of_step, int64_t begin,
           int64_t end) const {
    if (rows(options)) {
      const int64_t each = units_per_row();
      begin = (begin + each - 1) / each * tensors.row;
      end = (end + each - 1) / each * tensors.row;
    } else {
      begin *= kUnit;
      end = std::min(end * kUnit, tensors.numel);
    }
    if (begin >= end) return;
    if (layout) {
      cpu::optimizer_step_strided(options, tensors, of_step, *layout, begin, end);
    } else {
      cpu::optimizer_step_run(options, tensors, of_step, begin, end);
    }
  }
};

}  // namespace

void step_cpu(const StepArguments& a) {
  check_step(a);
  if (a.params.empty()) return;
  const StepOptions options = step_options(a);
  const double lr = a.lr.item().toDouble();
  const double norm = number(a.grad_norm, 0.0), scale = number(a.grad_scale, 1.0);
  const double found_inf = number(a.found_inf, 0.0);
  const Key key = a.key ? host_key(a.key->cpu()) : Key{0, 0};

  std::vector<Job> jobs;
  std::vector<StepScalars> scalars;
  jobs.reserve(a.params.size());
  int64_t units = 0;
  float last_step = -1.0f;
  for (size_t k = 0; k < a.params.size(); ++k) {
    Job job = {step_tensors(a, k), 0, nullptr, units};
    if (!in_one_piece(a, k)) job.layout = std::make_unique<StepLayout>(step_layout(a, k));
    const float step = *job.tensors.step + 1.0f;
    if (scalars.empty() || step != last_step || a.key) {
      scalars.push_back(
          step_scalars(options, step, lr, norm, scale, found_inf, key, job.tensors.stream));
      last_step = step;
    }
    job.scalars = scalars.size() - 1;
    units += job.units(options);
    jobs.push_back(std::move(job));
  }

  at::parallel_for(0, units, kGrain / kUnit, [&](int64_t begin, int64_t end) {
    const auto after = [](int64_t unit, const Job& job) { return unit < job.first_unit; };
    auto job = std::upper_bound(jobs.begin(), jobs.end(), begin, after) - 1;
    for (; job != jobs.end() && job->first_unit < end; ++job) {
      const int64_t first = job->first_unit;
      job->run(options, scalars[job->scalars], std::max(begin - first, int64_t{0}),
               std::min(end - first, job->units(options)));
    }
  });
  if (found_inf != 0.0) return;
  for (const Job& job : jobs) *job.tensors.step += 1.0f;
}

#ifdef REGOPS_WITH_CUDA
void step_cuda(const StepArguments& a) {
  check_step(a);
  if (a.params.empty()) return;
  const at::Device device = a.params[0].device();
  const c10::DeviceGuard guard(device);
  const StepOptions options = step_options(a);

  // Kept until the launches are queued: the stream orders what reuses their memory.
  const auto on_device = [&](const OptionalTensor& tensor, at::ScalarType type) {
    return tensor ? tensor->to(device, type) : Tensor();
  };
  const Tensor norm = on_device(a.grad_norm, at::kDouble);
  const Tensor scale = on_device(a.grad_scale, at::kFloat);
  const Tensor found_inf = on_device(a.found_inf, at::kFloat);
  const Tensor key = a.key ? a.key->contiguous() : Tensor();
  const auto pointer = [](const Tensor& tensor, auto type) {
    return tensor.defined() ? tensor.const_data_ptr<decltype(type)>() : nullptr;
  };
  CudaStepInputs inputs = {};
  Tensor lr = a.lr;
  if (lr.is_cpu()) {
    inputs.lr = lr.item().toDouble();
  } else {
    if (lr.scalar_type() != at::kFloat) lr = lr.to(at::kDouble);
    inputs.lr_device = lr.const_data_ptr();
    inputs.lr_is_float64 = lr.scalar_type() == at::kDouble;
  }
  inputs.grad_norm = pointer(norm, double());
  inputs.grad_scale = pointer(scale, float());
  inputs.found_inf = pointer(found_inf, float());
  if (key.defined()) {
    if (key.is_cpu()) {
      inputs.key.host = host_key(key);
    } else {
      inputs.key.device = key.const_data_ptr<int64_t>();
    }
  }

  const int64_t count = static_cast<int64_t>(a.params.size());
  const Tensor scratch = at::empty({count * static_cast<int64_t>(sizeof(StepScalars))},
                                   at::TensorOptions().dtype(at::kByte).device(device));
  StepScalars* scalars = static_cast<StepScalars*>(scratch.mutable_data_ptr());
  std::vector<StepTensors> pieces;
  std::vector<std::pair<StepTensors, StepLayout>> strided;
  for (size_t k = 0; k < a.params.size(); ++k) {
    if (in_one_piece(a, k)) {
      pieces.push_back(step_tensors(a, k));
    } else {
      strided.emplace_back(step_tensors(a, k), step_layout(a, k));
    }
  }
  void* const stream = current_stream(a.params[0]);
  if (!pieces.empty()) {
    check_launch(a.op, regops_optimizer_step_cuda(&options, pieces.data(),
                                                  static_cast<int64_t>(pieces.size()), &inputs,
                                                  scalars, stream));
    scalars += pieces.size();
  }
  for (const auto& [tensors, layout] : strided) {
    check_launch(a.op, regops_optimizer_step_strided_cuda(&options, &tensors, &layout, &inputs,
                                                          scalars++, stream));
  }
}
#endif

}  // namespace regops
