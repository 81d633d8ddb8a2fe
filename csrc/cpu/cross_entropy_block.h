// Sums over a part of a row, and how the kernels of cross-entropy call each other.
#pragma once

#include <cstdint>

#include "cpu/cross_entropy.h"

namespace regops::cpu {

struct CrossEntropyPart {
  double reference;  // its largest logit m, but never -inf
  double sum;        // sum_c exp(x_c - m)
  double cross;      // sum_c v_c (x_c - m): see CrossEntropySums
  double mass;       // sum_c v_c
  double entropy;    // sum_c exp(x_c - m) (x_c - m)
};

struct CrossEntropyBlock {
  CrossEntropyPart sums;
  double factor;         // exp(m - the row's m), once the row's sums are known
  CrossEntropyPart row;  // of the first block: the row's sums
};

// Rows of so few classes do not fill vectors: then the lanes of a vector are rows.
constexpr int64_t kFewClasses = 64;

void cross_entropy_few_classes(const CrossEntropyCall& call, int64_t begin, int64_t end);
void cross_entropy_many_classes(const CrossEntropyCall& call, int64_t begin, int64_t end);

}  // namespace regops::cpu
