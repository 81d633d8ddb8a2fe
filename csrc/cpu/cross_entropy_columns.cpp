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
#include "cpu/for_dtype.h"
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
#include "cpu/cross_entropy_tile.h"

namespace regops::cpu::REGOPS_ISA {

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

  TilePlace place(const ClassStrides& strides, int64_t first_row, int rows, bool columns) const {
    TilePlace result;
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
    read_probabilities<T>(call, probabilities, begin, classes, values_tile);
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
    const bool of_probability = call.probability_gradient != nullptr;
    CrossEntropyRow rows[kTileRows];
    bool skipped = true, zero = true;
    for (int r = 0; r < count; ++r) {
      rows[r] = cross_entropy_row<Real>(call, scalars, first_row + r);
      skipped = skipped && rows[r].skipped;
      zero = zero && rows[r].gradient_is_zero;
    }
    const TilePlace inputs = place(call.input_strides, first_row, count, columns);
    const TilePlace probabilities = place(call.probability_strides, first_row, count, columns);

    CrossEntropyPart all[kTileRows];
    Real x_a[kTileRows], x_b[kTileRows];
    const int64_t step = std::min(call.classes, kTileClasses);
    for (int64_t begin = 0; begin < call.classes && !skipped; begin += step) {
      const int64_t classes = std::min(step, call.classes - begin);
      read_tile<T>(inputs, call.input, begin, classes, tile);
      for (int r = 0; r < count; ++r) {
        const int64_t a = rows[r].a - begin, b = rows[r].b - begin;
        if (a >= 0 && a < classes) x_a[r] = tile[a * kTileRows + r];
        if (b >= 0 && b < classes) x_b[r] = tile[b * kTileRows + r];
      }
      CrossEntropyPart parts[kTileRows];
      sums_function(tile, values(probabilities, begin, classes), classes, count,
                    begin == 0 ? all : parts);
      for (int r = 0; r < count && begin > 0; ++r) {
        CrossEntropyBlock both[2] = {{all[r]}, {parts[r]}};
        merge(both, 2);
        all[r] = both[0].row;
      }
    }

    const bool wanted = call.gradient != nullptr || of_probability;
    TileGradient<Real> lanes = {};
    Real of_a[kTileRows], of_b[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      const bool counts = r < count && !rows[r].gradient_is_zero;
      lanes.counts[r / kLanes<Real>][r % kLanes<Real>] = counts;
      if (r >= count) continue;
      if (skipped) all[r] = {};
      const CrossEntropySums<double> sums = finished<Real>(all[r], call.entropy_weight);
      write_loss<Real>(call, scalars, first_row + r, rows[r], all[r], sums,
                       rows[r].a >= 0 ? x_a[r] : Real(0), rows[r].b >= 0 ? x_b[r] : Real(0));
      if (!wanted) continue;
      const CrossEntropyRowGradient of_row = row_gradient(call, rows[r], all[r], sums);
      lanes.of_e[r] = static_cast<Real>(of_row.of_e);
      lanes.of_e_lp[r] = static_cast<Real>(of_row.of_e_lp);
      lanes.of_value[r] = static_cast<Real>(of_row.of_value);
      lanes.max[r] = static_cast<Real>(of_row.max);
      lanes.log_sum[r] = static_cast<Real>(of_row.log_sum);
      lanes.of_probability[r] = static_cast<Real>(of_row.of_probability);
      of_a[r] = static_cast<Real>(of_row.of_a);
      of_b[r] = static_cast<Real>(of_row.of_b);
    }
    if (!wanted) return;

    const TilePlace gradients = place(call.gradient_strides, first_row, count, columns);
    const bool from_logits = call.classes > step || call.entropy_weight != 0.0 || of_probability;
    for (int64_t begin = 0; begin < call.classes; begin += step) {
      const int64_t classes = std::min(step, call.classes - begin);
      if (zero) {
        std::memset(tile, 0, classes * kTileRows * sizeof(Real));
      } else if (from_logits) {
        read_tile<T>(inputs, call.input, begin, classes, tile);
        const Real* weight = static_cast<const Real*>(call.weight);
        tile_gradient<Real, true>(lanes, kind, !labels,
                                  weight == nullptr ? nullptr : weight + begin, of_probability,
                                  classes, tile, values(probabilities, begin, classes));
      } else {
        tile_gradient<Real, false>(lanes, kind, !labels, nullptr, false, classes, tile,
                                   labels ? values(probabilities, begin, classes) : values_tile);
      }
      if (of_probability) {
        write_probability_gradient<T>(call, probabilities, values_tile, begin, classes);
      }
      if (call.gradient == nullptr) continue;
      for (int r = 0; r < count && !zero; ++r) {
        const int64_t a = rows[r].a - begin, b = rows[r].b - begin;
        if (a >= 0 && a < classes) tile[a * kTileRows + r] -= of_a[r];
        if (b >= 0 && b < classes) tile[b * kTileRows + r] -= of_b[r];
      }
      write_tile<T>(gradients, tile, begin, classes, call.gradient);
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
#define REGOPS_CALL(T) tiles<T>(call, begin, end, columns)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
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
