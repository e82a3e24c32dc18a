// Aggregated attention on the CPU. A row of weights holds the window first, filled up to whole vectors, and then the
// pooled keys, so that one softmax runs over both.
#include "groups.h"

namespace zoo::aggregated {

struct Problem {
  Map q, k, v, pooled_k, pooled_v;
  const float *local_bias, *pooled_bias, *extra;
  int64_t batch, height, width, heads, dim, pooled_height, pooled_width, size;

  int64_t window() const { return size * size; }
  int64_t positions() const { return height * width; }
  int64_t pooled() const { return pooled_height * pooled_width; }
  int64_t query(int64_t b, int64_t position, int64_t head) const { return (b * positions() + position) * heads + head; }
  float* at(const Map& map, int64_t b, int64_t position, int64_t head) const {
    return map.at(b, position / width, position % width, head);
  }
};

// Call `visit(index in the window, position)` for the window's positions that lie on the map.
template <class Visit>
inline void visit_window(const Problem& p, int64_t position, Visit visit) {
  int64_t top = position / p.width - p.size / 2, left = position % p.width - p.size / 2;
  for (int64_t i = std::max<int64_t>(0, -top); i < std::min(p.size, p.height - top); i++)
    for (int64_t j = std::max<int64_t>(0, -left); j < std::min(p.size, p.width - left); j++)
      visit(i * p.size + j, (top + i) * p.width + left + j);
}

std::vector<float*> pooled_rows(const Problem& p, const Map& map, int64_t b, int64_t head) {
  std::vector<float*> rows;
  for (int64_t y = 0; y < p.pooled_height; y++)
    for (int64_t x = 0; x < p.pooled_width; x++) rows.push_back(map.at(b, y, x, head));
  return rows;
}

std::vector<float*> position_rows(const Problem& p, const Map& map, int64_t b, int64_t head, int64_t begin,
                                  int64_t end) {
  std::vector<float*> rows;
  for (int64_t position = begin; position < end; position++) rows.push_back(p.at(map, b, position, head));
  return rows;
}

// Weights of a block of queries before the softmax.
void logits(const Problem& p, Workspace& w, int64_t b, int64_t head, int64_t begin) {
  int local = rounded(p.window()), row = local + w.keys.width;
  product(w.queries.rows.data(), w.queries.padded, 1, w.keys.turned.data(), w.keys.width, &w.weights[local], row,
          w.queries.count, w.keys.width, p.dim);
  for (int i = 0; i < w.queries.count; i++) {
    float* logit = &w.weights[i * row];
    std::fill(logit, logit + local, MINUS_INFINITY);
    visit_window(p, begin + i, [&](int64_t l, int64_t position) {
      logit[l] = dot(&w.queries.rows[i * w.queries.padded], p.at(p.k, b, position, head), p.dim) +
                 p.local_bias[head * p.window() + l];
    });
    const float* bias = p.pooled_bias + (head * p.positions() + begin + i) * p.pooled();
    for (int64_t j = 0; j < p.pooled(); j++) logit[local + j] += bias[j];
    std::fill(logit + local + p.pooled(), logit + row, MINUS_INFINITY);
  }
}

void forward_block(const Problem& p, Workspace& w, const Map& out, float* lse, int64_t b, int64_t head, int64_t begin,
                   int64_t end) {
  int local = rounded(p.window()), row = local + w.keys.width, padded = w.values.padded;
  w.queries.take(position_rows(p, p.q, b, head, begin, end), true, false);
  w.weights.resize(BLOCK * row);
  w.sums.resize(BLOCK * padded);
  logits(p, w, b, head, begin);
  for (int i = 0; i < w.queries.count; i++) lse[p.query(b, begin + i, head)] = softmax(&w.weights[i * row], row);
  product(&w.weights[local], row, 1, w.values.rows.data(), padded, w.sums.data(), padded, w.queries.count, padded,
          w.values.count);
  for (int i = 0; i < w.queries.count; i++) {
    const float* extra = p.extra + p.query(b, begin + i, head) * p.window();
    float* sums = &w.sums[i * padded];
    visit_window(p, begin + i, [&](int64_t l, int64_t position) {
      const float* value = p.at(p.v, b, position, head);
      float weight = w.weights[i * row + l] + extra[l];
      for (int c = 0; c < p.dim; c++) sums[c] += weight * value[c];
    });
    std::copy_n(sums, p.dim, p.at(out, b, begin + i, head));
  }
}

constexpr int64_t CHUNK = 8;  // blocks of a task

void forward(const Problem& p, const Map& out, float* lse, int64_t threads) {
  int64_t chunks = (p.positions() + CHUNK * BLOCK - 1) / (CHUNK * BLOCK);
#pragma omp parallel num_threads(threads)
  {
    Workspace w(p.dim);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.heads * chunks; task++) {
      int64_t chunk = task % chunks, head = task / chunks % p.heads, b = task / chunks / p.heads;
      w.keys.take(pooled_rows(p, p.pooled_k, b, head), false, true);
      w.values.take(pooled_rows(p, p.pooled_v, b, head), true, false);
      int64_t end = std::min((chunk + 1) * CHUNK * BLOCK, p.positions());
      for (int64_t begin = chunk * CHUNK * BLOCK; begin < end; begin += BLOCK)
        forward_block(p, w, out, lse, b, head, begin, std::min<int64_t>(begin + BLOCK, end));
    }
  }
}

