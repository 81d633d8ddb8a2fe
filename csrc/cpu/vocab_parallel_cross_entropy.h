// Serial kernels of cross-entropy over classes that are split over processes, of the instruction
// set in use, each for rows [begin, end). The caller splits the work over threads; results do not
// depend on how.
#pragma once

#include <cstdint>

#include "vocab_parallel_cross_entropy_call.h"

namespace regops::cpu {

// call.statistics, from the shard's logits.
void vocab_parallel_statistics(const VocabParallelCall& call, int64_t begin, int64_t end);

// Losses, lse and normalizers, each where asked for, from the statistics of all shards.
void vocab_parallel_losses(const VocabParallelCall& call, int64_t begin, int64_t end);

// The gradient of the shard's logits, from them and the normalizers.
void vocab_parallel_gradient(const VocabParallelCall& call, int64_t begin, int64_t end);

}  // namespace regops::cpu
