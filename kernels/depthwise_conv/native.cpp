// Depthwise convolution on the CPU: a task is one row of the output. Some positions of a row and one vector of channels
// are summed in registers; every input is loaded once for all taps of a row of the kernel.
#include "activations.h"

namespace zoo::depthwise {

constexpr int POSITIONS = 6;  // of one block

// weight: (K * K, channels). Strides are those of x for image, row and column.
struct Problem {
  const float *x, *weight, *bias;
  float* out;
  int64_t batch, height, width, channels, out_height, out_width, above, left;
  int64_t image, row, column;
};

// Channels [c, c + LANES) of POSITIONS outputs. inputs: where each column begins, for the rows [first, last) of the kernel.
template <int K, int S, int ACT>
[[gnu::always_inline]] inline void block(const Problem& p, const float* const* inputs, int first, int last, float* out,
                                         int count, int64_t c) {
  constexpr int COLUMNS = (POSITIONS - 1) * S + K;
  Vector sums[POSITIONS];
  for (int i = 0; i < POSITIONS; i++) sums[i] = load(p.bias + c);
  for (int ky = first; ky < last; ky++) {
    const float* const* row = inputs + ky * COLUMNS;
    Vector w[K];
    for (int kx = 0; kx < K; kx++) w[kx] = load(p.weight + (ky * K + kx) * p.channels + c);
#pragma GCC unroll 32
    for (int j = 0; j < COLUMNS; j++) {
      Vector x = load(row[j] + c);
#pragma GCC unroll 8
      for (int i = 0; i < POSITIONS; i++)
        if (j - i * S >= 0 && j - i * S < K) sums[i] += w[j - i * S] * x;
    }
  }
  for (int i = 0; i < POSITIONS; i++)
    if (i < count) store(out + i * p.channels + c, activated<ACT>(sums[i]));
}

template <int K, int S, int ACT>
void output_row(const Problem& p, int64_t image, int64_t y, const float* zeros) {
  constexpr int COLUMNS = (POSITIONS - 1) * S + K;
  int64_t top = y * S - p.above;
  int first = std::clamp<int64_t>(-top, 0, K), last = std::clamp<int64_t>(p.height - top, 0, K);
  for (int64_t x = 0; x < p.out_width; x += POSITIONS) {
    const float* inputs[K * COLUMNS];
    for (int ky = first; ky < last; ky++)
      for (int j = 0; j < COLUMNS; j++) {
        int64_t column = x * S - p.left + j;
        bool inside = column >= 0 && column < p.width;
        inputs[ky * COLUMNS + j] = inside ? p.x + image * p.image + (top + ky) * p.row + column * p.column : zeros;
      }
    int count = std::min<int64_t>(POSITIONS, p.out_width - x);
    float* out = p.out + ((image * p.out_height + y) * p.out_width + x) * p.channels;
    int64_t c = 0;
    for (; c + LANES <= p.channels; c += LANES) block<K, S, ACT>(p, inputs, first, last, out, count, c);
    if (c < p.channels) block<K, S, ACT>(p, inputs, first, last, out, count, p.channels - LANES);  // some once more
  }
}

template <int K, int S, int ACT>
void convolve(const Problem& p, int64_t threads) {
  std::vector<float> zeros(p.channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < p.batch * p.out_height; task++)
    output_row<K, S, ACT>(p, task / p.out_height, task % p.out_height, zeros.data());
}

template <int K, int S>
void by_activation(const Problem& p, int64_t act, int64_t threads) {
  if (act == GELU) convolve<K, S, GELU>(p, threads);
  else if (act == GELU_TANH) convolve<K, S, GELU_TANH>(p, threads);
  else if (act == SILU) convolve<K, S, SILU>(p, threads);
  else convolve<K, S, NONE>(p, threads);
}

template <int K>
void by_stride(const Problem& p, int64_t stride, int64_t act, int64_t threads) {
  stride == 1 ? by_activation<K, 1>(p, act, threads) : by_activation<K, 2>(p, act, threads);
}

}  // namespace zoo::depthwise

extern "C" {

int64_t depthwise_conv_lanes() { return zoo::LANES; }

// shape: batch, height, width, channels, height and width of out, zeros above and on the left, then the strides of x for
// image, row and column. The kernel has 3, 5 or 7 rows and columns, the stride is 1 or 2, and there are at least LANES
// channels.
void depthwise_conv_forward(const float* x, const float* weight, const float* bias, float* out, const int64_t* shape,
                            int64_t kernel, int64_t stride, int64_t act, int64_t threads) {
  zoo::depthwise::Problem p{x,        weight,   bias,     out,      shape[0], shape[1], shape[2], shape[3],
                            shape[4], shape[5], shape[6], shape[7], shape[8], shape[9], shape[10]};
  if (kernel == 3) zoo::depthwise::by_stride<3>(p, stride, act, threads);
  else if (kernel == 5) zoo::depthwise::by_stride<5>(p, stride, act, threads);
  else zoo::depthwise::by_stride<7>(p, stride, act, threads);
}
}
