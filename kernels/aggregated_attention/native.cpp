// Aggregated attention on the CPU. A row of weights holds the pooled keys first and then the window, so that one
// softmax runs over both.
#include "groups.h"

namespace zoo::aggregated {

struct Problem {
  Map q, k, v, pooled_k, pooled_v;
  const float *local_bias, *pooled_bias, *extra;
  int64_t batch, height, width, heads, dim, pooled_height, pooled_width, size;

  int64_t window() const { return size * size; }
  int64_t positions() const { return height * width; }
  int64_t pooled() const { return pooled_height * pooled_width; }
  int row() const { return rounded(pooled() + window()); }
  int64_t query(int64_t b, int64_t position, int64_t head) const { return (b * positions() + position) * heads + head; }
  float* at(const Map& map, int64_t b, int64_t position, int64_t head) const {
    return map.at(b, position / width, position % width, head);
  }
};

// Queries from `begin` to `end` of one head of one image.
struct Span {
  int64_t b, head, begin, end;
};

// A key of a window: its index there, and where its row begins in a packed span.
struct Tap {
  int64_t index, row;
};

// Beside what groups share: the rows of all windows of a span and the gradients of these, from position `first` on.
struct Scratch : Workspace {
  Packed near_keys, near_values;
  Numbers near_dk, near_dv, factors;
  int64_t first = 0;
  std::vector<Tap> taps;  // of the query at hand

