// Linear layers on the CPU with packed weights, and layer norms. A task is a chunk of rows times some of the panels; a
// tile of its output stays in registers until bias and activation are done.
#include "activations.h"

namespace zoo::packed {

#ifdef __AVX512F__
constexpr int ROWS = 14;  // with two vectors a row, as many sums as the registers hold
#else
constexpr int ROWS = 6;
#endif
constexpr int VECTORS = 2, WIDTH = VECTORS * LANES;
constexpr int64_t TILES = 32;  // of a chunk at most
constexpr int AHEAD = 64;      // inputs whose weights are fetched early: large layers come from memory at every pass
constexpr int LINE = 16;       // numbers of a cache line
constexpr int64_t RUN = 256;   // inputs whose products are summed on their own: the sums of shorter runs are more exact

// A linear layer of the positions (batch, height, width) of a map, or a convolution: each reads `segments` times `length`
// numbers that lie side by side, the rows of its kernel.
// panels: (ceil(outputs / WIDTH), segments * length, WIDTH) weights, zero beyond the last output; bias as long as all
// panels.
struct Layer {
  const float *x, *panels, *bias;
  float* out;
  int64_t batch, height, width, segments, length, outputs;
  int64_t image, row, column, segment;  // strides of x

  int64_t positions() const { return batch * height * width; }
  int64_t panel_count() const { return (outputs + WIDTH - 1) / WIDTH; }
  const float* at(int64_t position) const {
    return x + position / (height * width) * image + position / width % height * row + position % width * column;
  }
};

// inputs: where each row of the tile begins in x.
template <int R, int ACT>
[[gnu::noinline]] void tile(const Layer& p, const float* const* inputs, int64_t row, int64_t panel) {
  const float *x[R], *weights = p.panels + panel * p.segments * p.length * WIDTH;
  std::copy(inputs, inputs + R, x);
  Vector whole[R][VECTORS];
  for (int i = 0; i < R; i++)
    for (int j = 0; j < VECTORS; j++) whole[i][j] = load(p.bias + panel * WIDTH + j * LANES);
  for (int64_t s = 0; s < p.segments; s++) {
    for (int64_t from = 0; from < p.length; from += RUN) {
      int64_t to = std::min(from + RUN, p.length);
      Vector sums[R][VECTORS] = {};
#pragma GCC unroll 4
      for (int64_t l = from; l < to; l++, weights += WIDTH) {
        Vector column[VECTORS];
        for (int j = 0; j < WIDTH; j += LINE) __builtin_prefetch(weights + AHEAD * WIDTH + j);
        for (int j = 0; j < VECTORS; j++) column[j] = load(weights + j * LANES);
        for (int i = 0; i < R; i++)
          for (int j = 0; j < VECTORS; j++) sums[i][j] += x[i][l] * column[j];
      }
      for (int i = 0; i < R; i++)
        for (int j = 0; j < VECTORS; j++) whole[i][j] += sums[i][j];
    }
    for (int i = 0; i < R; i++) x[i] += p.segment;
  }
  int64_t count = std::min<int64_t>(WIDTH, p.outputs - panel * WIDTH);
  for (int i = 0; i < R; i++) {
    float last[WIDTH], *out = p.out + (row + i) * p.outputs + panel * WIDTH, *to = count == WIDTH ? out : last;
    for (int j = 0; j < VECTORS; j++) store(to + j * LANES, activated<ACT>(whole[i][j]));
    if (to == last) std::copy(last, last + count, out);
  }
}

template <int R, int ACT>
void tile_of(const Layer& p, int rows, const float* const* inputs, int64_t row, int64_t panel) {
  if constexpr (R > 0)
    rows == R ? tile<R, ACT>(p, inputs, row, panel) : tile_of<R - 1, ACT>(p, rows, inputs, row, panel);
}

// Rows dealt to tiles of nearly equal height, and tiles to chunks.
struct Chunks {
  int64_t rows, tiles, count;

  Chunks(int64_t rows, int64_t threads) : rows(rows), tiles((rows + ROWS - 1) / ROWS) {
    int64_t most = std::clamp<int64_t>(tiles / threads, 1, TILES);
    count = (tiles + most - 1) / most;
  }
  int64_t tile(int64_t i) const { return i * tiles / count; }  // the first of a chunk
  int64_t row(int64_t tile) const { return tile * rows / std::max<int64_t>(tiles, 1); }
};

// The rows of one chunk times panels [first, last).
template <int ACT>
void compute(const Layer& p, const Chunks& chunks, int64_t chunk, int64_t first, int64_t last) {
  int64_t from = chunks.tile(chunk), to = chunks.tile(chunk + 1), base = chunks.row(from);
  const float* inputs[TILES * ROWS];
  for (int64_t row = base; row < chunks.row(to); row++) inputs[row - base] = p.at(row);
  for (int64_t panel = first; panel < last; panel++)
    for (int64_t tile = from; tile < to; tile++) {
      int64_t row = chunks.row(tile);
      tile_of<ROWS, ACT>(p, chunks.row(tile + 1) - row, inputs + (row - base), row, panel);
    }
}

template <int ACT>
void linear(const Layer& p, int64_t threads) {
  Chunks chunks(p.positions(), threads);
  int64_t panels = p.panel_count(), parts = 1;  // of the panels, where there are few rows
  if (threads > 1) parts = std::clamp<int64_t>(3 * threads / std::max<int64_t>(chunks.count, 1), 1, panels);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < chunks.count * parts; task++) {
    int64_t part = task % parts;
    compute<ACT>(p, chunks, task / parts, part * panels / parts, (part + 1) * panels / parts);
  }
}

