// Blocks of a parameter whose tensors have strides of their own: gathered, computed, scattered.
// Once per instruction set.

namespace regops::cpu::REGOPS_ISA {
namespace {  // so that the linker sees no member

class StridedBlock {
 public:
  StridedBlock(const StepOptions& options, const StepTensors& tensors, const StepScalars& scalars,
               const StepLayout& layout)
      : layout_(layout), first_index_(tensors.first_index), block_(tensors) {
    const int64_t real = options.param == DType::float64 ? 8 : 4;
    const int64_t param = size_of(options.param), state = size_of(options.state);
    const int64_t master = options.master == Master::kahan ? param : real;
    const int64_t sizes[] = {param, size_of(options.grad), state, state, state, master, real};
    const bool writes_grad = options.zero_grad || scalars.unscale != 1.0;
    void** const pointers[] = {&block_.param,   &block_.grad,   &block_.first, &block_.second,
                               &block_.largest, &block_.master, &block_.ema};
    for (int k = 0; k < kStepOperands; ++k) {
      if (*pointers[k] == nullptr) continue;
      operands_[count_] = {static_cast<char*>(*pointers[k]), buffers_[k], layout.stride[k],
                           sizes[k], k != kGrad || writes_grad};
      *pointers[k] = buffers_[k];
      ++count_;
    }
  }

  // The block's tensors: element 0 is the one that `gather` began with.
  const StepTensors& tensors() const { return block_; }

  void gather(int64_t begin, int64_t n) {
    block_.first_index = first_index_ + begin;
    for (int k = 0; k < count_; ++k) copy<true>(operands_[k], begin, n);
  }

  void scatter(int64_t begin, int64_t n) {
    for (int k = 0; k < count_; ++k) {
      if (operands_[k].written) copy<false>(operands_[k], begin, n);
    }
  }

 private:
  struct Operand {
    char* memory;
    char* buffer;
    const int64_t* stride;
    int64_t size;
    bool written;
  };

  template <bool kGather>
  void copy(const Operand& operand, int64_t begin, int64_t n) const {
    switch (operand.size) {
      case 8:
        return copy_elements<kGather, uint64_t>(operand, begin, n);
      case 4:
        return copy_elements<kGather, uint32_t>(operand, begin, n);
      default:
        return copy_elements<kGather, uint16_t>(operand, begin, n);
    }
  }

  // Walks elements [begin, begin + n) of the logical order, a run of the last dimension at a time.
  template <bool kGather, class Word>
  void copy_elements(const Operand& operand, int64_t begin, int64_t n) const {
    const int last = layout_.dims - 1;
    int64_t index[kStepDims];
    int64_t at = 0;
    for (int d = last; d >= 0; --d) {
      index[d] = begin % layout_.size[d];
      begin /= layout_.size[d];
      at += index[d] * operand.stride[d];
    }
    Word* const memory = reinterpret_cast<Word*>(operand.memory);
    Word* const buffer = reinterpret_cast<Word*>(operand.buffer);
    const int64_t stride = operand.stride[last];
    for (int64_t i = 0; i < n;) {
      const int64_t run = std::min(layout_.size[last] - index[last], n - i);
      for (int64_t j = 0; j < run; ++j) {
        if constexpr (kGather) {
          buffer[i + j] = memory[at + j * stride];
        } else {
          memory[at + j * stride] = buffer[i + j];
        }
      }
      i += run;
      at += run * stride;
      index[last] += run;
      for (int d = last; d > 0 && index[d] == layout_.size[d]; --d) {
        at += operand.stride[d - 1] - index[d] * operand.stride[d];
        index[d] = 0;
        ++index[d - 1];
      }
    }
  }

  const StepLayout& layout_;
  const uint64_t first_index_;
  StepTensors block_;
  Operand operands_[kStepOperands];
  int count_ = 0;
  alignas(64) char buffers_[kStepOperands][kStepBlock * sizeof(double)];
};

}  // namespace
}  // namespace regops::cpu::REGOPS_ISA
