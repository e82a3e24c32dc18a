// What the taps of a deformable convolution read, on the CPU, forward only: a task is a row of the output. The convolution
// itself is then one product.
#include "native.h"

namespace zoo::deform {

struct Problem {
  const float *x, *offset;
  float* taps;
  int64_t batch, height, width, channels, rows, columns, kernel_rows, kernel_columns, down, right;
  int64_t image, row, column;  // strides of x
};

// to = [to +] weight * from
template <bool ADD>
void scale_row(float* to, float weight, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    Vector y = weight * load(from + i);
    store(to + i, ADD ? load(to + i) + y : y);
  }
  for (; i < n; i++) to[i] = weight * from[i] + (ADD ? to[i] : 0);
}

// The map at a real position, bilinear, zero outside; NaN nowhere.
void read(const Problem& p, const float* image, float y, float x, float* to) {
  bool nowhere = y != y || x != x, inside = y > -1 && y < p.height && x > -1 && x < p.width;
  if (nowhere || !inside) {
    std::fill_n(to, p.channels, nowhere ? std::numeric_limits<float>::quiet_NaN() : 0.f);
    return;
  }
  float top = std::floor(y), left = std::floor(x);
  bool first = true;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) {
      int64_t row = int64_t(top) + i, column = int64_t(left) + j;
      if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
      float weight = (i ? y - top : 1 - (y - top)) * (j ? x - left : 1 - (x - left));
      const float* from = image + row * p.row + column * p.column;
      first ? scale_row<false>(to, weight, from, p.channels) : scale_row<true>(to, weight, from, p.channels);
      first = false;
    }
}

void forward(const Problem& p, int64_t threads) {
  int64_t taps = p.kernel_rows * p.kernel_columns;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < p.batch * p.rows; task++) {
    const float* image = p.x + task / p.rows * p.image;
    int64_t row = task % p.rows;
    for (int64_t column = 0; column < p.columns; column++) {
      int64_t first = (task * p.columns + column) * taps;
      for (int64_t tap = 0; tap < taps; tap++) {
        const float* offset = p.offset + 2 * (first + tap);
        float y = row * p.down + tap / p.kernel_columns + offset[0];
        float x = column * p.right + tap % p.kernel_columns + offset[1];
        read(p, image, y, x, p.taps + (first + tap) * p.channels);
      }
    }
  }
}

}  // namespace zoo::deform

extern "C" {

// shape: batch, height, width, channels, rows and columns of the output and of the kernel, strides of the taps, then the
// strides of x for image, row and column.
void deform_conv_taps(const float* x, const float* offset, float* taps, const int64_t* shape, int64_t threads) {
  zoo::deform::Problem p{x,        offset,   taps,     shape[0], shape[1], shape[2],  shape[3], shape[4],
                         shape[5], shape[6], shape[7], shape[8], shape[9], shape[10], shape[11], shape[12]};
  zoo::deform::forward(p, threads);
}
}