  explicit Scratch(int dim) : Workspace(dim), near_keys(dim), near_values(dim) {}
};

// The keys of a position's window that lie on the map.
const std::vector<Tap>& window_of(const Problem& p, Scratch& w, int64_t position) {
  int64_t top = position / p.width - p.size / 2, left = position % p.width - p.size / 2;
  int64_t from = std::max<int64_t>(0, -left), to = std::min(p.size, p.width - left);
  w.taps.clear();
  for (int64_t i = std::max<int64_t>(0, -top); i < std::min(p.size, p.height - top); i++)
    for (int64_t j = from; j < to; j++)
      w.taps.push_back({i * p.size + j, ((top + i) * p.width + left + j - w.first) * w.near_keys.padded});
  return w.taps;
}

template <int V>
inline void add_panel(float* to, const std::vector<Tap>& taps, const float* factors, const float* rows) {
  Vector x[V];
  for (int v = 0; v < V; v++) x[v] = load(to + v * LANES);
  for (const Tap& tap : taps)
    for (int v = 0; v < V; v++) x[v] += factors[tap.index] * load(rows + tap.row + v * LANES);
  for (int v = 0; v < V; v++) store(to + v * LANES, x[v]);
}

// to += sum of factors * rows over a window.
void add_window(float* to, const std::vector<Tap>& taps, const float* factors, const float* rows, int padded) {
  int c = 0;
  for (; c + 2 * LANES <= padded; c += 2 * LANES) add_panel<2>(to + c, taps, factors, rows + c);
  if (c < padded) add_panel<1>(to + c, taps, factors, rows + c);
}

std::vector<float*> pooled_rows(const Problem& p, const Map& map, int64_t b, int64_t head) {
  std::vector<float*> rows;
  for (int64_t y = 0; y < p.pooled_height; y++)
    for (int64_t x = 0; x < p.pooled_width; x++) rows.push_back(map.at(b, y, x, head));
  return rows;
}

std::vector<float*> rows_of(const Problem& p, const Map& map, const Span& span) {
  std::vector<float*> rows(span.end - span.begin);
  for (int64_t position = span.begin; position < span.end; position++)
    rows[position - span.begin] = p.at(map, span.b, position, span.head);
  return rows;
}

// The span of positions that the windows of a span reach.
Span around(const Problem& p, const Span& span) {
  int64_t reach = p.size / 2 * (p.width + 1);
  return {span.b, span.head, std::max<int64_t>(0, span.begin - reach), std::min(p.positions(), span.end + reach)};
}

void take_windows(const Problem& p, Scratch& w, const Span& span) {
  Span near = around(p, span);
  w.first = near.begin;
  w.near_keys.take(rows_of(p, p.k, near), true, false);
  w.near_values.take(rows_of(p, p.v, near), true, false);
}

// Weights of a block of queries before the softmax.
void logits(const Problem& p, Scratch& w, const Span& block) {
  int row = p.row(), pooled = p.pooled(), padded = w.queries.padded;
  product(w.queries.rows.data(), padded, 1, w.keys.turned.data(), w.keys.width, w.weights.data(), row, w.queries.count,
          w.keys.width, p.dim);
  for (int i = 0; i < w.queries.count; i++) {
    float *logit = &w.weights[i * row], *query = &w.queries.rows[i * padded];
    const float* bias = p.pooled_bias + (block.head * p.positions() + block.begin + i) * pooled;
    for (int j = 0; j < pooled; j++) logit[j] += bias[j];
    std::fill(logit + pooled, logit + row, MINUS_INFINITY);
    const float* near_bias = p.local_bias + block.head * p.window();
    for (const Tap& tap : window_of(p, w, block.begin + i))
      logit[pooled + tap.index] = dot(query, &w.near_keys.rows[tap.row], padded) + near_bias[tap.index];
  }
}

void forward_block(const Problem& p, Scratch& w, const Map& out, float* lse, const Span& block) {
  int row = p.row(), pooled = p.pooled(), padded = w.values.padded;
  w.queries.take(rows_of(p, p.q, block), true, false);
  logits(p, w, block);
  for (int i = 0; i < w.queries.count; i++)
    lse[p.query(block.b, block.begin + i, block.head)] = softmax(&w.weights[i * row], row);
  product(w.weights.data(), row, 1, w.values.rows.data(), padded, w.sums.data(), padded, w.queries.count, padded,
          pooled);
  for (int i = 0; i < w.queries.count; i++) {
    const float* extra = p.extra + p.query(block.b, block.begin + i, block.head) * p.window();
    const float* weight = &w.weights[i * row + pooled];
    for (int64_t l = 0; l < p.window(); l++) w.factors[l] = weight[l] + extra[l];
    const std::vector<Tap>& taps = window_of(p, w, block.begin + i);
    add_window(&w.sums[i * padded], taps, w.factors.data(), w.near_values.rows.data(), padded);
    copy_row(p.at(out, block.b, block.begin + i, block.head), &w.sums[i * padded], p.dim);
  }
}

constexpr int64_t SPAN = 8 * BLOCK;  // queries whose windows are packed at once

// Call `visit(block)` for blocks of queries of a span.
template <class Visit>
inline void visit_blocks(const Span& span, int64_t size, Visit visit) {
  for (int64_t begin = span.begin; begin < span.end; begin += size)
    visit(Span{span.b, span.head, begin, std::min(begin + size, span.end)});
}

void forward(const Problem& p, const Map& out, float* lse, int64_t threads) {
  int64_t spans = (p.positions() + SPAN - 1) / SPAN;
#pragma omp parallel num_threads(threads)
  {
    Scratch w(p.dim);
    w.weights.resize(BLOCK * p.row());
    w.sums.resize(BLOCK * w.values.padded);
    w.factors.resize(p.window());
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.heads * spans; task++) {
      int64_t begin = task % spans * SPAN, head = task / spans % p.heads, b = task / spans / p.heads;
      Span span{b, head, begin, std::min(begin + SPAN, p.positions())};
      w.keys.take(pooled_rows(p, p.pooled_k, b, head), false, true);
      w.values.take(pooled_rows(p, p.pooled_v, b, head), true, false);
      take_windows(p, w, span);
      visit_blocks(span, BLOCK, [&](const Span& block) { forward_block(p, w, out, lse, block); });
    }
  }
}

