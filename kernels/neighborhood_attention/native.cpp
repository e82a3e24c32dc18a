// Neighborhood attention on the CPU. Positions equal modulo the dilation form a group; a task takes the rows of one
// group of one head and keeps the few rows of keys and values that a row of queries sees, keys with their channels
// apart, so that the keys of a window's row lie side by side and are multiplied in one vector.
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
  std::vector<float> apart, together;

  Rows(Axis y, Axis x, int dim, bool need_apart, bool need_together)
      : y(y), x(x), dim(dim), padded(rounded(dim)), width(x.length + 2 * LANES), start(x.dilation) {
    for (int64_t g = 1; g < x.dilation; g++) start[g] = start[g - 1] + x.members(g - 1);
    if (need_apart) apart.assign(y.size * dim * width, 0.f);
    if (need_together) together.assign(y.size * x.length * padded, 0.f);
  }

  int column(int64_t position) const { return start[position % x.dilation] + position / x.dilation; }
  float* channels_apart(int64_t rank) { return apart.data() + rank % y.size * dim * width; }
  float* channels_together(int64_t rank) { return together.data() + rank % y.size * x.length * padded; }

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

  // Rows of a table of biases are longer than they need be, so that a whole vector can be read from each entry.
  int64_t table_row() const { return 2 * x.size - 1 + 16; }
  int64_t table() const { return (2 * y.size - 1) * table_row(); }
};

// One query's window: where it begins, and the table of biases moved to it.
struct Window {
  int64_t top, left, column;
  int64_t bias;  // index of the bias of the first key

  Window(const Problem& p, const Rows& rows, int64_t rank, int64_t group, int64_t position)
      : top(p.y.first(rank, group)) {
    int64_t column_group = position % p.x.dilation, column_rank = position / p.x.dilation;
    left = p.x.first(column_rank, column_group);
    column = rows.start[column_group] + left;
    bias = (top - rank + p.y.size - 1) * p.table_row() + left - column_rank + p.x.size - 1;
  }
};

// products[r][lane] = scale * vector . row r of the window, for all its rows at once.
template <int H, int V>
inline void against_window(const float* vector, float scale, Rows& rows, const Window& window, float* products) {
  const float* base[H];
  for (int r = 0; r < H; r++) base[r] = rows.channels_apart(window.top + r) + window.column;
  Vector x[H][V] = {};
  for (int c = 0; c < rows.dim; c++)
    for (int r = 0; r < H; r++)
      for (int j = 0; j < V; j++) x[r][j] += vector[c] * load(base[r] + c * rows.width + j * LANES);
  for (int r = 0; r < H; r++)
    for (int j = 0; j < V; j++) store(products + (r * V + j) * LANES, x[r][j] * scale);
}

// out = scale * sum over the window of weight * row. A sum per row of the window: they do not wait for each other.
template <int H, int V>
inline void sum_window(const float* weights, float scale, Rows& rows, const Window& window, float* out) {
  const float* base[H];
  for (int r = 0; r < H; r++) base[r] = rows.channels_together(window.top + r) + window.column * rows.padded;
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
  for (int r = 0; r < H; r++) {
    float* base = rows.channels_together(window.top + r) + window.column * rows.padded;
    for (int j = 0; j < rows.x.size; j++)
      for (int c = 0; c < rows.padded; c += LANES) {
        float* p = base + j * rows.padded + c;
        store(p, load(p) + weights[r * V * LANES + j] * load(vector + c));
      }
  }
}

// Add the biases of a window; lanes behind its rows hold no key.
template <int H, int V>
inline void add_bias(const Problem& p, const float* table, const Window& window, float* logits) {
  for (int j = 0; j < V; j++) {
    Integers lane;
    for (int i = 0; i < LANES; i++) lane[i] = j * LANES + i;
    for (int r = 0; r < H; r++) {
      float* logit = logits + (r * V + j) * LANES;
      Vector x = load(logit);
      if (table) x += load(table + window.bias + r * p.table_row() + j * LANES);
      store(logit, lane < int(p.x.size) ? x : all(MINUS_INFINITY));
    }
  }
}

