// Cross-entropy with neighbouring rows in the lanes of a vector: for columns (inner stride 1), and
// for rows of few classes, which are transposed.
//
// A tile of 64 rows by up to 1024 classes is copied to scratch, as Reals in order [class][row].
// There it stays in L2 for the passes to come, wherever its classes stand in memory: with strides
// of a power of two, as in images, their lines would evict each other. Longer rows are walked
// twice.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/cross_entropy_block.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "math/cross_entropy.h"

#define REGOPS_ISA_FILE "cpu/cross_entropy_columns.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/vector.h"
#include "cpu/exp.h"
#include "cpu/half_floats.h"
#include "cpu/reals.h"
#include "cpu/stream.h"
#include "cpu/cross_entropy_row.h"

namespace regops::cpu::REGOPS_ISA {

constexpr int kTileRows = 64;
constexpr int64_t kTileClasses = 1024;
constexpr int64_t kSumClasses = 64;  // as many terms a sum of Reals has before it is one of doubles
constexpr int kUnroll = 4;           // vectors side by side, for latency

// Where the rows of a tile stand in a tensor, whose type is known by its dtype.
struct TilePlace {
  DType dtype;
  int64_t class_stride;
  int64_t row_at[kTileRows];
  bool columns;  // row_at[r] = row_at[0] + r, else class_stride = 1
  int rows;
};

// tile[c][r] = classes [begin, begin + classes) of each row; rows that there are not: 0.
template <class Real>
static void read_tile(const TilePlace& place, const void* from, int64_t begin, int64_t classes,
                      Real* tile) {
  if (place.columns) {
    for (int64_t c = 0; c < classes; ++c) {
      Real* line = tile + c * kTileRows;
      read_reals(place.dtype, from, place.row_at[0] + (begin + c) * place.class_stride, place.rows,
                 line);
      for (int r = place.rows; r < kTileRows; ++r) line[r] = Real(0);
    }
    return;
  }
  Real row[kFewClasses];
  for (int r = 0; r < kTileRows; ++r) {
    if (r < place.rows) {
      read_reals(place.dtype, from, place.row_at[r] + begin, classes, row);
      for (int64_t c = 0; c < classes; ++c) tile[c * kTileRows + r] = row[c];
    } else {
      for (int64_t c = 0; c < classes; ++c) tile[c * kTileRows + r] = Real(0);
    }
  }
}

template <class Real>
static void write_tile(const TilePlace& place, const Real* tile, int64_t begin, int64_t classes,
                       void* to) {
  if (place.columns) {
    for (int64_t c = 0; c < classes; ++c) {
      write_reals(place.dtype, tile + c * kTileRows, to,
                  place.row_at[0] + (begin + c) * place.class_stride, place.rows);
    }
    return;
  }
  Real row[kFewClasses];
  for (int r = 0; r < place.rows; ++r) {
    for (int64_t c = 0; c < classes; ++c) row[c] = tile[c * kTileRows + r];
    write_reals(place.dtype, row, to, place.row_at[r] + begin, classes);
  }
}

// ---- sums ---------------------------------------------------------------------------------------

// The sums of each row of a tile; its logits become exponentials. values: v as an array of classes
// (kPerRow false) or a tile.
template <class Real, CrossEntropyValues kValues, bool kPerRow, bool kEntropy>
static void tile_sums(Real* tile, const Real* values, int64_t classes, int rows,
                      CrossEntropyPart* parts) {
  constexpr int kWidth = kLanes<Real>;
  constexpr int kGroup = kUnroll * kWidth;
  const Vector<Real> zero = {};
  for (int first = 0; first < rows; first += kGroup) {
    Real* column = tile + first;
    Vector<Real> top[kUnroll];
    for (int u = 0; u < kUnroll; ++u) top[u] = splat(std::numeric_limits<Real>::lowest());
    for (int64_t c = 0; c < classes; ++c) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        top[u] = larger(load(column + c * kTileRows + u * kWidth), top[u]);
      }
    }
    double sum[kGroup] = {}, cross[kGroup] = {}, mass[kGroup] = {}, entropy[kGroup] = {};
    for (int64_t begin = 0; begin < classes; begin += kSumClasses) {
      const int64_t end = std::min(begin + kSumClasses, classes);
      Vector<Real> sums[kUnroll] = {}, crosses[kUnroll] = {}, masses[kUnroll] = {},
                   entropies[kUnroll] = {};
      for (int64_t c = begin; c < end; ++c) {
        Real* line = column + c * kTileRows;
        Vector<Real> shifted[kUnroll], e[kUnroll];
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) shifted[u] = load(line + u * kWidth) - top[u];
        exp_of_negative<Real>(shifted, e);
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) {
          store(line + u * kWidth, e[u]);
          sums[u] += e[u];
          if constexpr (kValues == CrossEntropyValues::uniform) crosses[u] += shifted[u];
          if constexpr (kValues == CrossEntropyValues::array) {
            const Vector<Real> v =
                kPerRow ? load(values + c * kTileRows + first + u * kWidth) : splat(values[c]);
            crosses[u] += v * shifted[u];
            masses[u] += v;
          }
          if constexpr (kEntropy) entropies[u] += e[u] == zero ? zero : e[u] * shifted[u];
        }
      }
      const auto add = [](double* to, const Vector<Real>* from) {
        Real terms[kGroup];
        std::memcpy(terms, from, sizeof terms);
        for (int r = 0; r < kGroup; ++r) to[r] += terms[r];
      };
      add(sum, sums);
      if (kValues != CrossEntropyValues::none) add(cross, crosses);
      if (kValues == CrossEntropyValues::array) add(mass, masses);
      if (kEntropy) add(entropy, entropies);
    }
    Real tops[kGroup];
    std::memcpy(tops, top, sizeof tops);
    if (kValues == CrossEntropyValues::uniform) {
      for (int r = 0; r < kGroup; ++r) mass[r] = static_cast<double>(classes);
    }
    for (int r = 0; r < kGroup; ++r) {
      parts[first + r] = {tops[r], sum[r], cross[r], mass[r], entropy[r]};
    }
  }
}

