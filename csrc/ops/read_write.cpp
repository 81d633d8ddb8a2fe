#include "ops/read_write.h"

#include <algorithm>
#include <atomic>

#include <ATen/Parallel.h>

#include "cpu/read_write.h"
#include "ops/parallel.h"

namespace regops {

namespace {

// A tensor's elements are walked by one thread in pieces of this many: whole cache lines.
constexpr int64_t kPiece = 16384;

struct Piece {
  size_t tensor;
  int64_t begin, end;
};

using Lists = std::vector<std::vector<at::Tensor>>;

void check(const Lists& lists, const std::vector<at::Tensor>& model) {
  TORCH_CHECK_VALUE(lists.size() <= cpu::ReadWriteCall::kMost, "regops.read_write_: expected ",
                    cpu::ReadWriteCall::kMost, " lists or fewer, got ", lists.size());
  for (const auto& list : lists) {
    TORCH_CHECK_VALUE(list.size() == model.size(),
                      "regops.read_write_: expected lists of one length, got ", list.size(),
                      " and ", model.size());
    for (size_t t = 0; t < list.size(); ++t) {
      TORCH_CHECK_VALUE(
          list[t].is_cpu() && list[t].is_contiguous() && list[t].numel() == model[t].numel(),
          "regops.read_write_: expected contiguous CPU tensors of one size, got ", list[t].sizes(),
          " and ", model[t].sizes());
    }
  }
}

}  // namespace

int64_t read_write_inplace(const Lists& written, const Lists& read) {
  TORCH_CHECK_VALUE(!written.empty() || !read.empty(), "regops.read_write_: expected a list");
  const auto& model = written.empty() ? read[0] : written[0];
  check(written, model);
  check(read, model);
  std::vector<cpu::ReadWriteCall> calls(model.size());
  std::vector<Piece> pieces;
  for (size_t t = 0; t < model.size(); ++t) {
    cpu::ReadWriteCall& call = calls[t];
    call.written_arrays = static_cast<int>(written.size());
    call.read_arrays = static_cast<int>(read.size());
    for (size_t k = 0; k < written.size(); ++k) {
      call.written[k] = static_cast<char*>(written[k][t].mutable_data_ptr());
      call.written_bytes[k] = static_cast<int64_t>(written[k][t].element_size());
    }
    for (size_t k = 0; k < read.size(); ++k) {
      call.read[k] = static_cast<const char*>(read[k][t].const_data_ptr());
      call.read_bytes[k] = static_cast<int64_t>(read[k][t].element_size());
    }
    for (int64_t begin = 0; begin < model[t].numel(); begin += kPiece) {
      pieces.push_back({t, begin, std::min(begin + kPiece, model[t].numel())});
    }
  }
  std::atomic<uint64_t> folded{0};
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), kGrain / kPiece,
                   [&](int64_t begin, int64_t end) {
                     uint64_t sum = 0;
                     for (int64_t i = begin; i < end; ++i) {
                       const Piece& piece = pieces[i];
                       sum ^= cpu::read_write_run(calls[piece.tensor], piece.begin, piece.end);
                     }
                     folded ^= sum;
                   });
  return static_cast<int64_t>(folded.load());
}

}  // namespace regops
