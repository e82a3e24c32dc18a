// Routing attention on the CPU: a task of the forward pass is the queries of one region and a few heads, which read
// the routed regions where they lie. The backward pass takes one head of one image at a time: no two tasks share a sum.
#include "groups.h"

namespace zoo::routing {

struct Problem {
  Map q, k, v;
  const int64_t* routes;
  int64_t batch, height, width, heads, dim, region_height, region_width, topk;
  float scale;

  int64_t columns() const { return (width + region_width - 1) / region_width; }
  int64_t regions() const { return (height + region_height - 1) / region_height * columns(); }
};

// Call `visit(row, column, inside)` for the positions of a region, also for those beyond the map.
template <class Visit>
void visit_region(const Problem& p, int64_t region, Visit visit) {
  int64_t top = region / p.columns() * p.region_height, left = region % p.columns() * p.region_width;
  for (int64_t row = top; row < top + p.region_height; row++)
    for (int64_t column = left; column < left + p.region_width; column++)
      visit(row, column, row < p.height && column < p.width);
}

void list_inputs(const Problem& p, const Map& out, const float* lse, int64_t b, int64_t region, int64_t head,
                 Group& group) {
  group.clear();
  visit_region(p, region, [&](int64_t row, int64_t column, bool inside) {
    if (!inside) return;
    group.q.push_back(p.q.at(b, row, column, head));
    group.out.push_back(out.at(b, row, column, head));
    group.lse.push_back(const_cast<float*>(lse) + ((b * p.height + row) * p.width + column) * p.heads + head);
  });
  const int64_t* routed = p.routes + (b * p.regions() + region) * p.topk;
  for (int64_t i = 0; i < p.topk; i++)
    visit_region(p, routed[i], [&](int64_t row, int64_t column, bool inside) {
      group.k.push_back(inside ? p.k.at(b, row, column, head) : nullptr);
      group.v.push_back(inside ? p.v.at(b, row, column, head) : nullptr);
    });
}

void list_outputs(const Problem& p, const Map& grad, const Map& dq, const Map& dk, const Map& dv, int64_t b,
                  int64_t region, int64_t head, Group& group) {
  visit_region(p, region, [&](int64_t row, int64_t column, bool inside) {
    if (!inside) return;
    group.grad.push_back(grad.at(b, row, column, head));
    group.dq.push_back(dq.at(b, row, column, head));
  });
  const int64_t* routed = p.routes + (b * p.regions() + region) * p.topk;
  for (int64_t i = 0; i < p.topk; i++)
    visit_region(p, routed[i], [&](int64_t row, int64_t column, bool inside) {
      group.dk.push_back(inside ? dk.at(b, row, column, head) : nullptr);
      group.dv.push_back(inside ? dv.at(b, row, column, head) : nullptr);
    });
}

// The same rows of the next head.
void next_head(const Problem& p, const Map& out, Group& group) {
  shift(group.q, p.q.head);
  shift(group.k, p.k.head);
  shift(group.v, p.v.head);
  shift(group.out, out.head);
  shift(group.lse, 1);
}

constexpr int64_t HEADS = 4;  // of a task

void forward(const Problem& p, const Map& out, float* lse, int64_t threads) {
  int64_t shares = (p.heads + HEADS - 1) / HEADS;
#pragma omp parallel num_threads(threads)
  {
    Workspace workspace(p.dim);
    Group group;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.regions() * shares; task++) {
      int64_t head = task % shares * HEADS, region = task / shares % p.regions(), b = task / shares / p.regions();
      list_inputs(p, out, lse, b, region, head, group);
      for (int64_t end = std::min(head + HEADS, p.heads); !group.q.empty() && head < end; head++) {
        attend(workspace, group, p.scale);
        next_head(p, out, group);
      }
    }
  }
}

void backward(const Problem& p, const Map& grad, const Map& out, const float* lse, const Map& dq, const Map& dk,
              const Map& dv, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    Workspace workspace(p.dim);
    Group group;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.heads; task++) {
      int64_t head = task % p.heads, b = task / p.heads;
      for (int64_t region = 0; region < p.regions(); region++) {
        list_inputs(p, out, lse, b, region, head, group);
        list_outputs(p, grad, dq, dk, dv, b, region, head, group);
        if (!group.q.empty()) attend_backward(workspace, group, p.scale);
      }
    }
  }
}

}  // namespace zoo::routing

extern "C" {

// shape: batch, height, width, heads, dim, region h, region w, topk. strides: four for each map.
void routing_attention_forward(const float* q, const float* k, const float* v, const int64_t* routes, float* out,
                               float* lse, const int64_t* shape, const int64_t* strides, float scale,
                               int64_t threads) {
  zoo::routing::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, routes,   shape[0], shape[1], shape[2],
                          shape[3],     shape[4],         shape[5],         shape[6], shape[7], scale};
  zoo::routing::forward(p, {out, strides + 12}, lse, threads);
}

void routing_attention_backward(const float* grad, const float* q, const float* k, const float* v,
                                const int64_t* routes, const float* out, const float* lse, float* dq, float* dk,
                                float* dv, const int64_t* shape, const int64_t* strides, float scale,
                                int64_t threads) {
  zoo::routing::Problem p{{q, strides}, {k, strides + 4}, {v, strides + 8}, routes,   shape[0], shape[1], shape[2],
                          shape[3],     shape[4],         shape[5],         shape[6], shape[7], scale};
  zoo::routing::backward(p, {grad, strides + 12}, {out, strides + 16}, lse, {dq, strides + 20}, {dk, strides + 20},
                         {dv, strides + 20}, threads);
}
}
