// Cross-entropy on the CPU: the choice of kernel, and the pass over the targets.
#include "cpu/cross_entropy.h"

#include <initializer_list>

#include "cpu/cross_entropy_block.h"

namespace regops::cpu {

namespace {

template <class Real>
CrossEntropyTargets targets_of(const CrossEntropyCall& call, int64_t begin, int64_t end) {
  CrossEntropyTargets found;
  if (call.probability != nullptr) {
    found.weight = static_cast<double>(end - begin);
    return found;
  }
  const uint64_t classes = static_cast<uint64_t>(call.classes);  // as such, -1 is out of range too
  const int64_t ignored = call.ignore_index;
  int64_t bad = 0, counted = 0;
  for (int64_t row = begin; row < end; ++row) {
    const bool counts = call.target[row] != ignored;
    counted += counts;
    bad += counts & (static_cast<uint64_t>(call.target[row]) >= classes);
  }
  if (call.target_b != nullptr) {
    for (int64_t row = begin; row < end; ++row) {
      bad +=
          (call.target_b[row] != ignored) & (static_cast<uint64_t>(call.target_b[row]) >= classes);
    }
  }
  if (bad != 0) {
    for (int64_t row = begin; row < end; ++row) {
      for (const int64_t* target : {call.target, call.target_b}) {
        if (target == nullptr || target[row] == ignored) continue;
        if (static_cast<uint64_t>(target[row]) < classes) continue;
        found.bad_row = row;
        found.bad_target = target[row];
        found.bad_is_b = target == call.target_b;
        return found;
      }
    }
  }
  if (call.weight == nullptr && call.target_b == nullptr && call.lam == nullptr) {
    found.weight = static_cast<double>(counted);
    return found;
  }
  const Real* weight = static_cast<const Real*>(call.weight);
  const auto weight_of = [&](int64_t label) {
    if (label == ignored) return 0.0;
    return weight == nullptr ? 1.0 : static_cast<double>(weight[label]);
  };
  for (int64_t row = begin; row < end; ++row) {
    const double share =
        call.lam == nullptr ? 1.0 : static_cast<const Real*>(call.lam)[row / call.rows_per_lam];
    found.weight += share * weight_of(call.target[row]);
    if (call.target_b != nullptr) found.weight += (1.0 - share) * weight_of(call.target_b[row]);
  }
  return found;
}

}  // namespace

CrossEntropyTargets cross_entropy_targets(const CrossEntropyCall& call, int64_t begin,
                                          int64_t end) {
  return call.dtype == DType::float64 ? targets_of<double>(call, begin, end)
                                      : targets_of<float>(call, begin, end);
}

void cross_entropy_rows(const CrossEntropyCall& call, int64_t begin, int64_t end) {
  if (call.classes <= kFewClasses) {
    cross_entropy_few_classes(call, begin, end);
  } else {
    cross_entropy_many_classes(call, begin, end);
  }
}

}  // namespace regops::cpu
