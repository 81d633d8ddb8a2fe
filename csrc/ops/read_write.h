// The in-place stream for benchmarks: what a step that moves as many bytes cannot beat.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace regops {

// For each t, reads read[k][t] and flips the bits of written[k][t] for all k, threaded as the ops
// do it. Contiguous CPU tensors; those of one t have as many elements. Returns an exclusive or of
// all words that were read: every byte counts once, so that no read can be left out.
int64_t read_write_inplace(const std::vector<std::vector<at::Tensor>>& written,
                           const std::vector<std::vector<at::Tensor>>& read);

}  // namespace regops