struct Gradients {
  Map q, k, v, pooled_k, pooled_v;
  float *local_bias, *pooled_bias, *extra;  // the biases': of one task
};

// grad . v of the window's keys becomes the gradient of `extra` and stands after that of the pooled ones in `change`.
void change_of_window(const Problem& p, Scratch& w, const Gradients& to, const float* grad, float* change,
                      const Span& block, int64_t position) {
  std::fill(change, change + p.row() - p.pooled(), 0.f);
  for (const Tap& tap : window_of(p, w, position))
    change[tap.index] = dot(grad, &w.near_values.rows[tap.row], w.near_values.padded);
  std::copy_n(change, p.window(), to.extra + p.query(block.b, position, block.head) * p.window());
}

// Adds what a query's window contributes to the gradients of its keys, its values, their bias, and the query in `dq`.
void backward_window(const Problem& p, Scratch& w, const Gradients& to, const float* grad, const float* query,
                     const float* weight, const float* change, float* dq, const Span& block, int64_t position) {
  const float* extra = p.extra + p.query(block.b, position, block.head) * p.window();
  int padded = w.near_keys.padded;
  const std::vector<Tap>& taps = window_of(p, w, position);
  add_window(dq, taps, change, w.near_keys.rows.data(), padded);
  for (const Tap& tap : taps) {
    to.local_bias[tap.index] += change[tap.index];
    accumulate(&w.near_dk[tap.row], change[tap.index], query, padded);
    accumulate(&w.near_dv[tap.row], weight[tap.index] + extra[tap.index], grad, padded);
  }
}

void backward_block(const Problem& p, Scratch& w, const Map& grad, const float* lse, const Gradients& to, const Span& block) {
  int row = p.row(), pooled = p.pooled(), padded = w.keys.padded;
  w.queries.take(rows_of(p, p.q, block), true, false);
  w.weighting.take(rows_of(p, grad, block), true, false);
  int count = w.queries.count;
  logits(p, w, block);
  product(w.weighting.rows.data(), padded, 1, w.values.turned.data(), w.values.width, w.changes.data(), row, count,
          w.values.width, p.dim);
  for (int i = 0; i < count; i++) {
    int64_t position = block.begin + i;
    float *weight = &w.weights[i * row], *change = &w.changes[i * row];
    weights_again(weight, row, lse[p.query(block.b, position, block.head)]);
    change_of_window(p, w, to, &w.weighting.rows[i * padded], change + pooled, block, position);
    float mean = dot(weight, change, row);  // from the output it would be less exact, and NaN if `extra` is
    for (int j = 0; j < row; j++) change[j] = weight[j] * (change[j] - mean);
    float* dbias = to.pooled_bias + position * pooled;
    for (int j = 0; j < pooled; j++) dbias[j] += change[j];
  }
  product(w.changes.data(), row, 1, w.keys.rows.data(), padded, w.sums.data(), padded, count, padded, pooled);
  for (int i = 0; i < count; i++) {
    backward_window(p, w, to, &w.weighting.rows[i * padded], &w.queries.rows[i * padded], &w.weights[i * row + pooled],
                    &w.changes[i * row + pooled], &w.sums[i * padded], block, block.begin + i);
    copy_row(p.at(to.q, block.b, block.begin + i, block.head), &w.sums[i * padded], p.dim);
  }
  product<true>(w.changes.data(), 1, row, w.queries.rows.data(), padded, w.key_sums.data(), padded, pooled, padded,
                count);
  product<true>(w.weights.data(), 1, row, w.weighting.rows.data(), padded, w.value_sums.data(), padded, pooled, padded,
                count);
}

void add_rows(const std::vector<float*>& to, Numbers& from, int padded, int dim) {
  for (size_t j = 0; j < to.size(); j++)
    for (int c = 0; c < dim; c++) to[j][c] += from[j * padded + c];
}