struct Gradients {
  Map q, k, v, pooled_k, pooled_v;
  float *local_bias, *pooled_bias, *extra;  // the biases': of one task
};

// The window's part of the gradients of query `i` of a block; returns the mean change of its logits.
float backward_window(const Problem& p, Workspace& w, const Gradients& to, const float* grad, const float* out,
                      const float* query, float* weight, float* change, int64_t b, int64_t head, int64_t position) {
  const float* extra = p.extra + p.query(b, position, head) * p.window();
  float* dextra = to.extra + p.query(b, position, head) * p.window();
  float* dq = p.at(to.q, b, position, head);
  float mean = dot(grad, out, p.dim);
  std::fill(dextra, dextra + p.window(), 0.f);
  std::fill(dq, dq + p.dim, 0.f);
  visit_window(p, position, [&](int64_t l, int64_t near) {
    dextra[l] = dot(grad, p.at(p.v, b, near, head), p.dim);
    mean -= extra[l] * dextra[l];
  });
  visit_window(p, position, [&](int64_t l, int64_t near) {
    change[l] = weight[l] * (dextra[l] - mean);
    to.local_bias[l] += change[l];
    const float* key = p.at(p.k, b, near, head);
    float *dk = p.at(to.k, b, near, head), *dv = p.at(to.v, b, near, head);
    for (int c = 0; c < p.dim; c++) {
      dq[c] += change[l] * key[c];
      dk[c] += change[l] * query[c];
      dv[c] += (weight[l] + extra[l]) * grad[c];
    }
  });
  return mean;
}