inline void take(const float* from, int dim, std::vector<float>& to) { std::copy(from, from + dim, to.begin()); }

template <int H, int V>
void forward_rows(const Problem& p, const Map& out, float* lse, int64_t b, int64_t head, int64_t group, int64_t begin,
                  int64_t end) {
  Rows keys(p.y, p.x, p.dim, true, false), values(p.y, p.x, p.dim, false, true);
  std::vector<float> weights(H * V * LANES), sums(values.padded);
  const float* table = p.bias ? p.bias + head * p.table() : nullptr;
  int64_t next = p.y.first(begin, group);
  for (int64_t rank = begin; rank < end; rank++) {
    for (; next < p.y.first(rank, group) + p.y.size; next++) {
      keys.read(p.k, b, next, group, head);
      values.read(p.v, b, next, group, head);
    }
    int64_t row = rank * p.y.dilation + group;
    for (int64_t position = 0; position < p.x.length; position++) {
      Window window(p, keys, rank, group, position);
      against_window<H, V>(p.q.at(b, row, position, head), p.scale, keys, window, weights.data());
      add_bias<H, V>(p, table, window, weights.data());
      lse[((b * p.y.length + row) * p.x.length + position) * p.heads + head] =
          softmax(weights.data(), H * V * LANES);
      sum_window<H, V>(weights.data(), 1.f, values, window, sums.data());
      std::copy(sums.begin(), sums.begin() + p.dim, out.at(b, row, position, head));
    }
  }
}

template <int H, int V>
void backward_group(const Problem& p, const Map& grad, const Map& out, const float* lse, const Map& dq, const Map& dk,
                    const Map& dv, float* dtable, int64_t b, int64_t head, int64_t group) {
  Rows keys(p.y, p.x, p.dim, true, true), values(p.y, p.x, p.dim, true, false);
  Rows key_sums(p.y, p.x, p.dim, false, true), value_sums(p.y, p.x, p.dim, false, true);
  std::vector<float> weights(H * V * LANES), changes(H * V * LANES), sums(keys.padded), query(keys.padded),
      weighting(keys.padded);
  const float* table = p.bias ? p.bias + head * p.table() : nullptr;
  int64_t next = 0, done = 0;
  for (int64_t rank = 0; rank < p.y.members(group); rank++) {
    for (; done < p.y.first(rank, group); done++) {
      key_sums.flush(dk, b, done, group, head);
      value_sums.flush(dv, b, done, group, head);
    }
    for (; next < p.y.first(rank, group) + p.y.size; next++) {
      keys.read(p.k, b, next, group, head);
      values.read(p.v, b, next, group, head);
    }
    int64_t row = rank * p.y.dilation + group;
    for (int64_t position = 0; position < p.x.length; position++) {
      Window window(p, keys, rank, group, position);
      take(p.q.at(b, row, position, head), p.dim, query);
      take(grad.at(b, row, position, head), p.dim, weighting);
      against_window<H, V>(query.data(), p.scale, keys, window, weights.data());
      add_bias<H, V>(p, table, window, weights.data());
      weights_again(weights.data(), H * V * LANES,
                    lse[((b * p.y.length + row) * p.x.length + position) * p.heads + head]);
      against_window<H, V>(weighting.data(), 1.f, values, window, changes.data());
      float mean = dot(weighting.data(), out.at(b, row, position, head), p.dim);
      for (int j = 0; j < H * V * LANES; j += LANES)
        store(&changes[j], load(&weights[j]) * (load(&changes[j]) - mean));
      if (dtable)
        for (int r = 0; r < H; r++)
          for (int j = 0; j < V * LANES; j += LANES) {
            float* entry = dtable + window.bias + r * p.table_row() + j;
            store(entry, load(entry) + load(&changes[r * V * LANES + j]));
          }
      sum_window<H, V>(changes.data(), p.scale, keys, window, sums.data());
      std::copy(sums.begin(), sums.begin() + p.dim, dq.at(b, row, position, head));
      for (float& x : query) x *= p.scale;
      spread<H, V>(changes.data(), query.data(), key_sums, window);
      spread<H, V>(weights.data(), weighting.data(), value_sums, window);
    }
  }
  for (; done < p.y.members(group); done++) {
    key_sums.flush(dk, b, done, group, head);
    value_sums.flush(dv, b, done, group, head);
  }
}

