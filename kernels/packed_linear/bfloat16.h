// Linear layers whose products take bfloat16 numbers, two at a time, and are summed in single precision. What they read
// and write is in single precision: a chunk of rows is rounded once, for all of its products.
#pragma once

#include "packed_linear/layer.h"

namespace zoo::packed {

typedef uint16_t Half;  // the upper half of a float: bfloat16

#ifdef __AVX512BF16__
}  // namespace zoo::packed

#include <immintrin.h>

namespace zoo::packed {

constexpr int64_t CACHED = 1 << 17;  // rounded numbers of a chunk at most, a quarter of a second-level cache

inline void store_rounded(Half* to, Vector x) {
  __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy(to, &rounded, sizeof rounded);
}

// n numbers and zeros up to a whole vector.
inline void round_row(const float* from, Half* to, int64_t n) {
  for (; n >= LANES; n -= LANES, from += LANES, to += LANES) store_rounded(to, load(from));
  if (n > 0) store_rounded(to, (Vector)_mm512_maskz_loadu_ps((1 << n) - 1, from));
}

inline int64_t pairs_of(int64_t inputs) { return (inputs + 1) / 2; }

// A tile of rows times one panel, act(x w + bias), to `out` in single precision or, rounded, to `rounded`.
struct PairTile {
  const Half* x;
  int64_t x_stride, pairs;
  const Half* weights;
  const float* bias;
  float* out;
  Half* rounded;
  int64_t stride, count;  // of the output
};

template <int R, int ACT>
[[gnu::noinline]] void pair_tile(const PairTile& p) {
  const Half *x[R], *weights = p.weights;
  Vector sums[R][VECTORS];
  for (int i = 0; i < R; i++) {
    x[i] = p.x + i * p.x_stride;
    for (int j = 0; j < VECTORS; j++) sums[i][j] = load(p.bias + j * LANES);
  }
  for (int64_t l = 0; l < p.pairs; l++, weights += 2 * WIDTH) {
    __m512bh column[VECTORS];
    for (int j = 0; j < VECTORS; j++) {
      column[j] = (__m512bh)_mm512_loadu_si512(weights + j * 2 * LANES);
      __builtin_prefetch(weights + 2 * (AHEAD * WIDTH + j * LANES));
    }
    for (int i = 0; i < R; i++) {
      int32_t pair;
      std::memcpy(&pair, x[i] + 2 * l, sizeof pair);
      for (int j = 0; j < VECTORS; j++)
        sums[i][j] = (Vector)_mm512_dpbf16_ps((__m512)sums[i][j], (__m512bh)_mm512_set1_epi32(pair), column[j]);
    }
  }
  for (int i = 0; i < R; i++) {
    float last[WIDTH], *own = p.out + i * p.stride, *to = p.count == WIDTH ? own : last;
    for (int j = 0; j < VECTORS; j++) {
      Vector y = activated<ACT>(sums[i][j]);
      if (p.rounded) store_rounded(p.rounded + i * p.stride + j * LANES, y);
      else store(to + j * LANES, y);
    }
    if (!p.rounded && to == last) std::copy(last, last + p.count, own);
  }
}

template <int R, int ACT>
void pair_tile_of(int rows, const PairTile& p) {
  if constexpr (R > 0) rows == R ? pair_tile<R, ACT>(p) : pair_tile_of<R - 1, ACT>(rows, p);
}

// Rounded rows of a chunk, each of a whole number of pairs.
struct Rounded {
  std::vector<Half> numbers;
  int64_t stride;

  Rounded(int64_t rows, int64_t stride) : numbers(rows * stride + LANES), stride(stride) {}
  Half* row(int64_t i) { return numbers.data() + i * stride; }
};

struct PairChunks : Chunks {
  PairChunks(int64_t rows, int64_t threads, int64_t numbers)
      : Chunks(rows, threads, std::clamp<int64_t>(CACHED / (ROWS * numbers), 1, TILES)) {}
  int64_t first_row(int64_t chunk) const { return row(tile(chunk)); }
};

// The rows of one chunk, rounded, times panels [first, last): to `p.out` or, rounded, to `to`.
template <int ACT>
void pair_products(const Layer<Half>& p, const PairChunks& chunks, int64_t chunk, Rounded& x, Rounded* to,
                   int64_t first, int64_t last) {
  int64_t base = chunks.first_row(chunk), pairs = pairs_of(p.segments * p.length);
  for (int64_t panel = first; panel < last; panel++) {
    int64_t column = panel * WIDTH;
    PairTile each{nullptr, x.stride, pairs, p.panels + 2 * pairs * column, p.bias + column};
    each.stride = to ? to->stride : p.outputs;
    each.count = std::min<int64_t>(WIDTH, p.outputs - column);
    for (int64_t tile = chunks.tile(chunk); tile < chunks.tile(chunk + 1); tile++) {
      int64_t row = chunks.row(tile);
      each.x = x.row(row - base);
      if (to) each.rounded = to->row(row - base) + column;
      else each.out = p.out + row * p.outputs + column;
      pair_tile_of<ROWS, ACT>(chunks.row(tile + 1) - row, each);
    }
  }
}

inline void round_chunk(const Layer<Half>& p, const PairChunks& chunks, int64_t chunk, Rounded& to) {
  int64_t base = chunks.first_row(chunk);
  for (int64_t row = base; row < chunks.first_row(chunk + 1); row++)
    for (int64_t s = 0; s < p.segments; s++)
      round_row(p.at(row) + s * p.segment, to.row(row - base) + s * p.length, p.length);
}

inline int64_t most_rows(const PairChunks& chunks) {
  return chunks.count ? ROWS * ((chunks.tiles + chunks.count - 1) / chunks.count) : 0;
}

template <int ACT>
void pair_linear(const Layer<Half>& p, int64_t threads) {
  int64_t numbers = 2 * pairs_of(p.segments * p.length), panels = p.panel_count();
  PairChunks chunks(p.positions(), threads, numbers);
  int64_t parts = chunks.parts(panels, threads);
#pragma omp parallel num_threads(threads)
  {
    Rounded x(most_rows(chunks), numbers);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < chunks.count * parts; task++) {
      int64_t part = task % parts;
      round_chunk(p, chunks, task / parts, x);
      pair_products<ACT>(p, chunks, task / parts, x, nullptr, part * panels / parts, (part + 1) * panels / parts);
    }
  }
}

// See `mlp` in native.cpp. What lies between is rounded as it is written.
template <int ACT>
void pair_mlp(const Layer<Half>& first, const Layer<Half>& second, int64_t threads) {
  int64_t whole = first.panel_count() * WIDTH;
  PairChunks chunks(first.positions(), threads, whole);
#pragma omp parallel num_threads(threads)
  {
    Rounded x(most_rows(chunks), 2 * pairs_of(first.length)), y(most_rows(chunks), whole);
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks.count; chunk++) {
      round_chunk(first, chunks, chunk, x);
      pair_products<ACT>(first, chunks, chunk, x, &y, 0, first.panel_count());
      pair_products<NONE>(second, chunks, chunk, y, nullptr, 0, second.panel_count());
    }
  }
}

#endif
}  // namespace zoo::packed
