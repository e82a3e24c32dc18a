// What neighborhood attention does with a window: rows of keys and values of one head, and products with them.
#pragma once

#include "native.h"

namespace zoo::neighborhood {

struct Axis {
  int64_t length, size, dilation;

  int64_t members(int64_t group) const { return (length - 1 - group) / dilation + 1; }
  int64_t first(int64_t rank, int64_t group) const {
    return std::clamp<int64_t>(rank - size / 2, 0, members(group) - size);
  }
};

// The last `y.size` rows of one head of a map, columns sorted by their group.
struct Rows {
  Axis y, x;
  int dim, padded, width;
  std::vector<int> start;  // of a group of columns
  Numbers apart, together;

  Rows(Axis y, Axis x, int dim, bool need_apart, bool need_together)
      : y(y), x(x), dim(dim), padded(rounded(dim)), width(x.length + 2 * LANES), start(x.dilation) {
    for (int64_t g = 1; g < x.dilation; g++) start[g] = start[g - 1] + x.members(g - 1);
    if (need_apart) apart.zero(y.size * dim * width);
    if (need_together) together.zero(y.size * x.length * padded);
  }

  int column(int64_t position) const { return start[position % x.dilation] + position / x.dilation; }
  float* channels_apart(int64_t rank) { return apart.data() + rank % y.size * dim * width; }
  float* channels_together(int64_t rank) { return together.data() + rank % y.size * x.length * padded; }

  // Where the H rows of a window lie, each `offset` numbers from the row's beginning. H is y.size.
  template <int H>
  void of_window(Numbers& numbers, int64_t row, int64_t top, int64_t offset, float** base) {
    int64_t slot = top % H;
    for (int r = 0; r < H; r++) {
      base[r] = numbers.data() + slot * row + offset;
      slot = slot + 1 == H ? 0 : slot + 1;
    }
  }

  void read(const Map& map, int64_t b, int64_t rank, int64_t group, int64_t head) {
    for (int64_t position = 0; position < x.length; position++) {
      const float* from = map.at(b, rank * y.dilation + group, position, head);
      int to = column(position);
      if (!together.empty()) std::copy(from, from + dim, channels_together(rank) + to * padded);
      if (!apart.empty())
        for (int c = 0; c < dim; c++) channels_apart(rank)[c * width + to] = from[c];
    }
  }

  // Write a row of sums to a map and begin it anew.
  void flush(const Map& map, int64_t b, int64_t rank, int64_t group, int64_t head) {
    float* row = channels_together(rank);
    for (int64_t position = 0; position < x.length; position++) {
      const float* from = row + column(position) * padded;
      std::copy(from, from + dim, map.at(b, rank * y.dilation + group, position, head));
    }
    std::fill(row, row + x.length * padded, 0.f);
  }
};

struct Problem {
  Map q, k, v;
  const float* bias;
  int64_t batch, heads, dim;
  Axis y, x;
  float scale;

  int64_t query(int64_t b, int64_t row, int64_t column, int64_t head) const {
    return ((b * y.length + row) * x.length + column) * heads + head;
  }

  // Rows of a table of biases are longer than they need be, so that a whole vector can be read from each entry.
  int64_t table_row() const { return 2 * x.size - 1 + 16; }
  int64_t table() const { return (2 * y.size - 1) * table_row(); }
};

// Where one query lies, and where its window begins.
struct Window {
  int64_t position, top, column;
  int64_t bias;  // index of the bias of the first key

  Window(const Problem& p, const Rows& rows, int64_t rank, int64_t group, int64_t column_rank, int64_t column_group)
      : position(column_rank * p.x.dilation + column_group), top(p.y.first(rank, group)) {
    int64_t left = p.x.first(column_rank, column_group);
    column = rows.start[column_group] + left;
    bias = (top - rank + p.y.size - 1) * p.table_row() + left - column_rank + p.x.size - 1;
  }
};

template <int H, int V>
constexpr int SPAN = H * V * LANES;  // products of a query: the rows of its window, each in V vectors

// products[i][r][lane] = scale * vectors[i] . row r of window i, for Q queries side by side. Their windows begin at
// most Q - 1 keys after the first one's, so that the keys are read once for all; the products are then moved.
template <int H, int V, int Q>
inline void against_windows(float* const* vectors, float scale, Rows& rows, const Window* windows, Numbers* products) {
  float* base[H];
  rows.of_window<H>(rows.apart, rows.dim * rows.width, windows[0].top, windows[0].column, base);
  Vector x[Q][H][V] = {};
  int64_t width = rows.width, end = rows.dim * width;
  const float* vector[Q];
  for (int i = 0; i < Q; i++) vector[i] = vectors[i];
  for (int64_t c = 0, offset = 0; offset < end; c++, offset += width)
    for (int r = 0; r < H; r++)
      for (int j = 0; j < V; j++) {
        Vector keys = load(base[r] + offset + j * LANES);
        for (int i = 0; i < Q; i++) x[i][r][j] += vector[i][c] * keys;
      }
  for (int i = 0; i < Q; i++) {
    float* to = products[i].data();
    for (int r = 0; r < H; r++)
      for (int j = 0; j < V; j++) store(to + (r * V + j) * LANES, x[i][r][j] * scale);
    int64_t shift = windows[i].column - windows[0].column;
    for (int j = 0; shift && j < SPAN<H, V>; j += LANES) store(to + j, load(to + j + shift));
  }
}

// out = scale * sum over the window of weight * row. A sum per row of the window: they do not wait for each other.
template <int H, int V>
inline void sum_window(const float* weights, float scale, Rows& rows, const Window& window, float* out) {
  float* base[H];
  rows.of_window<H>(rows.together, rows.x.length * rows.padded, window.top, window.column * rows.padded, base);
  for (int c = 0; c < rows.padded; c += LANES) {
    Vector x[H] = {};
    for (int j = 0; j < rows.x.size; j++)
      for (int r = 0; r < H; r++) x[r] += weights[r * V * LANES + j] * load(base[r] + j * rows.padded + c);
    Vector total = x[0];
    for (int r = 1; r < H; r++) total += x[r];
    store(out + c, total * scale);
  }
}

// row += weight * vector for every key of the window.
template <int H, int V>
inline void spread(const float* weights, const float* vector, Rows& rows, const Window& window) {
  float* base[H];
  rows.of_window<H>(rows.together, rows.x.length * rows.padded, window.top, window.column * rows.padded, base);
  for (int r = 0; r < H; r++)
    for (int j = 0; j < rows.x.size; j++)
      for (int c = 0; c < rows.padded; c += LANES) {
        float* p = base[r] + j * rows.padded + c;
        store(p, load(p) + weights[r * V * LANES + j] * load(vector + c));
      }
}

// Which lanes of vector `j` of a window's row hold a key.
inline Integers has_key(const Problem& p, int j) {
  Integers lane;
  for (int i = 0; i < LANES; i++) lane[i] = j * LANES + i;
  return lane < int(p.x.size);
}

// Add the biases of a window.
template <int H, int V>
inline void add_bias(const Problem& p, const float* table, const Window& window, float* logits) {
  for (int j = 0; j < V; j++) {
    Integers there = has_key(p, j);
    for (int r = 0; r < H; r++) {
      float* logit = logits + (r * V + j) * LANES;
      Vector x = load(logit);
      if (table) x += load(table + window.bias + r * p.table_row() + j * LANES);
      store(logit, there ? x : all(MINUS_INFINITY));
    }
  }
}

}  // namespace zoo::neighborhood