constexpr int64_t CHUNK = 32;  // rows of a task; each reads the size - 1 rows above once more

template <int H, int V>
void forward_all(const Problem& p, const Map& out, float* lse, int64_t threads) {
  int64_t chunks = (p.y.members(0) + CHUNK - 1) / CHUNK, tasks = p.batch * p.heads * p.y.dilation * chunks;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < tasks; task++) {
    int64_t begin = task % chunks * CHUNK, group = task / chunks % p.y.dilation;
    int64_t head = task / chunks / p.y.dilation % p.heads, b = task / chunks / p.y.dilation / p.heads;
    int64_t end = std::min(begin + CHUNK, p.y.members(group));
    if (begin < end) forward_rows<H, V>(p, out, lse, b, head, group, begin, end);
  }
}

template <int H, int V>
void backward_all(const Problem& p, const Map& grad, const Map& out, const float* lse, const Map& dq, const Map& dk,
                  const Map& dv, float* dbias, int64_t threads) {
  int64_t tasks = p.batch * p.heads * p.y.dilation;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < tasks; task++) {
    int64_t head = task % p.heads, group = task / p.heads % p.y.dilation, b = task / p.heads / p.y.dilation;
    backward_group<H, V>(p, grad, out, lse, dq, dk, dv, dbias ? dbias + task * p.table() : nullptr, b, head, group);
  }
}

// Call `run` with the rows of a window and the vectors of such a row as compile-time constants.
template <int H = 1, class Run>
void by_size(int64_t rows, int64_t columns, Run run) {
  if constexpr (H <= 13) {
    if (rows != H)
      by_size<H + 2>(rows, columns, run);
    else if (columns <= LANES)
      run(std::integral_constant<int, H>{}, std::integral_constant<int, 1>{});
    else
      run(std::integral_constant<int, H>{}, std::integral_constant<int, 16 / LANES>{});
  }
}

}  // namespace zoo::neighborhood

extern "C" {

// shape: batch, height, width, heads, dim, size h, size w, dilation h, dilation w. strides: four for each map.
// Tables of biases: (2 * size h - 1, 2 * size w - 1 + 16) for each head.
void neighborhood_attention_forward(const float* q, const float* k, const float* v, const float* bias, float* out,
                                    float* lse, const int64_t* shape, const int64_t* strides, float scale,
                                    int64_t threads) {
  using namespace zoo::neighborhood;
  Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, bias, shape[0], shape[3], shape[4],
            {shape[1], shape[5], shape[7]}, {shape[2], shape[6], shape[8]}, scale};
  zoo::Map to(out, strides + 12);
  by_size(p.y.size, p.x.size, [&](auto h, auto v) { forward_all<h, v>(p, to, lse, threads); });
}

void neighborhood_attention_backward(const float* grad, const float* q, const float* k, const float* v,
                                     const float* bias, const float* out, const float* lse, float* dq, float* dk,
                                     float* dv, float* dbias, const int64_t* shape, const int64_t* strides,
                                     float scale, int64_t threads) {
  using namespace zoo::neighborhood;
  Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, bias, shape[0], shape[3], shape[4],
            {shape[1], shape[5], shape[7]}, {shape[2], shape[6], shape[8]}, scale};
  zoo::Map weighting(grad, strides + 12), result(out, strides + 16);
  zoo::Map q_to(dq, strides + 20), k_to(dk, strides + 20), v_to(dv, strides + 20);
  by_size(p.y.size, p.x.size, [&](auto h, auto v) {
    backward_all<h, v>(p, weighting, result, lse, q_to, k_to, v_to, dbias, threads);
  });
}
}
