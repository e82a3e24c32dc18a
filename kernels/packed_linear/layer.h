// Linear layers in single precision and in bfloat16: what they compute, and how their rows are dealt out.
#pragma once

#include <type_traits>
#include <utility>

#include "activations.h"

namespace zoo::packed {

#ifdef __AVX512F__
constexpr int ROWS = 14;  // of a tile: with two vectors a row, as many sums as the registers hold
#else
constexpr int ROWS = 6;
#endif
constexpr int VECTORS = 2, WIDTH = VECTORS * LANES;
constexpr int64_t TILES = 32;  // of a chunk at most
constexpr int AHEAD = 64;      // steps at which weights are fetched early: large layers come from memory at every pass

// A linear layer of the positions (batch, height, width) of a map, or a convolution: each reads `segments` times `length`
// numbers that lie side by side, the rows of its kernel.
// panels: ceil(outputs / WIDTH) times the weights of WIDTH outputs, zero beyond the last; bias as long as all panels.
template <class Weight>
struct Layer {
  const float* x;
  const Weight* panels;
  const float* bias;
  float* out;
  int64_t batch, height, width, segments, length, outputs;
  int64_t image, row, column, segment;  // strides of x

  int64_t positions() const { return batch * height * width; }
  int64_t panel_count() const { return (outputs + WIDTH - 1) / WIDTH; }
  const float* at(int64_t position) const {
    return x + position / (height * width) * image + position / width % height * row + position % width * column;
  }
};

// shape: batch, height, width, segments, length, outputs, then the strides of x for image, row, column and segment.
template <class Weight>
Layer<Weight> layer_of(const float* x, const Weight* panels, const float* bias, float* out, const int64_t* shape) {
  return {x,        panels,   bias,     out,      shape[0], shape[1], shape[2],
          shape[3], shape[4], shape[5], shape[6], shape[7], shape[8], shape[9]};
}

// Two linear layers, one after the other, of contiguous rows. shape: rows, inputs, hidden, outputs.
template <class Weight>
std::pair<Layer<Weight>, Layer<Weight>> mlp_of(const float* x, const Weight* panels1, const float* bias1,
                                               const Weight* panels2, const float* bias2, float* out,
                                               const int64_t* shape) {
  int64_t rows = shape[0], inputs = shape[1], hidden = shape[2], outputs = shape[3];
  return {{x, panels1, bias1, nullptr, 1, 1, rows, 1, inputs, hidden, 0, 0, inputs, 0},
          {nullptr, panels2, bias2, out, 1, 1, rows, 1, hidden, outputs, 0, 0, hidden, 0}};
}

// Rows dealt to tiles of nearly equal height, and tiles to chunks of at most `most`.
struct Chunks {
  int64_t rows, tiles, count;

  Chunks(int64_t rows, int64_t threads, int64_t most = TILES) : rows(rows), tiles((rows + ROWS - 1) / ROWS) {
    most = std::clamp<int64_t>(tiles / threads, 1, most);
    count = (tiles + most - 1) / most;
  }
  int64_t tile(int64_t i) const { return i * tiles / count; }  // the first of a chunk
  int64_t row(int64_t tile) const { return tile * rows / std::max<int64_t>(tiles, 1); }
  // Parts of the panels, each a task of its own, where there are few rows.
  int64_t parts(int64_t panels, int64_t threads) const {
    return threads > 1 ? std::clamp<int64_t>(3 * threads / std::max<int64_t>(count, 1), 1, panels) : 1;
  }
};

// Calls `run` with the activation as a constant.
template <class Run>
void with_activation(int64_t act, Run run) {
  if (act == GELU) run(std::integral_constant<int, GELU>());
  else if (act == GELU_TANH) run(std::integral_constant<int, GELU_TANH>());
  else if (act == SILU) run(std::integral_constant<int, SILU>());
  else run(std::integral_constant<int, NONE>());
}

}  // namespace zoo::packed
