// Neighborhood attention on the CPU. Positions equal modulo the dilation form a group; a task takes the rows of one
// group of one head and keeps the few rows of keys and values that a row of queries sees, keys with their channels
// apart, so that the keys of a window's row lie side by side and are multiplied in one vector.
#include "windows.h"

namespace zoo::neighborhood {

// What a task reuses for the queries that it takes at once.
template <int H, int V>
struct Side {
  static constexpr int MOST = 2;
  Numbers weights[MOST], changes[MOST], query[MOST], weighting[MOST], sums;

  explicit Side(int padded) {
    for (int i = 0; i < MOST; i++) {
      weights[i].zero(SPAN<H, V> + LANES);
      changes[i].zero(SPAN<H, V> + LANES);
      query[i].zero(padded);
      weighting[i].zero(padded);
    }
    sums.zero(padded);
  }
};

// Call `run` with the windows of each two queries side by side in a group of columns, and of what is left over.
template <class Run>
inline void by_pairs(const Problem& p, const Rows& rows, int64_t rank, int64_t group, Run run) {
  for (int64_t g = 0; g < p.x.dilation; g++)
    for (int64_t c = 0; c < p.x.members(g); c += 2) {
      bool pair = c + 1 < p.x.members(g);
      Window windows[] = {{p, rows, rank, group, c, g}, {p, rows, rank, group, c + pair, g}};
      if (pair)
        run(windows, std::integral_constant<int, 2>{});
      else
        run(windows, std::integral_constant<int, 1>{});
    }
}

template <int H, int V>
void forward_rows(const Problem& p, const Map& out, float* lse, int64_t b, int64_t head, int64_t group, int64_t begin,
                  int64_t end) {
  Rows keys(p.y, p.x, p.dim, true, false), values(p.y, p.x, p.dim, false, true);
  Side<H, V> side(values.padded);
  const float* table = p.bias ? p.bias + head * p.table() : nullptr;
  int64_t next = p.y.first(begin, group);
  for (int64_t rank = begin; rank < end; rank++) {
    for (; next < p.y.first(rank, group) + p.y.size; next++) {
      keys.read(p.k, b, next, group, head);
      values.read(p.v, b, next, group, head);
    }
    int64_t row = rank * p.y.dilation + group;
    by_pairs(p, keys, rank, group, [&](const Window* windows, auto count) {
      float* queries[count];
      for (int i = 0; i < count; i++) queries[i] = p.q.at(b, row, windows[i].position, head);
      against_windows<H, V, count>(queries, p.scale, keys, windows, side.weights);
      for (int i = 0; i < count; i++) {
        float* weights = side.weights[i].data();
        add_bias<H, V>(p, table, windows[i], weights);
        lse[p.query(b, row, windows[i].position, head)] = softmax(weights, SPAN<H, V>);
        sum_window<H, V>(weights, 1.f, values, windows[i], side.sums.data());
        std::copy_n(side.sums.data(), p.dim, out.at(b, row, windows[i].position, head));
      }
    });
  }
}

struct Gradients {
  Map q, k, v;
  float* table;  // of one task
};

// Where a task collects the gradients of keys and values.
struct Sums {
  Rows keys, values;
  int64_t done = 0;

  explicit Sums(const Problem& p) : keys(p.y, p.x, p.dim, false, true), values(p.y, p.x, p.dim, false, true) {}

  void flush(const Gradients& to, int64_t b, int64_t end, int64_t group, int64_t head) {
    for (; done < end; done++) {
      keys.flush(to.k, b, done, group, head);
      values.flush(to.v, b, done, group, head);
    }
  }
};

// The gradients of one query: weights and changes are its logits and the products of grad with the values.
template <int H, int V>
void backward_query(const Problem& p, const float* table, const Window& window, float lse, float mean, float* weights,
                    float* changes, float* dtable) {
  add_bias<H, V>(p, table, window, weights);
  weights_again(weights, SPAN<H, V>, lse);
  for (int j = 0; j < V; j++) {
    Integers there = has_key(p, j);
    for (int r = 0; r < H; r++) {
      int at = (r * V + j) * LANES;
      Vector change = load(weights + at) * (load(changes + at) - mean);
      store(changes + at, there ? change : Vector{});  // a weight of zero times NaN is NaN
    }
  }
  for (int r = 0; dtable && r < H; r++)
    for (int j = 0; j < V * LANES; j += LANES) {
      float* entry = dtable + window.bias + r * p.table_row() + j;
      store(entry, load(entry) + load(changes + r * V * LANES + j));
    }
}

template <int H, int V>
void backward_group(const Problem& p, const Map& grad, const Map& out, const float* lse, const Gradients& to,
                    int64_t b, int64_t head, int64_t group) {
  Rows keys(p.y, p.x, p.dim, true, true), values(p.y, p.x, p.dim, true, false);
  Sums sums(p);
  Side<H, V> side(keys.padded);
  const float* table = p.bias ? p.bias + head * p.table() : nullptr;
  int64_t next = 0;
  for (int64_t rank = 0; rank < p.y.members(group); rank++) {
    sums.flush(to, b, p.y.first(rank, group), group, head);
    for (; next < p.y.first(rank, group) + p.y.size; next++) {
      keys.read(p.k, b, next, group, head);
      values.read(p.v, b, next, group, head);
    }
    int64_t row = rank * p.y.dilation + group;
    by_pairs(p, keys, rank, group, [&](const Window* windows, auto count) {
      float *queries[count], *weightings[count];
      for (int i = 0; i < count; i++) {
        queries[i] = side.query[i].data();
        weightings[i] = side.weighting[i].data();
        std::copy_n(p.q.at(b, row, windows[i].position, head), p.dim, queries[i]);
        std::copy_n(grad.at(b, row, windows[i].position, head), p.dim, weightings[i]);
      }
      against_windows<H, V, count>(queries, p.scale, keys, windows, side.weights);
      against_windows<H, V, count>(weightings, 1.f, values, windows, side.changes);
      for (int i = 0; i < count; i++) {
        float *weights = side.weights[i].data(), *changes = side.changes[i].data();
        float mean = dot(weightings[i], out.at(b, row, windows[i].position, head), p.dim);
        backward_query<H, V>(p, table, windows[i], lse[p.query(b, row, windows[i].position, head)], mean, weights,
                             changes, to.table);
        sum_window<H, V>(changes, p.scale, keys, windows[i], side.sums.data());
        std::copy_n(side.sums.data(), p.dim, to.q.at(b, row, windows[i].position, head));
        for (int c = 0; c < p.dim; c++) queries[i][c] *= p.scale;
        spread<H, V>(changes, queries[i], sums.keys, windows[i]);
        spread<H, V>(weights, weightings[i], sums.values, windows[i]);
      }
    });
  }
  sums.flush(to, b, p.y.members(group), group, head);
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
void backward_all(const Problem& p, const Map& grad, const Map& out, const float* lse, const Gradients& to,
                  int64_t threads) {
  int64_t tasks = p.batch * p.heads * p.y.dilation;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < tasks; task++) {
    int64_t head = task % p.heads, group = task / p.heads % p.y.dilation, b = task / p.heads / p.y.dilation;
    Gradients own = to;
    if (own.table) own.table += task * p.table();
    backward_group<H, V>(p, grad, out, lse, own, b, head, group);
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
  Gradients to{{dq, strides + 20}, {dk, strides + 20}, {dv, strides + 20}, dbias};
  by_size(p.y.size, p.x.size, [&](auto h, auto v) {
    backward_all<h, v>(p, weighting, result, lse, to, threads);
  });
}
}
