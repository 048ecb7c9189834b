// SPDX-License-Identifier: Apache-2.0
//
// Attention heads on a CPU: query . key * scale as logits, each key read once in memory order, then
// the softmax of each head. What hired::select_qk sums over heads, hired::cls_attention returns.
#pragma once

#include <cmath>
#include <cstdint>

#include "head_space.h"
#include "lanes.h"
#include "phases/score.h"
#include "pool.h"
#include "queries_keys.h"

namespace hired {
inline namespace HIRED_ISA {

// Bytes below which a thread's share of a sweep is not worth waking the thread for.
inline constexpr int64_t kGrainBytes = 64 << 10;
// Keys whose logits one item of a sweep computes: a run of the row major in memory.
inline constexpr int64_t kRunBytes = 64 << 10;
// The head width of CLIP, SigLIP and most ViTs, which gets a loop of its own.
inline constexpr int64_t kUsualHeadWidth = 64;
static_assert(kUsualHeadWidth % kMaxLanes == 0, "such queries are not padded");

template <class Body>
void sweep(const Pool& pool, int64_t items, int64_t item_bytes, const Body& body) {
  if (items == 0) return;
  const int64_t grain = item_bytes >= kGrainBytes ? 1 : kGrainBytes / (item_bytes + 1) + 1;
  pool.run(
      items, grain,
      [](void* argument, int64_t begin, int64_t end) {
        const Body& each = *static_cast<const Body*>(argument);
        for (int64_t i = begin; i < end; ++i) each(i);
      },
      const_cast<Body*>(&body));
}

// query . key, its lanes not yet added up. The query is padded to whole vectors with zeros.
template <class Scalar>
inline Lanes dot_lanes(const float* query, const Scalar* key, int64_t Dh) {
  Lanes sum = {};
  int64_t d = 0;
  for (; d + kLanes <= Dh; d += kLanes) sum += load_lanes(query + d) * load_lanes(key + d);
  if (d == Dh) return sum;
  return sum + load_lanes(query + d) * LaneGroup().fetch(key + d, 1, static_cast<int>(Dh - d));
}

// dots [count]: those of as many heads.
template <class Scalar>
inline __attribute__((always_inline)) void head_dots(const float* query, int64_t query_stride,
                                                     const Scalar* key, int64_t stride_h,
                                                     int64_t Dh, int count, Lanes* dots) {
  for (int i = 0; i < count; ++i) {
    dots[i] = dot_lanes(query + i * query_stride, key + i * stride_h, Dh);
  }
}

// logits [H, stride] of keys [begin, end) of a row, in the order in which they lie in memory:
// kLanes heads at a time, whose sums over lanes then cost about one addition each.
template <class Scalar>
inline void key_logits(const Heads& heads, const QueriesKeys& layer, int64_t row,
                       const float* query, int64_t query_stride, int64_t begin, int64_t end,
                       float* logits, int64_t stride) {
  const auto* keys = static_cast<const Scalar*>(layer.key) + row * layer.key_stride_row;
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t h = 0; h < heads.H; h += kLanes) {
      const int count = heads.H - h < kLanes ? static_cast<int>(heads.H - h) : kLanes;
      const Scalar* key = keys + n * layer.key_stride_n + h * layer.key_stride_h;
      const float* head = query + h * query_stride;
      Lanes dots[kLanes];
      if (count == kLanes && heads.Dh == kUsualHeadWidth) {  // constants: the loops unroll
        head_dots(head, kUsualHeadWidth, key, layer.key_stride_h, kUsualHeadWidth, kLanes, dots);
      } else {
        for (Lanes& dot : dots) dot = Lanes{};
        head_dots(head, query_stride, key, layer.key_stride_h, heads.Dh, count, dots);
      }
      const Lanes sums = sums_of(dots) * heads.scale;
      for (int i = 0; i < count; ++i) logits[(h + i) * stride + n] = sums[i];
    }
  }
}

// A row of attention to come: where its queries and keys are.
struct HeadRow {
  bool needed;
  const QueriesKeys* layer;
  int64_t index;  // into the tensors of its layer
};

// The logits of all heads of those of `rows` rows that have one query; row_of(item) says which
// HeadRow each is.
template <class Scalar, class RowOf>
void fill_logits(const Heads& heads, int64_t rows, const RowOf& row_of, const SingleSpace& w,
                 const Pool& pool) {
  const int64_t N = heads.N, H = heads.H, Dh = heads.Dh;
  const int64_t query_bytes = H * w.query_stride * static_cast<int64_t>(sizeof(float));
  if (w.logits == nullptr) return;
  sweep(pool, rows, query_bytes, [&](int64_t item) {
    const HeadRow row = row_of(item);
    if (!row.needed || row.layer->Q > 1) return;
    const auto* query =
        static_cast<const Scalar*>(row.layer->query) + row.index * row.layer->query_stride_row;
    for (int64_t h = 0; h < H; ++h) {
      float* widened = w.queries + (item * H + h) * w.query_stride;
      for (int64_t d = 0; d < w.query_stride; ++d) {
        widened[d] = d < Dh ? load_float(query + h * row.layer->query_stride_h + d) : 0.0f;
      }
    }
  });

  const int64_t key_bytes = H * Dh * static_cast<int64_t>(sizeof(Scalar));
  const int64_t most = key_bytes < kRunBytes ? kRunBytes / key_bytes : 1;
  const int64_t run = most < N ? most : N;
  const int64_t runs = (N + run - 1) / run;
  sweep(pool, rows * runs, run * key_bytes, [&](int64_t item) {
    const int64_t i = item / runs;
    const HeadRow row = row_of(i);
    if (!row.needed || row.layer->Q > 1) return;
    const int64_t begin = item % runs * run, end = begin + run < N ? begin + run : N;
    key_logits<Scalar>(heads, *row.layer, row.index, w.queries + i * H * w.query_stride,
                       w.query_stride, begin, end, w.logits + i * H * w.logit_stride,
                       w.logit_stride);
  });
}

// scores [T], padded to whole lanes: adds the attention of a row's head, whose logits are used up.
// `scores` may be where those begin.
inline void add_head(const Heads& heads, const SingleSpace& w, int64_t row, int64_t h, int32_t T,
                     bool first, float* scores) {
  float* logits = w.logits + (row * heads.H + h) * w.logit_stride;
  for (int64_t n = heads.N; n < w.logit_stride; ++n) logits[n] = -INFINITY;
  const LaneGroup group;
  add_softmax(group, largest_of(group, logits, heads.N), logits, heads.N, T, first, scores);
}

}  // namespace HIRED_ISA
}  // namespace hired
