// Dense attention of a list of queries to a list of keys of one head, as windows and routed regions need it.
#pragma once

#include "native.h"

namespace zoo {

constexpr int BLOCK = 64;  // queries whose weights are held at once

// Rows of channels gathered from a map: side by side, padded by zeros to whole vectors, and, if wanted, turned so that
// one channel of all rows lies side by side. A null pointer is a row of zeros.
struct Packed {
  int count = 0, dim, padded, width = 0;
  Numbers rows, turned;

  explicit Packed(int dim) : dim(dim), padded(rounded(dim)) {}

  void take(const std::vector<float*>& from, bool want_rows, bool want_turned) {
    count = from.size();
    width = rounded(count);
    if (want_rows) take_rows(from);
    if (want_turned) take_turned(from);
  }

 private:
  // What lies between `dim` and `padded` is zero from the beginning and never written.
  void take_rows(const std::vector<float*>& from) {
    rows.resize(count * padded);
    for (int j = 0; j < count; j++)
      if (from[j])
        copy_row(&rows[j * padded], from[j], dim);
      else
        std::fill_n(&rows[j * padded], dim, 0.f);
  }

  void take_turned(const std::vector<float*>& from) {
    turned.resize(dim * width);
    float* to = turned.data();
    for (int j = 0; j < width; j++)
      if (j < count && from[j])
        for (int c = 0; c < dim; c++) to[c * width + j] = from[j][c];
      else
        for (int c = 0; c < dim; c++) to[c * width + j] = 0;
  }
};

// What every task of one thread reuses.
struct Workspace {
  Packed keys, values, queries, weighting;
  Numbers weights, changes, sums, key_sums, value_sums;

  explicit Workspace(int dim) : keys(dim), values(dim), queries(dim), weighting(dim) {}
};

// Where a group's rows lie; `bias` points at its first query's and key's entry, if there is one.
struct Group {
  std::vector<float*> q, k, v, out, grad, dq, dk, dv;
  std::vector<float*> lse;
  std::vector<int> token;  // of each key and query in tables of biases
  const float* bias = nullptr;
  float* dbias = nullptr;
  int64_t bias_row = 0;

  bool whole() const { return int64_t(token.size()) == bias_row; }  // token j is key j

  void clear() {
    for (auto* list : {&q, &k, &v, &out, &grad, &dq, &dk, &dv, &lse}) list->clear();
    token.clear();
  }
};

// Moves all rows, but those of zeros, by as many numbers.
inline void shift(std::vector<float*>& rows, int64_t by) {
  for (float*& row : rows)
    if (row) row += by;
}

// Logits of the queries from `begin` on, scaled and biased; lanes after the last key hold -infinity.
inline void logits(Workspace& w, const Group& group, int begin, int count, float scale) {
  int width = w.keys.width;
  product(&w.queries.rows[begin * w.queries.padded], w.queries.padded, 1, w.keys.turned.data(), width,
          w.weights.data(), width, count, width, w.keys.dim);
  for (int i = 0; i < count; i++) {
    float* row = &w.weights[i * width];
    for (int j = 0; j < width; j++) row[j] *= scale;
    if (group.bias) {
      const float* bias = group.bias + group.token[begin + i] * group.bias_row;
      if (group.whole())
        for (int j = 0; j < w.keys.count; j++) row[j] += bias[j];
      else
        for (int j = 0; j < w.keys.count; j++) row[j] += bias[group.token[j]];
    }
    std::fill(row + w.keys.count, row + width, MINUS_INFINITY);
  }
}

inline void attend(Workspace& w, const Group& group, float scale) {
  int dim = w.keys.dim, padded = w.keys.padded;
  w.keys.take(group.k, false, true);
  w.values.take(group.v, true, false);
  w.queries.take(group.q, true, false);
  w.weights.resize(BLOCK * w.keys.width);
  w.sums.resize(BLOCK * padded);
  for (int begin = 0; begin < w.queries.count; begin += BLOCK) {
    int count = std::min(BLOCK, w.queries.count - begin);
    logits(w, group, begin, count, scale);
    for (int i = 0; i < count; i++) *group.lse[begin + i] = softmax<true>(&w.weights[i * w.keys.width], w.keys.width);
    product(w.weights.data(), w.keys.width, 1, w.values.rows.data(), padded, w.sums.data(), padded, count, padded,
            w.keys.count);
    for (int i = 0; i < count; i++) copy_row(group.out[begin + i], &w.sums[i * padded], dim);
  }
}

// changes = weights * (grad . v - grad . out) for a block of queries; adds them to the gradient of the biases.
inline void change_of_logits(Workspace& w, const Group& group, int begin, int count) {
  int width = w.keys.width, padded = w.keys.padded;
  product(&w.weighting.rows[begin * padded], padded, 1, w.values.turned.data(), width, w.changes.data(), width, count,
          width, w.keys.dim);
  for (int i = 0; i < count; i++) {
    float *weight = &w.weights[i * width], *change = &w.changes[i * width];
    float mean = dot(&w.weighting.rows[(begin + i) * padded], group.out[begin + i], w.keys.dim);
    for (int j = 0; j < width; j++) change[j] = weight[j] * (change[j] - mean);
    if (!group.dbias) continue;
    float* row = group.dbias + group.token[begin + i] * group.bias_row;
    if (group.whole())
      for (int j = 0; j < w.keys.count; j++) row[j] += change[j];
    else
      for (int j = 0; j < w.keys.count; j++) row[group.token[j]] += change[j];
  }
}

// Adds to the rows of dk and dv, and sets those of dq.
inline void attend_backward(Workspace& w, const Group& group, float scale) {
  int dim = w.keys.dim, padded = w.keys.padded;
  w.keys.take(group.k, true, true);
  w.values.take(group.v, false, true);
  w.queries.take(group.q, true, false);
  w.weighting.take(group.grad, true, false);
  int width = w.keys.width;
  w.weights.resize(BLOCK * width);
  w.changes.resize(BLOCK * width);
  w.sums.resize(BLOCK * padded);
  w.key_sums.zero(w.keys.count * padded);
  w.value_sums.zero(w.keys.count * padded);
  for (int begin = 0; begin < w.queries.count; begin += BLOCK) {
    int count = std::min(BLOCK, w.queries.count - begin);
    logits(w, group, begin, count, scale);
    for (int i = 0; i < count; i++) weights_again(&w.weights[i * width], width, *group.lse[begin + i]);
    change_of_logits(w, group, begin, count);
    product(w.changes.data(), width, 1, w.keys.rows.data(), padded, w.sums.data(), padded, count, padded,
            w.keys.count);
    for (int i = 0; i < count; i++)
      for (int c = 0; c < dim; c++) group.dq[begin + i][c] = scale * w.sums[i * padded + c];
    product<true>(w.changes.data(), 1, width, &w.queries.rows[begin * padded], padded, w.key_sums.data(), padded,
                  w.keys.count, padded, count);
    product<true>(w.weights.data(), 1, width, &w.weighting.rows[begin * padded], padded, w.value_sums.data(), padded,
                  w.keys.count, padded, count);
  }
  for (int j = 0; j < w.keys.count; j++) {
    if (!group.dk[j]) continue;
    for (int c = 0; c < dim; c++) {
      group.dk[j][c] += scale * w.key_sums[j * padded + c];
      group.dv[j][c] += w.value_sums[j * padded + c];
    }
  }
}

}  // namespace zoo
