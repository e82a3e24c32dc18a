// Attention to whole maps on the CPU, forward only: a task is a head of an image and some of the queries, all of which
// read the same keys.
#include "groups.h"

namespace zoo::whole {

constexpr int64_t QUERIES = 8 * BLOCK;  // of a task: gathering the keys costs as much as a few of them

struct Side {
  Map map;
  int64_t height, width;

  int64_t positions() const { return height * width; }
  float* at(int64_t b, int64_t position, int64_t head) const {
    return map.at(b, position / width, position % width, head);
  }
};

struct Problem {
  Side q, k, v, out;
  int64_t batch, heads, dim;
  float scale;
};

void forward(const Problem& p, int64_t threads) {
  int64_t parts = (p.q.positions() + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(threads)
  {
    Workspace workspace(p.dim);
    Group group;
    std::vector<float> lse(QUERIES);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.heads * parts; task++) {
      int64_t b = task / parts / p.heads, head = task / parts % p.heads, part = task % parts;
      group.clear();
      for (int64_t j = 0; j < p.k.positions(); j++) {
        group.k.push_back(p.k.at(b, j, head));
        group.v.push_back(p.v.at(b, j, head));
      }
      int64_t first = part * p.q.positions() / parts, last = (part + 1) * p.q.positions() / parts;
      for (int64_t i = first; i < last; i++) {
        group.q.push_back(p.q.at(b, i, head));
        group.out.push_back(p.out.at(b, i, head));
        group.lse.push_back(&lse[i - first]);
      }
      attend(workspace, group, p.scale);
    }
  }
}

}  // namespace zoo::whole

extern "C" {

// shape: batch, height, width of the queries, height and width of the keys, heads, dim. strides: four for each map.
void global_attention_forward(const float* q, const float* k, const float* v, float* out, const int64_t* shape,
                              const int64_t* strides, float scale, int64_t threads) {
  int64_t batch = shape[0], height = shape[1], width = shape[2], key_height = shape[3], key_width = shape[4];
  zoo::whole::Problem p{{{q, strides}, height, width},
                        {{k, strides + 4}, key_height, key_width},
                        {{v, strides + 8}, key_height, key_width},
                        {{out, strides + 12}, height, width},
                        batch, shape[5], shape[6], scale};
  zoo::whole::forward(p, threads);
}
}
