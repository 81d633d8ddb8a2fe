// How elementwise CPU ops spread their work over torch's threads. Results never depend on it.
#pragma once

#include <algorithm>
#include <cstdint>

#include <ATen/Parallel.h>

#include "layout.h"

namespace regops {

// Elements below which a second thread costs more than it saves: about 3 us of work.
constexpr int64_t kGrain = 32768;

// Contiguous memory: run(begin, end) for parts of [0, n). Threads meet at multiples of 4096
// elements: whole groups of random bits, whole cache lines.
template <class Run>
void parallel_contiguous(int64_t n, Run run) {
  constexpr int64_t kChunk = 4096;
  at::parallel_for(0, (n + kChunk - 1) / kChunk, kGrain / kChunk, [&](int64_t begin, int64_t end) {
    run(begin * kChunk, std::min(end * kChunk, n));
  });
}

// Permuted memory: run(memory, logical, n) for stretches of n elements that follow each other in
// memory and in logical order, where there are such, else tile(origin, tile).
template <class Run, class RunTile>
void parallel_permuted(const PermutedLayout& layout, Run run, RunTile run_tile) {
  if (layout.row_memory == 1) {
    at::parallel_for(0, layout.outer * layout.columns, kGrain / layout.rows + 1,
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const OuterOrigin origin = outer_origin(layout, i / layout.columns);
                         const int64_t column = i % layout.columns;
                         run(origin.memory + column * layout.column_memory,
                             origin.logical + column * layout.column_logical, layout.rows);
                       }
                     });
    return;
  }
  // Tiles large enough for a thread, small enough that few rows or few columns still make many.
  constexpr int64_t kRows = 32, kColumns = 4096;
  const int64_t down = (layout.rows + kRows - 1) / kRows;
  const int64_t across = (layout.columns + kColumns - 1) / kColumns;
  const int64_t elements = std::min(layout.rows, kRows) * std::min(layout.columns, kColumns);
  at::parallel_for(
      0, layout.outer * down * across, kGrain / elements + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / across % down * kRows, column = i % across * kColumns;
          const Tile tile = {row, std::min(row + kRows, layout.rows), column,
                             std::min(column + kColumns, layout.columns)};
          run_tile(outer_origin(layout, i / across / down), tile);
        }
      });
}

}  // namespace regops