void backward_image(const Problem& p, Scratch& w, const Map& grad, const float* lse, const Gradients& to, int64_t b, int64_t head) {
  w.keys.take(pooled_rows(p, p.pooled_k, b, head), true, true);
  w.values.take(pooled_rows(p, p.pooled_v, b, head), false, true);
  int padded = w.keys.padded;
  w.key_sums.zero(p.pooled() * padded);
  w.value_sums.zero(p.pooled() * padded);
  visit_blocks({b, head, 0, p.positions()}, SPAN, [&](const Span& span) {
    take_windows(p, w, span);
    w.near_dk.zero(w.near_keys.count * padded);
    w.near_dv.zero(w.near_keys.count * padded);
    visit_blocks(span, BLOCK, [&](const Span& block) { backward_block(p, w, grad, lse, to, block); });
    add_rows(rows_of(p, to.k, around(p, span)), w.near_dk, padded, p.dim);
    add_rows(rows_of(p, to.v, around(p, span)), w.near_dv, padded, p.dim);
  });
  add_rows(pooled_rows(p, to.pooled_k, b, head), w.key_sums, padded, p.dim);
  add_rows(pooled_rows(p, to.pooled_v, b, head), w.value_sums, padded, p.dim);
}

// The images are dealt to `parts` tasks a head; each task has tables of its own for the gradients of the biases.
void backward(const Problem& p, const Map& grad, const float* lse, const Gradients& to, int64_t parts,
              int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Scratch w(p.dim);
    w.weights.resize(BLOCK * p.row());
    w.changes.resize(BLOCK * p.row());
    w.sums.resize(BLOCK * w.keys.padded);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < parts * p.heads; task++) {
      Gradients own = to;
      own.local_bias += task * p.window();
      own.pooled_bias += task * p.positions() * p.pooled();
      for (int64_t b = task / p.heads; b < p.batch; b += parts)
        backward_image(p, w, grad, lse, own, b, task % p.heads);
    }
  }
}

}  // namespace zoo::aggregated

extern "C" {

// shape: batch, height, width, heads, dim, pooled h, pooled w, size. strides: four for each map.
void aggregated_attention_forward(const float* q, const float* k, const float* v, const float* pooled_k,
                                  const float* pooled_v, const float* local_bias, const float* pooled_bias,
                                  const float* extra, float* out, float* lse, const int64_t* shape,
                                  const int64_t* strides, int64_t threads) {
  zoo::aggregated::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, {pooled_k, strides + 12},
                             {pooled_v, strides + 16}, local_bias, pooled_bias, extra, shape[0], shape[1], shape[2],
                             shape[3], shape[4], shape[5], shape[6], shape[7]};
  zoo::aggregated::forward(p, {out, strides + 20}, lse, threads);
}

void aggregated_attention_backward(const float* grad, const float* q, const float* k, const float* v,
                                   const float* pooled_k, const float* pooled_v, const float* local_bias,
                                   const float* pooled_bias, const float* extra, const float* lse,
                                   float* dq, float* dk, float* dv, float* dpooled_k, float* dpooled_v,
                                   float* dlocal_bias, float* dpooled_bias, float* dextra, const int64_t* shape,
                                   const int64_t* strides, int64_t parts, int64_t threads) {
  zoo::aggregated::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, {pooled_k, strides + 12},
                             {pooled_v, strides + 16}, local_bias, pooled_bias, extra, shape[0], shape[1], shape[2],
                             shape[3], shape[4], shape[5], shape[6], shape[7]};
  zoo::aggregated::Gradients to{{dq, strides + 24},        {dk, strides + 24}, {dv, strides + 24},
                                {dpooled_k, strides + 28}, {dpooled_v, strides + 28},
                                dlocal_bias,               dpooled_bias,       dextra};
  zoo::aggregated::backward(p, {grad, strides + 20}, lse, to, parts, threads);
}
}
