// What is the same for every kernel of cross-entropy: a row's target, and what its sums amount to.
// Per instruction set; all in double, as it happens once a row.

namespace regops::cpu::REGOPS_ISA {

// What is summed with x - m besides exponentials (v of CrossEntropySums).
enum class CrossEntropyValues {
  none,     // labels that are not smoothed
  uniform,  // smoothed labels
  array     // smoothed labels with class weights, or probabilities
};

static inline CrossEntropyValues cross_entropy_values(const CrossEntropyCall& call) {
  if (call.probability != nullptr) return CrossEntropyValues::array;
  if (call.off == 0.0) return CrossEntropyValues::none;
  return call.weight != nullptr ? CrossEntropyValues::array : CrossEntropyValues::uniform;
}

static inline int64_t row_offset(const ClassStrides& strides, int64_t inner_size, int64_t row) {
  if (inner_size == 1) return row * strides.outer;
  return row / inner_size * strides.outer + row % inner_size * strides.inner;
}

// A value of an array of Reals that may be absent.
template <class Real>
static inline double value_at(const void* array, int64_t i, double absent) {
  return array == nullptr ? absent : static_cast<double>(static_cast<const Real*>(array)[i]);
}

// Scalars of the call.
struct CrossEntropyScalars {
  double weight_sum, over_divisor;
  bool one_target;  // all rows that count have the same, but for the label:
  CrossEntropyTarget<double> target;
};

template <class Real>
static inline CrossEntropyScalars cross_entropy_scalars(const CrossEntropyCall& call) {
  CrossEntropyScalars scalars;
  scalars.weight_sum = value_at<Real>(call.totals, 1, 0.0);
  scalars.over_divisor = 1.0 / value_at<Real>(call.totals, 0, 1.0);
  scalars.one_target =
      call.probability == nullptr && call.weight == nullptr && call.target_b == nullptr;
  scalars.target = cross_entropy_target<double>(1.0, 1.0, false, 0.0, 0.0, true, scalars.weight_sum,
                                                call.keep, call.off);
  return scalars;
}

struct CrossEntropyRow {
  int64_t a, b;  // labels; -1 where there is none or it is ignored
  CrossEntropyTarget<double> target;
  double scale, upstream_lse;
  bool ignored;
  bool gradient_is_zero;  // whatever its logits are
  bool skipped;           // its logits need not be read
};

template <class Real>
static inline __attribute__((always_inline)) CrossEntropyRow
cross_entropy_row(const CrossEntropyCall& call, const CrossEntropyScalars& scalars, int64_t row) {
  CrossEntropyRow result;
  result.a = result.b = -1;
  result.ignored = false;
  result.upstream_lse = value_at<Real>(call.upstream_lse, row, 0.0);
  if (call.probability != nullptr) {
    result.target = {0.0, 0.0, 0.0, 1.0, 0.0};
  } else if (scalars.one_target) {
    if (call.target[row] != call.ignore_index) result.a = call.target[row];
    result.ignored = result.a < 0;
    result.target = result.ignored ? CrossEntropyTarget<double>{} : scalars.target;
  } else {
    const double share_a =
        call.lam == nullptr ? 1.0 : value_at<Real>(call.lam, row / call.rows_per_lam, 1.0);
    if (call.target[row] != call.ignore_index) result.a = call.target[row];
    if (call.target_b != nullptr && call.target_b[row] != call.ignore_index) {
      result.b = call.target_b[row];
    }
    result.ignored = result.a < 0 && result.b < 0;
    result.target = cross_entropy_target<double>(
        share_a, result.a < 0 ? 0.0 : value_at<Real>(call.weight, result.a, 1.0), result.a < 0,
        call.target_b == nullptr ? 0.0 : 1.0 - share_a,
        result.b < 0 ? 0.0 : value_at<Real>(call.weight, result.b, 1.0), result.b < 0,
        scalars.weight_sum, call.keep, call.off);
  }
  result.gradient_is_zero = result.ignored && result.upstream_lse == 0.0;
  result.skipped = result.gradient_is_zero && call.lse == nullptr;
  result.scale = scalars.over_divisor;
  if (call.upstream != nullptr) {
    result.scale *= value_at<Real>(call.upstream, row * call.upstream_stride, 1.0);
  }
  if (result.ignored) result.scale = 0.0;
  return result;
}

// The row's sums from those of its blocks, in double: what a million blocks lose is nothing to a
// float. Fills in each block's factor, and the first one's row.
static inline void merge(CrossEntropyBlock* blocks, int64_t count) {
  if (count == 1) {
    blocks[0].factor = 1.0;
    blocks[0].row = blocks[0].sums;
    return;
  }
  constexpr int kWidth = kLanes<double>;
  double reference = blocks[0].sums.reference;
  for (int64_t b = 1; b < count; ++b) {
    if (blocks[b].sums.reference > reference) reference = blocks[b].sums.reference;
  }
  CrossEntropyPart all = {reference, 0.0, 0.0, 0.0, 0.0};
  for (int64_t first = 0; first < count; first += kWidth) {
    const int64_t n = count - first < kWidth ? count - first : kWidth;
    double shifts[kWidth] = {}, factors[kWidth];
    for (int64_t l = 0; l < n; ++l) shifts[l] = blocks[first + l].sums.reference - reference;
    const Vector<double> exponents[1] = {load(shifts)};
    Vector<double> powers[1];
    exp_of_negative<double>(exponents, powers);
    store(factors, powers[0]);
    for (int64_t l = 0; l < n; ++l) {
      const CrossEntropyPart& part = blocks[first + l].sums;
      blocks[first + l].factor = factors[l];
      all.sum += factors[l] * part.sum;
      all.cross += part.cross + shifts[l] * part.mass;
      all.mass += part.mass;
      all.entropy += factors[l] * (part.entropy + shifts[l] * part.sum);
    }
  }
  blocks[0].row = all;
}

// Real: of the logarithm, double where the sum is more precise than a float.
template <class Real>
static inline __attribute__((always_inline)) CrossEntropySums<double> finished(
    const CrossEntropyPart& all, double entropy_weight) {
  CrossEntropySums<double> sums;
  sums.max = all.reference;
  // No exponential above 0: all logits are -inf.
  sums.log_sum = all.sum == 0.0 ? std::numeric_limits<double>::quiet_NaN()
                                : static_cast<double>(std::log(static_cast<Real>(all.sum)));
  sums.cross = all.cross;
  sums.entropy = entropy_weight == 0.0 ? 0.0 : sums.log_sum - all.entropy / all.sum;
  return sums;
}

// x_a, x_b: the labels' logits.
template <class Real>
static inline __attribute__((always_inline)) void write_loss(
    const CrossEntropyCall& call, const CrossEntropyScalars& scalars, int64_t index,
    const CrossEntropyRow& row, const CrossEntropyPart& all, const CrossEntropySums<double>& sums,
    double x_a, double x_b) {
  if (call.loss != nullptr) {
    double loss = 0.0;
    if (call.probability != nullptr) {
      loss = cross_entropy_probability_loss(sums, all.mass, call.z_loss, call.entropy_weight);
    } else if (!row.ignored) {
      loss = cross_entropy_loss(row.target, sums, scalars.weight_sum, x_a - sums.max, row.a >= 0,
                                x_b - sums.max, row.b >= 0, call.z_loss, call.entropy_weight);
    }
    static_cast<Real*>(call.loss)[index] = static_cast<Real>(loss);
  }
  if (call.lse != nullptr) {
    const double infinity = std::numeric_limits<double>::infinity();
    double lse = sums.max + sums.log_sum;
    if (all.sum == 0.0) lse = -infinity;
    if (sums.max == infinity) lse = infinity;
    static_cast<Real*>(call.lse)[index] = static_cast<Real>(lse);
  }
}

// dl/dx_c = e_c (of_e + of_e_lp lp_c) - of_value v_c - [c = a] of_a - [c = b] of_b,
// dl/dq_c = -of_probability w_c lp_c, where e_c = exp(x_c - m), lp_c = x_c - m - log_sum.
struct CrossEntropyRowGradient {
  double of_e, of_e_lp, of_value, of_a, of_b, of_probability, max, log_sum;
};

static inline __attribute__((always_inline)) CrossEntropyRowGradient
row_gradient(const CrossEntropyCall& call, const CrossEntropyRow& row, const CrossEntropyPart& all,
             const CrossEntropySums<double>& sums) {
  const bool labels = call.probability == nullptr;
  const CrossEntropyGradient<double> gradient =
      cross_entropy_gradient(sums, labels ? row.target.mass : all.mass, row.target.row_weight,
                             row.scale, row.upstream_lse, call.z_loss, call.entropy_weight);
  CrossEntropyRowGradient result;
  const double inverse = 1.0 / all.sum;
  result.of_e = gradient.of_p * inverse;
  result.of_e_lp = gradient.of_p_lp * inverse;
  result.of_value = labels ? row.scale * row.target.smooth : row.scale;
  result.of_a = row.scale * row.target.of_a;
  result.of_b = row.scale * row.target.of_b;
  result.of_probability = row.scale * call.keep;
  result.max = sums.max;
  result.log_sum = sums.log_sum;
  return result;
}

}  // namespace regops::cpu::REGOPS_ISA
