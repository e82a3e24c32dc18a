// Linear layers on the CPU with packed weights, and layer norms. A task is a chunk of rows times some of the panels; a
// tile of its output stays in registers until bias and activation are done.
#include "packed_linear/bfloat16.h"

namespace zoo::packed {

constexpr int LINE = 16;      // numbers of a cache line
constexpr int64_t RUN = 256;  // inputs whose products are summed on their own: the sums of shorter runs are more exact

// inputs: where each row of the tile begins in x.
template <int R, int ACT>
[[gnu::noinline]] void tile(const Layer<float>& p, const float* const* inputs, int64_t row, int64_t panel) {
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
void tile_of(const Layer<float>& p, int rows, const float* const* inputs, int64_t row, int64_t panel) {
  if constexpr (R > 0)
    rows == R ? tile<R, ACT>(p, inputs, row, panel) : tile_of<R - 1, ACT>(p, rows, inputs, row, panel);
}

// The rows of one chunk times panels [first, last).
template <int ACT>
void compute(const Layer<float>& p, const Chunks& chunks, int64_t chunk, int64_t first, int64_t last) {
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
void linear(const Layer<float>& p, int64_t threads) {
  Chunks chunks(p.positions(), threads);
  int64_t panels = p.panel_count(), parts = chunks.parts(panels, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < chunks.count * parts; task++) {
    int64_t part = task % parts;
    compute<ACT>(p, chunks, task / parts, part * panels / parts, (part + 1) * panels / parts);
  }
}

// second(activation(first)) of the rows of a contiguous map, chunk by chunk: what lies between is never in memory whole.
template <int ACT>
void mlp(const Layer<float>& first, const Layer<float>& second, int64_t threads) {
  Chunks chunks(first.positions(), threads);
#pragma omp parallel num_threads(threads)
  {
    Numbers hidden;
    hidden.resize(TILES * ROWS * first.outputs);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks.count; i++) {
      int64_t row = chunks.row(chunks.tile(i));
      Layer<float> a = first, b = second;  // with the rows of this chunk of the hidden map alone
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

// Whether this processor multiplies bfloat16 numbers.
int64_t packed_linear_has_bfloat16() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

// shape: see `layer_of`. act: as in activations.h.
void packed_linear_forward(const float* x, const float* panels, const float* bias, float* out, const int64_t* shape,
                           int64_t act, int64_t threads) {
  using namespace zoo::packed;
  auto p = layer_of(x, panels, bias, out, shape);
  with_activation(act, [&](auto a) { linear<a>(p, threads); });
}

// shape: rows, inputs, hidden, outputs.
void packed_mlp_forward(const float* x, const float* panels1, const float* bias1, const float* panels2,
                        const float* bias2, float* out, const int64_t* shape, int64_t act, int64_t threads) {
  using namespace zoo::packed;
  auto [first, second] = mlp_of(x, panels1, bias1, panels2, bias2, out, shape);
  with_activation(act, [&, &first = first, &second = second](auto a) { mlp<a>(first, second, threads); });
}

#ifdef __AVX512BF16__
// The same of weights in bfloat16: panels are (ceil(outputs / WIDTH), pairs of inputs, WIDTH, 2).
void packed_linear_bfloat16_forward(const float* x, const uint16_t* panels, const float* bias, float* out,
                                    const int64_t* shape, int64_t act, int64_t threads) {
  using namespace zoo::packed;
  auto p = layer_of(x, panels, bias, out, shape);
  with_activation(act, [&](auto a) { pair_linear<a>(p, threads); });
}

void packed_mlp_bfloat16_forward(const float* x, const uint16_t* panels1, const float* bias1, const uint16_t* panels2,
                                 const float* bias2, float* out, const int64_t* shape, int64_t act, int64_t threads) {
  using namespace zoo::packed;
  auto [first, second] = mlp_of(x, panels1, bias1, panels2, bias2, out, shape);
  with_activation(act, [&, &first = first, &second = second](auto a) { pair_mlp<a>(first, second, threads); });
}
#endif

// In place.
void activation_forward(float* x, int64_t count, int64_t act, int64_t threads) {
  zoo::packed::with_activation(act, [&](auto a) { zoo::packed::activate<a>(x, count, threads); });
}

void layer_norm_forward(const float* x, const float* weight, const float* bias, float* out, const int64_t* shape,
                        float eps, int64_t threads) {
  zoo::packed::layer_norm(x, weight, bias, out, shape[0], shape[1], eps, threads);
}
}
