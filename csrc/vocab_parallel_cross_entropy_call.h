// One call of cross-entropy whose classes are split over processes, as its kernels see it.
#pragma once

#include <cstdint>

#include "cross_entropy_call.h"

namespace regops {

// How many numbers of a row a shard gives to the others: those of CrossEntropyShard, in its order.
constexpr int kShardStatistics = 6;
// And how many of all shards together the gradient needs: m and the sum of exponentials.
constexpr int kNormalizers = 2;

// Pointers are as in CrossEntropyCall; rows lie in one piece, and `inner` is 1.
struct VocabParallelCall {
  // The call over all classes, which has no logits: targets, class weights, totals, upstream
  // gradients, loss and lse.
  CrossEntropyCall all;
  // The classes of this shard alone, of which there may be none: logits, gradient, class weights.
  CrossEntropyCall shard;
  int64_t first_class;   // the shard's first, among all
  bool reads_ignored;    // whether the lse of ignored rows is wanted
  void* statistics;      // Real [rows][kShardStatistics] of this shard
  int64_t shards;        // processes
  const void* gathered;  // Real [shards][rows][kShardStatistics]: the statistics of all shards
  void* normalizers;     // Real [rows][kNormalizers]
};

}  // namespace regops