void backward_block(const Problem& p, Workspace& w, const Map& grad, const Map& out, const float* lse,
                    const Gradients& to, int64_t b, int64_t head, int64_t begin, int64_t end) {
  int local = rounded(p.window()), row = local + w.keys.width, padded = w.keys.padded;
  w.queries.take(position_rows(p, p.q, b, head, begin, end), true, false);
  w.weighting.take(position_rows(p, grad, b, head, begin, end), true, false);
  int count = w.queries.count;
  w.weights.resize(BLOCK * row);
  w.changes.resize(BLOCK * row);
  w.sums.resize(BLOCK * padded);
  logits(p, w, b, head, begin);
  product(w.weighting.rows.data(), padded, 1, w.values.turned.data(), w.values.width, &w.changes[local], row, count,
          w.values.width, p.dim);
  for (int i = 0; i < count; i++) {
    float *weight = &w.weights[i * row], *change = &w.changes[i * row];
    weights_again(weight, row, lse[p.query(b, begin + i, head)]);
    float mean = backward_window(p, w, to, &w.weighting.rows[i * padded], p.at(out, b, begin + i, head),
                                 &w.queries.rows[i * padded], weight, change, b, head, begin + i);
    for (int j = local; j < row; j++) change[j] = weight[j] * (change[j] - mean);
    float* dbias = to.pooled_bias + (begin + i) * p.pooled();
    for (int64_t j = 0; j < p.pooled(); j++) dbias[j] += change[local + j];
  }
  product(&w.changes[local], row, 1, w.keys.rows.data(), padded, w.sums.data(), padded, count, padded, w.keys.count);
  for (int i = 0; i < count; i++) {
    float* dq = p.at(to.q, b, begin + i, head);
    for (int c = 0; c < p.dim; c++) dq[c] += w.sums[i * padded + c];
  }
  product<true>(&w.changes[local], 1, row, w.queries.rows.data(), padded, w.key_sums.data(), padded, w.keys.count,
                padded, count);
  product<true>(&w.weights[local], 1, row, w.weighting.rows.data(), padded, w.value_sums.data(), padded, w.keys.count,
                padded, count);
}

void backward_image(const Problem& p, Workspace& w, const Map& grad, const Map& out, const float* lse,
                    const Gradients& to, int64_t b, int64_t head) {
  w.keys.take(pooled_rows(p, p.pooled_k, b, head), true, true);
  w.values.take(pooled_rows(p, p.pooled_v, b, head), false, true);
  w.key_sums.zero(w.keys.count * w.keys.padded);
  w.value_sums.zero(w.keys.count * w.keys.padded);
  for (int64_t begin = 0; begin < p.positions(); begin += BLOCK)
    backward_block(p, w, grad, out, lse, to, b, head, begin, std::min<int64_t>(begin + BLOCK, p.positions()));
  std::vector<float*> dk = pooled_rows(p, to.pooled_k, b, head), dv = pooled_rows(p, to.pooled_v, b, head);
  for (int j = 0; j < w.keys.count; j++) {
    std::copy_n(&w.key_sums[j * w.keys.padded], p.dim, dk[j]);
    std::copy_n(&w.value_sums[j * w.keys.padded], p.dim, dv[j]);
  }
}

// The images are dealt to `parts` tasks a head; each task has tables of its own for the gradients of the biases.
void backward(const Problem& p, const Map& grad, const Map& out, const float* lse, const Gradients& to, int64_t parts,
              int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Workspace w(p.dim);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < parts * p.heads; task++) {
      Gradients own = to;
      own.local_bias += task * p.window();
      own.pooled_bias += task * p.positions() * p.pooled();
      for (int64_t b = task / p.heads; b < p.batch; b += parts)
        backward_image(p, w, grad, out, lse, own, b, task % p.heads);
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
                                   const float* pooled_bias, const float* extra, const float* out, const float* lse,
                                   float* dq, float* dk, float* dv, float* dpooled_k, float* dpooled_v,
                                   float* dlocal_bias, float* dpooled_bias, float* dextra, const int64_t* shape,
                                   const int64_t* strides, int64_t parts, int64_t threads) {
  zoo::aggregated::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, {pooled_k, strides + 12},
                             {pooled_v, strides + 16}, local_bias, pooled_bias, extra, shape[0], shape[1], shape[2],
                             shape[3], shape[4], shape[5], shape[6], shape[7]};
  zoo::aggregated::Gradients to{{dq, strides + 28},        {dk, strides + 28}, {dv, strides + 28},
                                {dpooled_k, strides + 32}, {dpooled_v, strides + 32},
                                dlocal_bias,               dpooled_bias,       dextra};
  zoo::aggregated::backward(p, {grad, strides + 20}, {out, strides + 24}, lse, to, parts, threads);
}
}
