// regops::adamw_step_: one step of AdamW for a list of parameters, in place.
//
// Each tensor is read once, and written once if it changes: 28 bytes an element of float32.
#include "ops/adamw.h"

#include <torch/library.h>

namespace regops {

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def(
      "adamw_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
      "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] state_steps, "
      "Tensor(g!)[] masters, Tensor(h!)[] emas, Tensor lr, Tensor? grad_norm, Tensor? grad_scale, "
      "Tensor? found_inf, Tensor? key, float beta1, float beta2, float eps, float weight_decay, "
      "bool maximize, float? max_grad_norm, float? clip_value, float l1, float l2, "
      "float noise_variance, float noise_decay, float? max_norm, float? ema_decay, "
      "bool zero_grad, str master, int[] streams, int[] first_indices) -> ()",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) { m.impl("adamw_step_", &adamw_step<&step_cpu>); }

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) { m.impl("adamw_step_", &adamw_step<&step_cuda>); }
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) { m.impl("adamw_step_", &adamw_step<&check_step>); }

// The check refuses them, in words of its own.
TORCH_LIBRARY_IMPL(regops, SparseCPU, m) { m.impl("adamw_step_", &adamw_step<&check_step>); }
TORCH_LIBRARY_IMPL(regops, SparseCUDA, m) { m.impl("adamw_step_", &adamw_step<&check_step>); }
TORCH_LIBRARY_IMPL(regops, SparseCsrCPU, m) { m.impl("adamw_step_", &adamw_step<&check_step>); }
TORCH_LIBRARY_IMPL(regops, SparseCsrCUDA, m) { m.impl("adamw_step_", &adamw_step<&check_step>); }

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("adamw_step_", &AdamWOp::call_with_versions);
}

// A step is no part of the graph, even where gradients are recorded.
TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("adamw_step_", torch::CppFunction::makeFallthrough());
}

}  // namespace regops