template <class Real>
using TileSums = void (*)(Real*, const Real*, int64_t, int, CrossEntropyPart*);

template <class Real>
static TileSums<Real> tile_sums_of(const CrossEntropyCall& call) {
  using Values = CrossEntropyValues;
  const bool entropy = call.entropy_weight != 0.0;
  switch (cross_entropy_values(call)) {
    case Values::none:
      return entropy ? tile_sums<Real, Values::none, false, true>
                     : tile_sums<Real, Values::none, false, false>;
    case Values::uniform:
      return entropy ? tile_sums<Real, Values::uniform, false, true>
                     : tile_sums<Real, Values::uniform, false, false>;
    case Values::array:
      break;
  }
  if (call.probability != nullptr) {
    return entropy ? tile_sums<Real, Values::array, true, true>
                   : tile_sums<Real, Values::array, true, false>;
  }
  return entropy ? tile_sums<Real, Values::array, false, true>
                 : tile_sums<Real, Values::array, false, false>;
}

// ---- gradients ----------------------------------------------------------------------------------

// Each row's CrossEntropyRowGradient, as lanes.
template <class Real>
struct TileGradient {
  alignas(64) Real of_e[kTileRows], of_e_lp[kTileRows], of_value[kTileRows], max[kTileRows],
      log_sum[kTileRows], of_probability[kTileRows];
  alignas(64) VectorBits<Real> counts[kTileRows / kLanes<Real>];  // 0 where all gradients are 0
};

// dl/dx but for the labels, in place of the exponentials (kLogits false) or of the logits; and then
// dl/dq in place of the values.
template <class Real, bool kLogits>
static void tile_gradient(const TileGradient<Real>& rows, CrossEntropyValues kind, bool per_row,
                          const Real* weight, bool probability_gradient, int64_t classes,
                          Real* tile, Real* values) {
  constexpr int kWidth = kLanes<Real>;
  const Vector<Real> zero = {};
  for (int64_t c = 0; c < classes; ++c) {
    const Real class_value = kind == CrossEntropyValues::none    ? Real(0)
                             : kind == CrossEntropyValues::array ? (per_row ? Real(0) : values[c])
                                                                 : Real(1);
#pragma GCC unroll 4
    for (int first = 0; first < kTileRows; first += kWidth) {
      Real* at = tile + c * kTileRows + first;
      const Vector<Real> of_e = load(rows.of_e + first);
      const Vector<Real> of_value = load(rows.of_value + first);
      const Vector<Real> v = per_row ? load(values + c * kTileRows + first) : splat(class_value);
      Vector<Real> of_p;
      if constexpr (kLogits) {
        const Vector<Real> shifted = load(at) - load(rows.max + first);
        const Vector<Real> only_shifted[1] = {shifted};
        Vector<Real> only_e[1];
        exp_of_negative<Real>(only_shifted, only_e);
        const Vector<Real> e = only_e[0];
        const Vector<Real> lp = shifted - load(rows.log_sum + first);
        const Vector<Real> of_e_lp = load(rows.of_e_lp + first);
        const Vector<Real> factor = of_e_lp == zero ? of_e : multiply_add(of_e_lp, lp, of_e);
        of_p = e == zero ? e * of_e : e * factor;
        if (probability_gradient) {
          const Vector<Real> of_lp =
              load(rows.of_probability + first) * splat(weight == nullptr ? Real(1) : weight[c]);
          store(values + c * kTileRows + first, -of_lp * lp);
        }
      } else {
        of_p = load(at) * of_e;
      }
      const Vector<Real> gradient = kind == CrossEntropyValues::none ? of_p : of_p - of_value * v;
      store(at, rows.counts[first / kWidth] != 0 ? gradient : zero);
    }
  }
}