// second(activation(first)) of the rows of a contiguous map, chunk by chunk: what lies between is never in memory whole.
template <int ACT>
void mlp(const Layer& first, const Layer& second, int64_t threads) {
  Chunks chunks(first.positions(), threads);
#pragma omp parallel num_threads(threads)
  {
    Numbers hidden;
    hidden.resize(TILES * ROWS * first.outputs);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks.count; i++) {
      int64_t row = chunks.row(chunks.tile(i));
      Layer a = first, b = second;  // with the rows of this chunk of the hidden map alone
      a.out = hidden.data() - row * a.outputs, b.x = hidden.data() - row * b.column;
      compute<ACT>(a, chunks, i, 0, a.panel_count());
      compute<NONE>(b, chunks, i, 0, b.panel_count());
    }
  }
}

template <int ACT>
void activate(float* x, int64_t count, int64_t threads) {
  int64_t whole = count / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < whole; i++) store(x + i * LANES, activated<ACT>(load(x + i * LANES)));
  float last[LANES] = {};
  std::copy(x + whole * LANES, x + count, last);
  store(last, activated<ACT>(load(last)));
  std::copy(last, last + count - whole * LANES, x + whole * LANES);
}

void layer_norm(const float* x, const float* weight, const float* bias, float* out, int64_t rows, int64_t width,
                float eps, int64_t threads) {
  int64_t whole = width / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const float* from = x + row * width;
    float* to = out + row * width;
    auto total = [&](auto term) {
      Vector each = {};
      float rest = 0;
      for (int64_t i = 0; i < whole; i += LANES) each += term(load(from + i));
      for (int64_t i = whole; i < width; i++) rest += term(from[i]);
      return sum(each) + rest;
    };
    float mean = total([](auto v) { return v; }) / width;
    float variance = total([mean](auto v) { return (v - mean) * (v - mean); }) / width;
    float scale = 1 / std::sqrt(variance + eps);
    for (int64_t i = 0; i < whole; i += LANES)
      store(to + i, (load(from + i) - mean) * scale * load(weight + i) + load(bias + i));
    for (int64_t i = whole; i < width; i++) to[i] = (from[i] - mean) * scale * weight[i] + bias[i];
  }
}

}  // namespace zoo::packed

extern "C" {

int64_t packed_linear_width() { return zoo::packed::WIDTH; }

// shape: batch, height, width, segments, length, outputs, then the strides of x for image, row, column and segment.
// act: as in activations.h.
void packed_linear_forward(const float* x, const float* panels, const float* bias, float* out,
                           const int64_t* shape, int64_t act, int64_t threads) {
  zoo::packed::Layer p{x, panels, bias, out, shape[0], shape[1], shape[2], shape[3], shape[4],
                        shape[5], shape[6], shape[7], shape[8], shape[9]};
  if (act == zoo::GELU) zoo::packed::linear<zoo::GELU>(p, threads);
  else if (act == zoo::GELU_TANH) zoo::packed::linear<zoo::GELU_TANH>(p, threads);
  else if (act == zoo::SILU) zoo::packed::linear<zoo::SILU>(p, threads);
  else zoo::packed::linear<zoo::NONE>(p, threads);
}

// shape: rows, inputs, hidden, outputs.
void packed_mlp_forward(const float* x, const float* panels1, const float* bias1, const float* panels2,
                        const float* bias2, float* out, const int64_t* shape, int64_t act, int64_t threads) {
  int64_t rows = shape[0], inputs = shape[1], hidden = shape[2], outputs = shape[3];
  zoo::packed::Layer first{x, panels1, bias1, nullptr, 1, 1, rows, 1, inputs, hidden, 0, 0, inputs, 0};
  zoo::packed::Layer second{nullptr, panels2, bias2, out, 1, 1, rows, 1, hidden, outputs, 0, 0, hidden, 0};
  if (act == zoo::GELU) zoo::packed::mlp<zoo::GELU>(first, second, threads);
  else if (act == zoo::GELU_TANH) zoo::packed::mlp<zoo::GELU_TANH>(first, second, threads);
  else if (act == zoo::SILU) zoo::packed::mlp<zoo::SILU>(first, second, threads);
  else zoo::packed::mlp<zoo::NONE>(first, second, threads);
}

// In place.
void activation_forward(float* x, int64_t count, int64_t act, int64_t threads) {
  if (act == zoo::GELU) zoo::packed::activate<zoo::GELU>(x, count, threads);
  else if (act == zoo::GELU_TANH) zoo::packed::activate<zoo::GELU_TANH>(x, count, threads);
  else if (act == zoo::SILU) zoo::packed::activate<zoo::SILU>(x, count, threads);
}

void layer_norm_forward(const float* x, const float* weight, const float* bias, float* out, const int64_t* shape,
                        float eps, int64_t threads) {
  zoo::packed::layer_norm(x, weight, bias, out, shape[0], shape[1], eps, threads);
}
}
