// Channel attention on the CPU, forward only. First a task is a head of an image, whose small matrix of weights it sums
// over the map row by row; then a task is a row of the map, which it multiplies by the matrices of all heads.
#include "native.h"

namespace zoo::channel {

struct Problem {
  Map q, k, v, out;
  float* weights;  // (batch, heads, dim, dim), to be written
  int64_t batch, height, width, heads, dim;  // dim is a multiple of LANES
  float scale;
};

// to[j][i] = softmax(scale k^T v)[i][j], the order in which the rows of the map are multiplied.
void weights_of(const Problem& p, int64_t b, int64_t head, float* weights, float* to) {
  std::fill(weights, weights + p.dim * p.dim, 0.f);
  for (int64_t y = 0; y < p.height; y++)
    product<true>(p.k.at(b, y, 0, head), 1, p.k.column, p.v.at(b, y, 0, head), p.v.column, weights, p.dim, p.dim,
                  p.dim, p.width);
  for (int64_t i = 0; i < p.dim; i++) {
    float* row = weights + i * p.dim;
    for (int64_t j = 0; j < p.dim; j++) row[j] *= p.scale;
    softmax(row, p.dim);
    for (int64_t j = 0; j < p.dim; j++) to[j * p.dim + i] = row[j];
  }
}

void forward(const Problem& p, int64_t threads) {
  int64_t one = p.dim * p.dim;
#pragma omp parallel num_threads(threads)
  {
    Numbers sums;
    sums.resize(one);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.heads; task++)
      weights_of(p, task / p.heads, task % p.heads, sums.data(), p.weights + task * one);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.batch * p.height; task++) {
      int64_t b = task / p.height, y = task % p.height;
      for (int64_t head = 0; head < p.heads; head++)
        product(p.q.at(b, y, 0, head), p.q.column, 1, p.weights + (b * p.heads + head) * one, p.dim,
                p.out.at(b, y, 0, head), p.out.column, p.width, p.dim, p.dim);
    }
  }
}

}  // namespace zoo::channel

extern "C" {

// shape: batch, height, width, heads, dim. strides: four for each map.
void channel_attention_forward(const float* q, const float* k, const float* v, float* out, float* weights,
                               const int64_t* shape, const int64_t* strides, float scale, int64_t threads) {
  zoo::channel::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, {out, strides + 12}, weights,
                          shape[0], shape[1], shape[2], shape[3], shape[4], scale};
  zoo::channel::forward(p, threads);
}
}
