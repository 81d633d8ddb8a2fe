// Launchers of cross-entropy over classes that are split over processes: see cuda/launch.h for the
// conventions, and cuda/cross_entropy.h for `totals`, which come first.
#pragma once

#include "vocab_parallel_cross_entropy_call.h"

extern "C" {

// call->statistics of all rows, from the shard's logits.
int regops_vocab_parallel_statistics_cuda(const regops::VocabParallelCall* call, void* stream);

// Losses, lse and normalizers of all rows, from the statistics of all shards. A row is nan where
// its target is neither a class nor ignored, or where the shards' classes do not add up to all.
int regops_vocab_parallel_losses_cuda(const regops::VocabParallelCall* call, void* stream);

// The gradient of the shard's logits, from them and the normalizers.
int regops_vocab_parallel_gradient_cuda(const regops::VocabParallelCall* call, void* stream);

}  // extern "C"
