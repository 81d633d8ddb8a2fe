// regops::sgdw_step_: one step of SGDW for a list of parameters, in place.
//
// Each tensor is read once, and written once if it changes: 20 bytes an element of float32 with
// momentum, 12 without.
#include "ops/sgdw.h"

#include <torch/library.h>

namespace regops {

TORCH_LIBRARY_FRAGMENT(regops, m) {
  m.def(
      "sgdw_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, "
      "Tensor(d!)[] state_steps, "
      "Tensor(e!)[] masters, Tensor(f!)[] emas, Tensor lr, Tensor? grad_norm, Tensor? grad_scale, "
      "Tensor? found_inf, Tensor? key, float momentum, float dampening, bool nesterov, float "
      "weight_decay, "
      "bool maximize, float? max_grad_norm, float? clip_value, float l1, float l2, "
      "float noise_variance, float noise_decay, float? max_norm, float? ema_decay, "
      "bool zero_grad, str master, int[] streams, int[] first_indices) -> ()",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(regops, CPU, m) { m.impl("sgdw_step_", &sgdw_step<&step_cpu>); }

#ifdef REGOPS_WITH_CUDA
TORCH_LIBRARY_IMPL(regops, CUDA, m) { m.impl("sgdw_step_", &sgdw_step<&step_cuda>); }
#endif

TORCH_LIBRARY_IMPL(regops, Meta, m) { m.impl("sgdw_step_", &sgdw_step<&check_step>); }

// The check refuses them, in words of its own.
TORCH_LIBRARY_IMPL(regops, SparseCPU, m) { m.impl("sgdw_step_", &sgdw_step<&check_step>); }
TORCH_LIBRARY_IMPL(regops, SparseCUDA, m) { m.impl("sgdw_step_", &sgdw_step<&check_step>); }
TORCH_LIBRARY_IMPL(regops, SparseCsrCPU, m) { m.impl("sgdw_step_", &sgdw_step<&check_step>); }
TORCH_LIBRARY_IMPL(regops, SparseCsrCUDA, m) { m.impl("sgdw_step_", &sgdw_step<&check_step>); }

TORCH_LIBRARY_IMPL(regops, ADInplaceOrView, m) {
  m.impl("sgdw_step_", &SgdwOp::call_with_versions);
}

// A step is no part of the graph, even where gradients are recorded.
TORCH_LIBRARY_IMPL(regops, Autograd, m) {
  m.impl("sgdw_step_", torch::CppFunction::makeFallthrough());
}

}  // namespace regops