// ---- a tile -------------------------------------------------------------------------------------

namespace {  // so that the linker sees no member

template <class T>
struct TileKernel {
  using Real = RealOf<T>;
  const CrossEntropyCall& call;
  const CrossEntropyValues kind;
  const CrossEntropyScalars scalars;
  const TileSums<Real> sums_function;
  Real* const tile;
  Real* const values_tile;

  static int64_t tile_size(const CrossEntropyCall& call) {
    return std::min(call.classes, kTileClasses) * kTileRows;
  }

  explicit TileKernel(const CrossEntropyCall& its_call)
      : call(its_call),
        kind(cross_entropy_values(its_call)),
        scalars(cross_entropy_scalars<Real>(its_call)),
        sums_function(tile_sums_of<Real>(its_call)),
        tile(static_cast<Real*>(thread_scratch(2 * tile_size(its_call) * sizeof(Real)))),
        values_tile(tile + tile_size(its_call)) {}

  TilePlace place(DType dtype, const ClassStrides& strides, int64_t first_row, int rows,
                  bool columns) const {
    TilePlace result = {};
    result.dtype = dtype;
    result.class_stride = strides.classes;
    result.columns = columns;
    result.rows = rows;
    for (int r = 0; r < (columns ? 1 : rows); ++r) {
      result.row_at[r] = row_offset(strides, call.inner, first_row + r);
    }
    return result;
  }

  // v of classes [begin, begin + classes): by class, or as a tile.
  Real* values(const TilePlace& probabilities, int64_t begin, int64_t classes) const {
    if (call.probability == nullptr) {
      if (call.weight == nullptr) return nullptr;
      return const_cast<Real*>(static_cast<const Real*>(call.weight)) + begin;
    }
    read_tile(probabilities, call.probability, begin, classes, values_tile);
    const Real keep = static_cast<Real>(call.keep), off = static_cast<Real>(call.off);
    for (int64_t c = 0; c < classes; ++c) {
      const Real w =
          call.weight == nullptr ? Real(1) : static_cast<const Real*>(call.weight)[begin + c];
      Real* line = values_tile + c * kTileRows;
      for (int r = 0; r < kTileRows; ++r) line[r] = w * multiply_add(keep, line[r], off);
    }
    return values_tile;
  }

