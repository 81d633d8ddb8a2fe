// Dropout on the CPU: one read and one write an element, 16 random bits an element.
//
// Philox fills a buffer of random bits that stays in L1 (a "group"); a second loop, plain code that
// the compiler vectorizes for each element type, compares, scales and stores. Forward, backward
// (of the gradient) and in place are the same call.
#include "cpu/dropout.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/for_dtype.h"
#include "cpu/isa.h"

#define REGOPS_ISA_FILE "cpu/dropout.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/half_floats.h"
#include "cpu/philox_lanes.h"
#include "cpu/stream.h"

namespace regops::cpu::REGOPS_ISA {

constexpr int kGroupBytes = kFillBlocks * 16;

// Value where kept, 0 where dropped. AVX-512 selects by its mask registers; for the older sets GCC
// 12 makes half as fast code of `keep ? value : 0` as of a mask of bits, and on 16 bits none at
// all.
template <class T, class Bits>
static inline __attribute__((always_inline)) T select(T value, bool keep) {
  if (REGOPS_VECTOR_BYTES == 64 && sizeof(T) > 2) return keep ? value : T{};
  Bits bits;
  std::memcpy(&bits, &value, sizeof value);
  bits &= static_cast<Bits>(-static_cast<Bits>(keep));
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// y = keep(i) ? x / (1 - p) : 0.
template <class T, class Keep>
static inline __attribute__((always_inline)) void apply(const T* x, T* y, int64_t n,
                                                        const DropoutRule& rule, Keep keep) {
  if constexpr (std::is_same_v<T, double>) {
    const double scale = rule.scale_f64;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = select<T, uint64_t>(x[i] * scale, keep(i));
  } else if constexpr (std::is_same_v<T, float>) {
    const float scale = rule.scale;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = select<T, uint32_t>(x[i] * scale, keep(i));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    scale_bfloat16(x, y, n, rule.scale);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = select<T, uint16_t>(y[i], keep(i));
  } else {
    constexpr int64_t kWide = 64;
    alignas(64) float wide[kWide];
    const float scale = rule.scale;
    for (int64_t i = 0; i < n; i += kWide) {
      const int64_t count = std::min(kWide, n - i);
      half_to_float(x + i, wide, count);
      for (int64_t j = 0; j < count; ++j) {
        wide[j] = select<float, uint32_t>(wide[j] * scale, keep(i + j));
      }
      float_to_half(wide, y + i, count);
    }
  }
}

template <class T, class Bits, bool kStream>
static void run(const T* x, T* y, uint64_t first_index, int64_t n, Key key,
                const DropoutRule& rule) {
  constexpr int64_t kGroup = kGroupBytes / sizeof(Bits);  // elements
  constexpr int64_t kPerBlock = 16 / sizeof(Bits);
  alignas(64) Bits bits[kGroup];
  alignas(64) T staged[kGroup];
  const Bits threshold = static_cast<Bits>(rule.threshold);
  uint64_t block = first_index / kPerBlock;
  int64_t skip = first_index % kPerBlock;
  for (int64_t i = 0; i < n;) {
    prefetch_lines(x + i, kGroup * sizeof(T));
    if (skip + n - i <= kPhiloxLanes * kPerBlock) {  // a short run, or the end of a long one
      fill_blocks<1>(key, block, bits);
    } else {
      fill_blocks<kFillChains>(key, block, bits);
    }
    const int64_t count = std::min(kGroup - skip, n - i);
    const auto keep = [&bits, skip, threshold](int64_t k) { return bits[skip + k] >= threshold; };
    if (count == kGroup) {  // the usual case, with a length that the compiler knows
      apply(x + i, kStream ? staged : y + i, kGroup, rule, keep);
      if constexpr (kStream) stream_lines(y + i, staged, sizeof staged);
    } else {
      apply(x + i, y + i, count, rule, keep);
    }
    i += count;
    block += kFillBlocks;
    skip = 0;
  }
  if constexpr (kStream) stream_fence();
}

template <class T>
static void run_of_type(const DropoutCall& call, int64_t begin, int64_t end, uint64_t first_index) {
  const T* x = static_cast<const T*>(call.input) + begin;
  T* y = static_cast<T*>(call.output) + begin;
  const int64_t n = end - begin;
  const bool aligned = reinterpret_cast<uintptr_t>(y) % 64 == 0 && first_index % kDropoutGroup == 0;
  if (call.rule.fine) {
    run<T, uint32_t, false>(x, y, first_index, n, call.key, call.rule);
  } else if (call.stream && aligned) {
    run<T, uint16_t, true>(x, y, first_index, n, call.key, call.rule);
  } else {
    run<T, uint16_t, false>(x, y, first_index, n, call.key, call.rule);
  }
}

// ---- permuted memory: rows of consecutive logical indices stand across the vectors -------------

constexpr int kTileRows = 16;      // a column's keep bits fit a half-word, as narrow as any element
constexpr int kTileColumns = 512;  // 1 KiB of half-words, and 1-4 KiB of each row in one go

// words[c] bit r: is the element in row r of column c kept? Lanes are columns; the logical index of
// column c's first row is first_index + c column_logical, in any phase to the blocks of random
// bits. Writes whole vectors: `words` has room for columns rounded up to kPhiloxLanes.
template <bool kFine, bool kAligned>
static void keep_words(uint64_t first_index, int64_t column_logical, int64_t columns, Key key,
                       uint32_t threshold, uint16_t* words) {
  constexpr int kPerBlock = kFine ? 4 : 8;
  constexpr int kBlocks = kTileRows / kPerBlock + (kAligned ? 0 : 1);  // one more, for the phase
  const Lanes least = Lanes{} + threshold;
  Lanes index;
  for (int l = 0; l < kPhiloxLanes; ++l) index[l] = first_index + l * column_logical;
  for (int64_t c = 0; c < columns; c += kPhiloxLanes) {
    Lanes counter[kBlocks];
    for (int b = 0; b < kBlocks; ++b) counter[b] = index / kPerBlock + b;
    PhiloxLanes random[kBlocks];
    philox_lanes<kBlocks>(key.seed ^ kDomainVariates, counter, key.offset, random);
    Lanes keep = {};
    for (int b = 0; b < kBlocks; ++b) {
      for (int w = 0; w < 4; ++w) {
        const Lanes word = random[b].word[w];
        if constexpr (kFine) {
          keep |= (Lanes)((word & 0xFFFFFFFFu) >= least) & uint64_t{1} << (4 * b + w);
        } else {
          keep |= (Lanes)((word & 0xFFFFu) >= least) & uint64_t{1} << (8 * b + 2 * w);
          keep |= (Lanes)((word >> 16 & 0xFFFFu) >= least) & uint64_t{2} << (8 * b + 2 * w);
        }
      }
    }
    keep >>= index % kPerBlock;
    for (int l = 0; l < kPhiloxLanes; ++l) words[c + l] = static_cast<uint16_t>(keep[l]);
    index += kPhiloxLanes * column_logical;
  }
}

template <class T>
static void tile_of_type(const DropoutCall& call, const PermutedLayout& layout, OuterOrigin origin,
                         Tile tile) {
  const T* x = static_cast<const T*>(call.input) + origin.memory;
  T* y = static_cast<T*>(call.output) + origin.memory;
  alignas(64) uint16_t words[kTileColumns];
  const bool aligned =
      layout.column_logical % kDropoutGroup == 0 && origin.logical % kDropoutGroup == 0;
  const auto fill = call.rule.fine ? keep_words<true, false>
                    : aligned      ? keep_words<false, true>
                                   : keep_words<false, false>;
  for (int64_t row = tile.row_begin; row < tile.row_end; row += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, tile.row_end - row);
    for (int64_t column = tile.column_begin; column < tile.column_end; column += kTileColumns) {
      const int64_t columns = std::min<int64_t>(kTileColumns, tile.column_end - column);
      const uint64_t first = origin.logical + row + column * layout.column_logical;
      for (int64_t r = 0; r < rows; ++r) {  // asked for before the arithmetic, as in prefetch_lines
        const T* line = x + (row + r) * layout.row_memory + column;
        for (int64_t c = 0; c < columns; c += 64 / sizeof(T)) __builtin_prefetch(line + c);
      }
      fill(first, layout.column_logical, columns, call.key, call.rule.threshold, words);
      for (int64_t r = 0; r < rows; ++r) {
        const uint16_t bit = static_cast<uint16_t>(1u << r);
        const int64_t at = (row + r) * layout.row_memory + column;
        apply(x + at, y + at, columns, call.rule,
              [&words, bit](int64_t c) { return (words[c] & bit) != 0; });
      }
    }
  }
}

void dropout_run(const DropoutCall& call, int64_t begin, int64_t end, uint64_t first_index) {
#define REGOPS_CALL(T) run_of_type<T>(call, begin, end, first_index)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void dropout_tile(const DropoutCall& call, const PermutedLayout& layout, OuterOrigin origin,
                  Tile tile) {
#define REGOPS_CALL(T) tile_of_type<T>(call, layout, origin, tile)
  REGOPS_FOR_DTYPE(call.dtype, REGOPS_CALL)
#undef REGOPS_CALL
}

void philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high, uint32_t word[4]) {
  const Lanes counter[1] = {Lanes{} + counter_low};
  PhiloxLanes lanes[1];
  philox_lanes<1>(key, counter, counter_high, lanes);
  for (int w = 0; w < 4; ++w) word[w] = static_cast<uint32_t>(lanes[0].word[w][kPhiloxLanes - 1]);
}

void variate_blocks(Key key, uint64_t first, uint32_t words[4 * kVariateBlocks]) {
  for (int b = 0; b < kVariateBlocks; b += kFillBlocks) {
    fill_blocks<kFillChains>(key, first + b, words + 4 * b);
  }
}

}  // namespace regops::cpu::REGOPS_ISA

#ifdef REGOPS_ISA_LAST

namespace regops::cpu {

void dropout_run(const DropoutCall& call, int64_t begin, int64_t end, uint64_t first_index) {
  REGOPS_DISPATCH_ISA(dropout_run, call, begin, end, first_index);
}

void dropout_tile(const DropoutCall& call, const PermutedLayout& layout, OuterOrigin origin,
                  Tile tile) {
  REGOPS_DISPATCH_ISA(dropout_tile, call, layout, origin, tile);
}

void variate_blocks(Key key, uint64_t first, uint32_t words[4 * kVariateBlocks]) {
  REGOPS_DISPATCH_ISA(variate_blocks, key, first, words);
}

void philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high, uint32_t word[4]) {
  REGOPS_DISPATCH_ISA(philox_block, key, counter_low, counter_high, word);
}

}  // namespace regops::cpu

#endif
