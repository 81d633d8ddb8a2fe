// A tile of cross-entropy with neighbouring rows in the lanes of a vector. Once per instruction
// set.

namespace regops::cpu::REGOPS_ISA {

constexpr int kTileRows = 64;
constexpr int64_t kTileClasses = 1024;
constexpr int64_t kSumClasses = 64;  // as many terms a sum of Reals has before it is one of doubles
constexpr int kUnroll = 4;           // vectors side by side, for latency

// Where the rows of a tile stand in a tensor.
struct TilePlace {
  int64_t row_at[kTileRows];
  int64_t class_stride;
  int rows;
  bool columns;  // row_at[r] = row_at[0] + r, else class_stride = 1 and classes <= kFewClasses
};

// tile[c][r] = classes [begin, begin + classes) of each row; rows that there are not: 0. Asks for
// the columns that follow: hardware sees no stream in a few lines of each class.
template <class T>
static void read_tile(const TilePlace& place, const void* from, int64_t begin, int64_t classes,
                      RealOf<T>* tile) {
  using Real = RealOf<T>;
  if (place.columns) {
    const T* x = static_cast<const T*>(from) + place.row_at[0] + begin * place.class_stride;
    for (int64_t c = 0; c < classes; ++c, x += place.class_stride) {
      Real* line = tile + c * kTileRows;
      for (int64_t i = 0; i < kTileRows; i += 64 / sizeof(T)) {
        __builtin_prefetch(x + kTileRows + i);
      }
      if (place.rows == kTileRows) {
        widen(x, line, kTileRows);
      } else {
        widen(x, line, place.rows);
        for (int r = place.rows; r < kTileRows; ++r) line[r] = Real(0);
      }
    }
    return;
  }
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= place.rows) {
      for (int64_t c = 0; c < classes; ++c) tile[c * kTileRows + r] = Real(0);
      continue;
    }
    const T* x = static_cast<const T*>(from) + place.row_at[r] + begin;
    if constexpr (std::is_same_v<T, Real>) {
      for (int64_t c = 0; c < classes; ++c) tile[c * kTileRows + r] = x[c];
    } else {
      Real row[kFewClasses];
      widen(x, row, classes);
      for (int64_t c = 0; c < classes; ++c) tile[c * kTileRows + r] = row[c];
    }
  }
}

template <class T>
static void write_tile(const TilePlace& place, const RealOf<T>* tile, int64_t begin,
                       int64_t classes, void* to) {
  using Real = RealOf<T>;
  if (place.columns) {
    T* y = static_cast<T*>(to) + place.row_at[0] + begin * place.class_stride;
    for (int64_t c = 0; c < classes; ++c, y += place.class_stride) {
      for (int64_t i = 0; i < kTileRows; i += 64 / sizeof(T)) {
        __builtin_prefetch(y + kTileRows + i, 1);
      }
      if (place.rows == kTileRows) {
        narrow(tile + c * kTileRows, y, kTileRows);
      } else {
        narrow(tile + c * kTileRows, y, place.rows);
      }
    }
    return;
  }
  for (int r = 0; r < place.rows; ++r) {
    T* y = static_cast<T*>(to) + place.row_at[r] + begin;
    if constexpr (std::is_same_v<T, Real>) {
      for (int64_t c = 0; c < classes; ++c) y[c] = tile[c * kTileRows + r];
    } else {
      Real row[kFewClasses];
      for (int64_t c = 0; c < classes; ++c) row[c] = tile[c * kTileRows + r];
      narrow(row, y, classes);
    }
  }
}

// The same of probabilities, whose type is known at run time: T, or float.
template <class T>
static void read_probabilities(const CrossEntropyCall& call, const TilePlace& place, int64_t begin,
                               int64_t classes, RealOf<T>* tile) {
  if (call.probability_dtype == call.dtype) {
    read_tile<T>(place, call.probability, begin, classes, tile);
  } else {
    read_tile<RealOf<T>>(place, call.probability, begin, classes, tile);
  }
}

template <class T>
static void write_probability_gradient(const CrossEntropyCall& call, const TilePlace& place,
                                       const RealOf<T>* tile, int64_t begin, int64_t classes) {
  if (call.probability_dtype == call.dtype) {
    write_tile<T>(place, tile, begin, classes, call.probability_gradient);
  } else {
    write_tile<RealOf<T>>(place, tile, begin, classes, call.probability_gradient);
  }
}

// ---- sums ---------------------------------------------------------------------------------------

// The sums of each row of a tile (those that are wanted); its logits become exponentials. values: v
// as an array of classes (kPerRow false) or a tile.
template <class Real, CrossEntropyValues kValues, bool kPerRow, bool kEntropy>
static void tile_sums(Real* tile, const Real* values, int64_t classes, int rows,
                      CrossEntropyPart* parts) {
  constexpr int kWidth = kLanes<Real>;
  constexpr int kGroup = kUnroll * kWidth;
  const Vector<Real> zero = {};
  for (int first = 0; first < rows; first += kGroup) {
    Real* column = tile + first;
    Vector<Real> top[kUnroll];
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) top[u] = splat(std::numeric_limits<Real>::lowest());
    for (int64_t c = 0; c < classes; ++c) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        top[u] = larger(load(column + c * kTileRows + u * kWidth), top[u]);
      }
    }
    CrossEntropyPart* const group = parts + first;
    for (int64_t begin = 0; begin < classes; begin += kSumClasses) {
      const int64_t end = std::min(begin + kSumClasses, classes);
      Vector<Real> sums[kUnroll], crosses[kUnroll], masses[kUnroll], entropies[kUnroll];
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) sums[u] = crosses[u] = masses[u] = entropies[u] = zero;
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
      const auto add = [group, begin](double CrossEntropyPart::* to, const Vector<Real>* from) {
        Real terms[kGroup];
        std::memcpy(terms, from, sizeof terms);
        for (int r = 0; r < kGroup; ++r) {
          group[r].*to = begin == 0 ? terms[r] : group[r].*to + terms[r];
        }
      };
      add(&CrossEntropyPart::sum, sums);
      if (kValues != CrossEntropyValues::none) add(&CrossEntropyPart::cross, crosses);
      if (kValues == CrossEntropyValues::array) add(&CrossEntropyPart::mass, masses);
      if (kEntropy) add(&CrossEntropyPart::entropy, entropies);
    }
    Real tops[kGroup];
    std::memcpy(tops, top, sizeof tops);
    for (int r = 0; r < kGroup; ++r) {
      group[r].reference = tops[r];
      if (kValues == CrossEntropyValues::uniform) group[r].mass = static_cast<double>(classes);
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

}  // namespace regops::cpu::REGOPS_ISA