  void run(int64_t first_row, int count, bool columns) const {
    const bool labels = call.probability == nullptr;
    CrossEntropyRow rows[kTileRows];
    bool skipped = true, zero = true;
    for (int r = 0; r < count; ++r) {
      rows[r] = cross_entropy_row<Real>(call, scalars, first_row + r);
      skipped = skipped && rows[r].skipped;
      zero = zero && rows[r].gradient_is_zero;
    }
    const TilePlace inputs = place(call.dtype, call.input_strides, first_row, count, columns);
    const TilePlace gradients = place(call.dtype, call.gradient_strides, first_row, count, columns);
    const TilePlace probabilities =
        labels ? TilePlace{}
               : place(call.probability_dtype, call.probability_strides, first_row, count, columns);

    CrossEntropyPart all[kTileRows] = {};
    Real x_a[kTileRows] = {}, x_b[kTileRows] = {};
    const int64_t step = std::min(call.classes, kTileClasses);
    for (int64_t begin = 0; begin < call.classes && !skipped; begin += step) {
      const int64_t classes = std::min(step, call.classes - begin);
      read_tile(inputs, call.input, begin, classes, tile);
      for (int r = 0; r < count; ++r) {
        const int64_t a = rows[r].a - begin, b = rows[r].b - begin;
        if (a >= 0 && a < classes) x_a[r] = tile[a * kTileRows + r];
        if (b >= 0 && b < classes) x_b[r] = tile[b * kTileRows + r];
      }
      CrossEntropyPart parts[kTileRows];
      sums_function(tile, values(probabilities, begin, classes), classes, count, parts);
      for (int r = 0; r < count; ++r) {
        if (begin == 0) {
          all[r] = parts[r];
        } else {
          CrossEntropyBlock both[2] = {{all[r]}, {parts[r]}};
          merge(both, 2);
          all[r] = both[0].row;
        }
      }
    }

    TileGradient<Real> lanes = {};
    CrossEntropyRowGradient of_rows[kTileRows];
    for (int r = 0; r < count; ++r) {
      const CrossEntropySums<double> sums = finished(all[r], call.entropy_weight);
      write_loss<Real>(call, scalars, first_row + r, rows[r], all[r], sums, x_a[r], x_b[r]);
      of_rows[r] = row_gradient(call, rows[r], all[r], sums);
      lanes.of_e[r] = static_cast<Real>(of_rows[r].of_e);
      lanes.of_e_lp[r] = static_cast<Real>(of_rows[r].of_e_lp);
      lanes.of_value[r] = static_cast<Real>(of_rows[r].of_value);
      lanes.max[r] = static_cast<Real>(of_rows[r].max);
      lanes.log_sum[r] = static_cast<Real>(of_rows[r].log_sum);
      lanes.of_probability[r] = static_cast<Real>(of_rows[r].of_probability);
      lanes.counts[r / kLanes<Real>][r % kLanes<Real>] = !rows[r].gradient_is_zero;
    }
    const bool of_probability = call.probability_gradient != nullptr;
    if (call.gradient == nullptr && !of_probability) return;

    const bool from_logits = call.classes > step || call.entropy_weight != 0.0 || of_probability;
    for (int64_t begin = 0; begin < call.classes; begin += step) {
      const int64_t classes = std::min(step, call.classes - begin);
      if (zero) {
        std::memset(tile, 0, classes * kTileRows * sizeof(Real));
      } else if (from_logits) {
        read_tile(inputs, call.input, begin, classes, tile);
        const Real* weight = static_cast<const Real*>(call.weight);
        tile_gradient<Real, true>(lanes, kind, !labels,
                                  weight == nullptr ? nullptr : weight + begin, of_probability,
                                  classes, tile, values(probabilities, begin, classes));
      } else {
        tile_gradient<Real, false>(lanes, kind, !labels, nullptr, false, classes, tile,
                                   labels ? values(probabilities, begin, classes) : values_tile);
      }
      if (of_probability) {
        write_tile(probabilities, values_tile, begin, classes, call.probability_gradient);
      }
      if (call.gradient == nullptr) continue;
      for (int r = 0; r < count && !zero; ++r) {
        const int64_t a = rows[r].a - begin, b = rows[r].b - begin;
        if (a >= 0 && a < classes) {
          tile[a * kTileRows + r] -= static_cast<Real>(of_rows[r].of_a);
        }
        if (b >= 0 && b < classes) {
          tile[b * kTileRows + r] -= static_cast<Real>(of_rows[r].of_b);
        }
      }
      write_tile(gradients, tile, begin, classes, call.gradient);
    }
  }
};

}  // namespace

template <class T>
static void tiles(const CrossEntropyCall& call, int64_t begin, int64_t end, bool columns) {
  const TileKernel<T> kernel(call);
  for (int64_t row = begin; row < end; row += kTileRows) {
    kernel.run(row, static_cast<int>(std::min<int64_t>(kTileRows, end - row)), columns);
  }
}

static void tiles_of_dtype(const CrossEntropyCall& call, int64_t begin, int64_t end, bool columns) {
  switch (call.dtype) {
    case DType::float64:
      return tiles<double>(call, begin, end, columns);
    case DType::float32:
      return tiles<float>(call, begin, end, columns);
    case DType::bfloat16:
      return tiles<BFloat16>(call, begin, end, columns);
    case DType::float16:
      return tiles<Half>(call, begin, end, columns);
  }
}

void cross_entropy_few_classes(const CrossEntropyCall& call, int64_t begin, int64_t end) {
  tiles_of_dtype(call, begin, end, false);
}

void cross_entropy_columns(const CrossEntropyCall& call, int64_t outer, int64_t begin,
                           int64_t end) {
  tiles_of_dtype(call, outer * call.inner + begin, outer * call.inner + end, true);
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void cross_entropy_few_classes(const CrossEntropyCall& call, int64_t begin, int64_t end) {
  REGOPS_DISPATCH_ISA(cross_entropy_few_classes, call, begin, end);
}

void cross_entropy_columns(const CrossEntropyCall& call, int64_t outer, int64_t begin,
                           int64_t end) {
  REGOPS_DISPATCH_ISA(cross_entropy_columns, call, outer, begin, end);
}

}  // namespace regops::cpu

#endif
