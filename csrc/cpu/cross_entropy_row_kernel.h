// One row of cross-entropy that lies in one piece, by blocks: a block's sums, and its gradient once
// those of all blocks are known. Once per instruction set.

namespace regops::cpu::REGOPS_ISA {

namespace {  // so that the linker sees no member

// A row whose gradient is still to be written.
struct PendingGradient {
  int64_t index;
  CrossEntropyRow row;
  CrossEntropyRowGradient of_row;
};

template <class T>
struct RowKernel {
  using Real = RealOf<T>;
  const CrossEntropyCall& call;
  const CrossEntropyValues kind;
  const CrossEntropyScalars scalars;
  const BlockSums<Real> sums_function;

  explicit RowKernel(const CrossEntropyCall& its_call)
      : call(its_call),
        kind(cross_entropy_values(its_call)),
        scalars(cross_entropy_scalars<Real>(its_call)),
        sums_function(block_sums_of<Real, sizeof(T)>(its_call)) {}

  const T* input(int64_t row) const {
    return static_cast<const T*>(call.input) + row_offset(call.input_strides, call.inner, row);
  }

  CrossEntropyRow row(int64_t index) const { return cross_entropy_row<Real>(call, scalars, index); }

  int64_t blocks() const { return (call.classes + kBlock - 1) / kBlock; }

  int64_t block_length(int64_t begin) const { return std::min(kBlock, call.classes - begin); }

  // The logits as Reals, in `buffer` unless they are such already.
  static const Real* logits(const T* x, int64_t n, Real* buffer) {
    if constexpr (std::is_same_v<T, Real>) return x;
    widen(x, buffer, n);
    return buffer;
  }

  T* gradient_of(int64_t row) const {
    return static_cast<T*>(call.gradient) + row_offset(call.gradient_strides, call.inner, row);
  }

  // e: room for the block's exponentials, which are stored after before_storing().
  template <class BeforeStoring>
  CrossEntropyPart sums(int64_t row, int64_t begin, Real* e, BeforeStoring before_storing) const {
    alignas(64) Real wide[kBlock], values[kBlock];
    const int64_t n = block_length(begin);
    const T* from = input(row) + begin;
    const Real* x = logits(from, n, wide);
    const Real* v = nullptr;
    if (kind == CrossEntropyValues::array) v = block_values(call, row, begin, n, values);
    const Real top = largest(x, n);
    const Real lowest = std::numeric_limits<Real>::lowest();
    before_storing();
    const bool plain_stores = call.gradient != nullptr && !call.stream;
    return sums_function(
        x, v, n, top > lowest ? top : lowest, e,
        {reinterpret_cast<const char*>(from),
         plain_stores ? reinterpret_cast<char*>(gradient_of(row) + begin) : nullptr});
  }

  void loss(int64_t index, const CrossEntropyRow& row, const CrossEntropyPart& all,
            const CrossEntropySums<double>& sums) const {
    Real x_a = 0, x_b = 0;
    if (row.a >= 0) widen(input(index) + row.a, &x_a, 1);
    if (row.b >= 0) widen(input(index) + row.b, &x_b, 1);
    write_loss<Real>(call, scalars, index, row, all, sums, x_a, x_b);
  }

  BlockGradient<Real> block_gradient(const CrossEntropyRowGradient& of_row,
                                     const CrossEntropyBlock& sums) const {
    const double reference = sums.sums.reference;
    BlockGradient<Real> block;
    block.of_e = static_cast<Real>(of_row.of_e * sums.factor);
    block.of_e_lp = static_cast<Real>(of_row.of_e_lp * sums.factor);
    block.of_value = static_cast<Real>(of_row.of_value);
    block.of_probability = static_cast<Real>(of_row.of_probability);
    block.reference = static_cast<Real>(reference);
    block.to_lp = static_cast<Real>(reference - of_row.max - of_row.log_sum);
    return block;
  }

  // Of the block at `begin`. e: its exponentials, where they were kept.
  void gradient(const PendingGradient& row, const CrossEntropyBlock& sums, int64_t begin,
                const Real* e) const {
    const BlockGradient<Real> block = block_gradient(row.of_row, sums);
    const int64_t n = block_length(begin);
    alignas(64) Real wide[kBlock], values[kBlock], again[kBlock];
    const Real* x = nullptr;
    if (e == nullptr || block.of_e_lp != Real(0) || call.probability_gradient != nullptr) {
      x = logits(input(row.index) + begin, n, wide);
    }
    if (call.probability_gradient != nullptr) {
      probability_gradient(call, block, row.index, begin, n, x, values);
    }
    if (call.gradient == nullptr) return;
    if (e == nullptr) {
      exponentials(x, block.reference, n, again);
      e = again;
    }
    const Real* v = nullptr;
    if (kind == CrossEntropyValues::array) v = block_values(call, row.index, begin, n, values);
    T* to = gradient_of(row.index) + begin;
    // Streamed from a copy that stands to lines of memory as the gradient does.
    alignas(64) T staged[kBlock + 64 / sizeof(T)];
    const bool from_registers = std::is_same_v<T, Real> && block.of_e_lp == Real(0);
    const bool stage = call.stream && !from_registers;
    T* out = stage ? staged + reinterpret_cast<uintptr_t>(to) % 64 / sizeof(T) : to;
    // The labels' logits, which may be overwritten: their gradients are made again, as Reals.
    Real x_label[2] = {}, e_label[2] = {}, v_label[2] = {};
    const int64_t labels[2] = {row.row.a - begin, row.row.b - begin};
    const auto is_here = [&labels, n](int l) { return labels[l] >= 0 && labels[l] < n; };
    for (int l = 0; l < 2; ++l) {
      if (!is_here(l)) continue;
      e_label[l] = e[labels[l]];
      if (x != nullptr) x_label[l] = x[labels[l]];
      if (v != nullptr) v_label[l] = v[labels[l]];
    }
    if constexpr (std::is_same_v<T, Real>) {
      if (call.stream && from_registers) {
        stream(block, kind, e, v, n, out);
      } else {
        apply(block, kind, x, e, v, n, out);
      }
    } else {
      apply(block, kind, x, e, v, n, out);
    }
    for (int l = 0; l < 2; ++l) {
      if (!is_here(l)) continue;
      Real value;
      apply<Real>(block, kind, x_label + l, e_label + l, v_label + l, 1, &value);
      if (row.row.a == row.row.b || l == 0) value -= static_cast<Real>(row.of_row.of_a);
      if (row.row.a == row.row.b || l == 1) value -= static_cast<Real>(row.of_row.of_b);
      narrow(&value, out + labels[l], 1);
    }
    if (stage) stream_run(to, out, n * sizeof(T));
  }

  void zero_gradient(int64_t row, int64_t begin, int64_t n) const {
    if (call.gradient == nullptr) return;
    std::memset(static_cast<void*>(gradient_of(row) + begin), 0, n * sizeof(T));
  }
};

}  // namespace

}  // namespace regops::cpu::REGOPS_ISA
