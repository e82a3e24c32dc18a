// Window attention on the CPU: a task is one group of one head. Positions beyond the map are left out of the lists.
#include "groups.h"

namespace zoo::window {

struct Axis {
  int64_t length, size, interval;

  int64_t step() const { return size * interval; }
  int64_t groups() const { return (length + step() - 1) / step() * interval; }
  int64_t position(int64_t group, int64_t token) const {
    return group / interval * step() + token * interval + group % interval;
  }
};

struct Problem {
  Map q, k, v;
  const float* bias;
  int64_t batch, heads, dim;
  Axis y, x;
  float scale;

  int64_t tokens() const { return y.size * x.size; }
  int64_t groups() const { return batch * y.groups() * x.groups(); }
};

// Call `visit(image, row, column, token)` for the tokens of a group that lie on the map.
template <class Visit>
void visit_tokens(const Problem& p, int64_t group, Visit visit) {
  int64_t right = group % p.x.groups(), down = group / p.x.groups() % p.y.groups();
  int64_t b = group / p.x.groups() / p.y.groups();
  for (int64_t i = 0; i < p.y.size; i++)
    for (int64_t j = 0; j < p.x.size; j++) {
      int64_t row = p.y.position(down, i), column = p.x.position(right, j);
      if (row < p.y.length && column < p.x.length) visit(b, row, column, i * p.x.size + j);
    }
}

float* of_query(const Problem& p, const float* lse, int64_t b, int64_t row, int64_t column, int64_t head) {
  return const_cast<float*>(lse) + ((b * p.y.length + row) * p.x.length + column) * p.heads + head;
}

void list_inputs(const Problem& p, const Map& out, const float* lse, int64_t index, int64_t head, Group& group) {
  group.clear();
  visit_tokens(p, index, [&](int64_t b, int64_t row, int64_t column, int token) {
    group.q.push_back(p.q.at(b, row, column, head));
    group.k.push_back(p.k.at(b, row, column, head));
    group.v.push_back(p.v.at(b, row, column, head));
    group.out.push_back(out.at(b, row, column, head));
    group.lse.push_back(of_query(p, lse, b, row, column, head));
    group.token.push_back(token);
  });
  group.bias = p.bias ? p.bias + head * p.tokens() * p.tokens() : nullptr;
  group.bias_row = p.tokens();
}

void forward(const Problem& p, const Map& out, float* lse, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Workspace workspace(p.dim);
    Group group;
#pragma omp for schedule(dynamic, 4)
    for (int64_t task = 0; task < p.groups() * p.heads; task++) {
      list_inputs(p, out, lse, task / p.heads, task % p.heads, group);
      if (!group.q.empty()) attend(workspace, group, p.scale);
    }
  }
}

// The groups are dealt to `parts` tasks a head; each task has a table of its own for the gradient of the biases.
void backward(const Problem& p, const Map& grad, const Map& out, const float* lse, const Map& dq, const Map& dk,
              const Map& dv, float* dbias, int64_t parts, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Workspace workspace(p.dim);
    Group group;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < parts * p.heads; task++) {
      int64_t head = task % p.heads;
      for (int64_t index = task / p.heads; index < p.groups(); index += parts) {
        list_inputs(p, out, lse, index, head, group);
        visit_tokens(p, index, [&](int64_t b, int64_t row, int64_t column, int) {
          group.grad.push_back(grad.at(b, row, column, head));
          group.dq.push_back(dq.at(b, row, column, head));
          group.dk.push_back(dk.at(b, row, column, head));
          group.dv.push_back(dv.at(b, row, column, head));
        });
        group.dbias = dbias ? dbias + task * p.tokens() * p.tokens() : nullptr;
        if (!group.q.empty()) attend_backward(workspace, group, p.scale);
      }
    }
  }
}

}  // namespace zoo::window

extern "C" {

// shape: batch, height, width, heads, dim, size h, size w, interval h, interval w. strides: four for each map.
void window_attention_forward(const float* q, const float* k, const float* v, const float* bias, float* out,
                              float* lse, const int64_t* shape, const int64_t* strides, float scale,
                              int64_t threads) {
  zoo::window::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, bias, shape[0], shape[3], shape[4],
                         {shape[1], shape[5], shape[7]}, {shape[2], shape[6], shape[8]}, scale};
  zoo::window::forward(p, {out, strides + 12}, lse, threads);
}

void window_attention_backward(const float* grad, const float* q, const float* k, const float* v, const float* bias,
                               const float* out, const float* lse, float* dq, float* dk, float* dv, float* dbias,
                               const int64_t* shape, const int64_t* strides, float scale, int64_t parts,
                               int64_t threads) {
  zoo::window::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, bias, shape[0], shape[3], shape[4],
                         {shape[1], shape[5], shape[7]}, {shape[2], shape[6], shape[8]}, scale};
  zoo::window::backward(p, {grad, strides + 12}, {out, strides + 16}, lse, {dq, strides + 20}, {dk, strides + 20},
                        {dv, strides + 20}, dbias, parts, threads);
}
}
