#include "ops/contiguity.h"

#include <algorithm>
#include <vector>

namespace regops {

namespace {

struct Dim {
  int64_t size, memory, logical;
};

}  // namespace

std::optional<PermutedLayout> permuted_layout(const at::Tensor& tensor,
                                              const LogicalIndices& indices) {
  std::vector<Dim> dims;
  int64_t row_major = 1;
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    const int64_t logical = indices.strides ? (*indices.strides)[d] : row_major;
    if (tensor.size(d) != 1) dims.push_back({tensor.size(d), tensor.stride(d), logical});
    row_major *= tensor.size(d);
  }
  std::sort(dims.begin(), dims.end(),
            [](const Dim& a, const Dim& b) { return a.memory < b.memory; });
  // Merge a dimension into the next inner one where both orders step over it alike.
  std::vector<Dim> merged;
  for (const Dim& dim : dims) {
    if (!merged.empty() && dim.memory == merged.back().memory * merged.back().size &&
        dim.logical == merged.back().logical * merged.back().size) {
      merged.back().size *= dim.size;
    } else {
      merged.push_back(dim);
    }
  }

  const auto take = [&merged](auto&& wanted) {
    const auto found = std::find_if(merged.begin(), merged.end(), wanted);
    if (found == merged.end()) return Dim{1, 0, 0};
    const Dim dim = *found;
    merged.erase(found);
    return dim;
  };
  const Dim rows = take([](const Dim& dim) { return dim.logical == 1; });
  const Dim columns = take([](const Dim&) { return true; });  // the innermost that is left
  if (merged.size() > kMaxOuterDims) return std::nullopt;
  PermutedLayout layout = {};
  layout.first = indices.first;
  layout.rows = rows.size;
  layout.row_memory = rows.memory;
  layout.columns = columns.size;
  layout.column_memory = columns.memory;
  layout.column_logical = columns.logical;
  layout.outer = 1;
  for (const Dim& dim : merged) {
    const int d = layout.outer_dims++;
    layout.outer_size[d] = dim.size;
    layout.outer_memory[d] = dim.memory;
    layout.outer_logical[d] = dim.logical;
    layout.outer *= dim.size;
  }
  return layout;
}

}  // namespace regops
