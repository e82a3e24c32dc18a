// What the C++ kernels share: vectors of floats, small matrix products, softmax, and views of feature maps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace zoo {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline void store(float* p, Vector x) { std::memcpy(p, &x, sizeof x); }

inline Vector all(float x) { return x - Vector{}; }

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// N numbers, a power of two, combined to one by halves: each step is one instruction.
template <int N, class Combine>
inline float folded(const float* x, Combine combine) {
  if constexpr (N == 1) return x[0];
  else {
    float half[N / 2];
    for (int i = 0; i < N / 2; i++) half[i] = combine(x[i], x[i + N / 2]);
    return folded<N / 2>(half, combine);
  }
}

inline float sum(Vector x) {
  float each[LANES];
  store(each, x);
  return folded<LANES>(each, [](float a, float b) { return a + b; });
}

inline float largest(Vector x) {
  float each[LANES];
  store(each, x);
  return folded<LANES>(each, [](float a, float b) { return a > b ? a : b; });
}

// exp to 2 units in the last place: 2^n times the Taylor polynomial of the rest, |rest| <= log(2) / 2.
// 0 below the smallest normal number, so that a masked logit of -infinity weighs nothing; NaN stays NaN.
[[gnu::always_inline]] inline Vector exponential(Vector logit) {
  Vector x = larger(logit, all(-87.f));
  Vector turns = x * 1.44269504f;
  Integers n = __builtin_convertvector(turns + (turns < 0 ? all(-.5f) : all(.5f)), Integers);
  Vector whole = __builtin_convertvector(n, Vector);
  Vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector y = all(1.f / 5040);
  for (float coefficient : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f}) y = y * rest + coefficient;
  y = logit < -87.f ? Vector{} : y * (Vector)((n + 127) << 23);
  return logit == logit ? y : logit;
}

// Numbers that begin on the boundary of a vector: a load never straddles two cache lines.
class Numbers {
  struct alignas(4 * LANES) Cell {
    float x[LANES];
  };
  std::vector<Cell> cells;

 public:
  float* data() { return reinterpret_cast<float*>(cells.data()); }
  float& operator[](int64_t i) { return data()[i]; }
  bool empty() const { return cells.empty(); }
  void resize(int64_t n) { cells.resize((n + LANES - 1) / LANES); }
  void zero(int64_t n) { cells.assign((n + LANES - 1) / LANES, Cell{}); }
};

inline int rounded(int n) { return (n + LANES - 1) / LANES * LANES; }

// R x (V * LANES) numbers of c = [c +] a b. Element (i, l) of a stands at a[i * a_row + l * a_column].
template <int R, int V, bool ADD>
inline void product_block(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
                          int64_t c_row, int64_t inner) {
  Vector x[R][V] = {};
  for (int64_t l = 0; l < inner; l++)
    for (int j = 0; j < V; j++) {
      Vector row = load(b + l * b_row + j * LANES);
      for (int i = 0; i < R; i++) x[i][j] += a[i * a_row + l * a_column] * row;
    }
  for (int i = 0; i < R; i++)
    for (int j = 0; j < V; j++) {
      float* p = c + i * c_row + j * LANES;
      store(p, ADD ? load(p) + x[i][j] : x[i][j]);
    }
}

template <int V, bool ADD>
inline void product_panel(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
                          int64_t c_row, int64_t rows, int64_t inner) {
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8)
    product_block<8, V, ADD>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, inner);
  for (; i + 4 <= rows; i += 4)
    product_block<4, V, ADD>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, inner);
  for (; i < rows; i++)
    product_block<1, V, ADD>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, inner);
}

// c = [c +] a b for matrices that fit the cache: (rows, inner) times (inner, columns), columns a multiple of LANES.
template <bool ADD = false>
inline void product(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
                    int64_t c_row, int64_t rows, int64_t columns, int64_t inner) {
  constexpr int V = LANES == 16 ? 2 : 1;  // as many sums as the registers hold
  int64_t j = 0;
  for (; j + V * LANES <= columns; j += V * LANES)
    product_panel<V, ADD>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, inner);
  for (; j < columns; j += LANES)
    product_panel<1, ADD>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, inner);
}

inline bool all_masked(const float* logits, int width) {
  return std::all_of(logits, logits + width, [](float x) { return x == MINUS_INFINITY; });
}

// Softmax of `width` logits (a multiple of LANES; -infinity where there is no key) in place; returns log sum exp. With
// EMPTY, weights that are all masked are zeros, as in PyTorch's scaled_dot_product_attention; its plain softmax has NaN.
template <bool EMPTY = false>
inline float softmax(float* logits, int width) {
  Vector most = load(logits);
  for (int j = LANES; j < width; j += LANES) most = larger(most, load(logits + j));
  float peak = largest(most);
  if (EMPTY && peak == MINUS_INFINITY && all_masked(logits, width)) {
    std::fill(logits, logits + width, 0.f);
    return -MINUS_INFINITY;  // from which `weights_again` makes zeros
  }
  Vector total = {};
  for (int j = 0; j < width; j += LANES) {
    Vector x = exponential(load(logits + j) - peak);
    store(logits + j, x);
    total += x;
  }
  float whole = sum(total);
  for (int j = 0; j < width; j += LANES) store(logits + j, load(logits + j) / whole);
  return peak + std::log(whole);
}

// The same weights once more, from the log sum exp.
inline void weights_again(float* logits, int width, float lse) {
  for (int j = 0; j < width; j += LANES) store(logits + j, exponential(load(logits + j) - lse));
}

inline float dot(const float* a, const float* b, int n) {
  Vector x = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) x += load(a + i) * load(b + i);
  float total = sum(x);
  for (; i < n; i++) total += a[i] * b[i];
  return total;
}

// A row of channels, most often a multiple of eight, without a call of memcpy.
inline void copy_row(float* to, const float* from, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) std::memcpy(to + i, from + i, 8 * sizeof(float));
  for (; i < n; i++) to[i] = from[i];
}

// to += factor * from; n is a multiple of LANES.
inline void accumulate(float* to, float factor, const float* from, int n) {
  for (int i = 0; i < n; i += LANES) store(to + i, load(to + i) + factor * load(from + i));
}

// A (B, H, W, heads, d) tensor with its channels side by side; a stride each for the first four axes.
struct Map {
  float* data;
  int64_t batch, row, column, head;

  Map(const float* data, const int64_t* strides)
      : data(const_cast<float*>(data)), batch(strides[0]), row(strides[1]), column(strides[2]), head(strides[3]) {}

  float* at(int64_t b, int64_t y, int64_t x, int64_t n) const {
    return data + b * batch + y * row + x * column + n * head;
  }
};

}  // namespace zoo
