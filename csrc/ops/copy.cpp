#include "ops/copy.h"

#include <ATen/Parallel.h>

#include "cpu/copy.h"
#include "ops/output.h"

namespace regops {

void copy_inplace(const at::Tensor& output, const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.is_cpu() && output.is_cpu() && input.is_contiguous() &&
                        output.is_contiguous() && input.nbytes() == output.nbytes(),
                    "regops.copy_: expected contiguous CPU tensors of one size, got ",
                    output.sizes(), " and ", input.sizes());
  const char* from = static_cast<const char*>(input.const_data_ptr());
  char* to = static_cast<char*>(output.mutable_data_ptr());
  const int64_t bytes = static_cast<int64_t>(input.nbytes());
  constexpr int64_t kChunk = 16384;
  at::parallel_for(0, (bytes + kChunk - 1) / kChunk, 8, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kChunk, bytes);
    cpu::copy_run(from + begin * kChunk, to + begin * kChunk, last - begin * kChunk,
                  bytes >= kStreamBytes);
  });
}

at::Tensor copy(const at::Tensor& input) {
  at::Tensor output = empty_output(input);
  copy_inplace(output, input);
  return output;
}

}  // namespace regops
