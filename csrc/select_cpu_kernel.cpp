// SPDX-License-Identifier: Apache-2.0
//
// hired::select and hired::select_qk on a CPU. Five sweeps, each over independent items on the
// caller's threads: scores (a partition; for select_qk a run of its keys first), budgets (a
// picture), choice (a partition), places (a partition), tokens (a row of the output). The phases of
// csrc/phases/ do the work, each with one thread as its group.
//
// Bytes: every key, or attention element, once; every kept token read once and written once; beside
// them keys of T words a partition and, for select_qk, N logits a head, which stay in the cache.
#include "select_cpu_kernel.h"

#include "lanes.h"
#include "phases/allocate.h"
#include "phases/choose.h"
#include "phases/gather.h"
#include "phases/place.h"
#include "phases/region.h"
#include "phases/score.h"

namespace hired {
inline namespace HIRED_ISA {
namespace {

// Bytes below which a thread's share of a sweep is not worth waking the thread for.
constexpr int64_t kGrainBytes = 64 << 10;
// Keys whose logits one item of select_qk computes: a run of the row major in memory.
constexpr int64_t kRunBytes = 64 << 10;
constexpr int64_t kCacheLine = 64;
// The head width of CLIP, SigLIP and most ViTs, which gets a loop of its own.
constexpr int64_t kUsualHeadWidth = 64;
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

// A score row: P of the final layer, then one for each picture of the initial layer.
struct Row {
  bool needed;  // the initial layer is read only where sub-images have tokens to share
  bool init;
  int64_t index;  // into the tensor of its layer
};

Row row_of(const Call& call, int64_t item, int64_t init_rows) {
  if (item < call.P) return {true, false, item};
  const Picture& picture = call.plan->pictures[static_cast<size_t>(item - call.P)];
  const int64_t index = init_rows == call.P ? picture.first_partition : item - call.P;
  return {picture.rest > 0, true, index};
}

template <class Scalar>
void score(const SelectCall& call, const Workspace& w, const Pool& pool) {
  const Rules& rules = call.plan->rules;
  const auto B = static_cast<int64_t>(call.plan->pictures.size());
  const int64_t row_bytes = call.H * rules.tokens * static_cast<int64_t>(sizeof(Scalar));
  sweep(pool, call.P + B, row_bytes, [&](int64_t item) {
    const Row row = row_of(call, item, call.init.rows);
    if (!row.needed) return;
    const Attention& layer = row.init ? call.init : call.final;
    const auto* attention = static_cast<const Scalar*>(layer.data) + row.index * layer.stride_row;
    score_attention(LaneGroup(), attention, layer.stride_h, layer.stride_t, call.H, rules.tokens,
                    w.keys + item * w.key_stride);
  });
}

// query . key, its lanes not yet added up. The query is padded to whole vectors with zeros.
template <class Scalar>
inline Lanes dot_lanes(const float* query, const Scalar* key, int64_t Dh) {
  Lanes sum = {};
  int64_t d = 0;
  for (; d + kLanes <= Dh; d += kLanes) sum += load_lanes(query + d) * load_lanes(key + d);
  if (d == Dh) return sum;
  return sum + load_lanes(query + d) * LaneGroup().load(key + d, 1, static_cast<int>(Dh - d));
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

// logits [H, stride] of keys [begin, end), in the order in which they lie in memory: kLanes heads
// at a time, whose sums over lanes then cost about one addition each.
template <class Scalar>
inline void key_logits(const SelectQkCall& call, const QueriesKeys& layer, int64_t row,
                       const float* query, int64_t query_stride, int64_t begin, int64_t end,
                       float* logits, int64_t stride) {
  const auto* keys = static_cast<const Scalar*>(layer.key) + row * layer.key_stride_row;
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t h = 0; h < call.H; h += kLanes) {
      const int count = call.H - h < kLanes ? static_cast<int>(call.H - h) : kLanes;
      const Scalar* key = keys + n * layer.key_stride_n + h * layer.key_stride_h;
      const float* head = query + h * query_stride;
      Lanes dots[kLanes];
      if (count == kLanes && call.Dh == kUsualHeadWidth) {  // constants: the loops unroll
        head_dots(head, kUsualHeadWidth, key, layer.key_stride_h, kUsualHeadWidth, kLanes, dots);
      } else {
        for (Lanes& dot : dots) dot = Lanes{};
        head_dots(head, query_stride, key, layer.key_stride_h, call.Dh, count, dots);
      }
      const Lanes sums = sums_of(dots) * call.scale;
      for (int i = 0; i < count; ++i) logits[(h + i) * stride + n] = sums[i];
    }
  }
}

template <class Scalar>
void score(const SelectQkCall& call, const Workspace& w, const Pool& pool) {
  const Rules& rules = call.plan->rules;
  const int64_t N = call.N, H = call.H, Dh = call.Dh;
  const int64_t rows = call.P + static_cast<int64_t>(call.plan->pictures.size());
  const int64_t query_bytes = H * w.query_stride * static_cast<int64_t>(sizeof(float));
  sweep(pool, rows, query_bytes, [&](int64_t item) {
    const Row row = row_of(call, item, call.init.rows);
    const QueriesKeys& layer = row.init ? call.init : call.final;
    const auto* query =
        static_cast<const Scalar*>(layer.query) + row.index * layer.query_stride_row;
    for (int64_t h = 0; h < H; ++h) {
      float* widened = w.queries + (item * H + h) * w.query_stride;
      for (int64_t d = 0; d < w.query_stride; ++d) {
        widened[d] = d < Dh ? load_float(query + h * layer.query_stride_h + d) : 0.0f;
      }
    }
  });

  const int64_t key_bytes = H * Dh * static_cast<int64_t>(sizeof(Scalar));
  const int64_t most = key_bytes < kRunBytes ? kRunBytes / key_bytes : 1;
  const int64_t run = most < N ? most : N;
  const int64_t runs = (N + run - 1) / run;
  sweep(pool, rows * runs, run * key_bytes, [&](int64_t item) {
    const int64_t i = item / runs;
    const Row row = row_of(call, i, call.init.rows);
    if (!row.needed) return;
    const int64_t begin = item % runs * run, end = begin + run < N ? begin + run : N;
    key_logits<Scalar>(call, row.init ? call.init : call.final, row.index,
                       w.queries + i * H * w.query_stride, w.query_stride, begin, end,
                       w.logits + i * H * w.logit_stride, w.logit_stride);
  });

  const int64_t logit_bytes = H * w.logit_stride * static_cast<int64_t>(sizeof(float));
  sweep(pool, rows, logit_bytes, [&](int64_t item) {
    if (!row_of(call, item, call.init.rows).needed) return;
    const LaneGroup group;
    uint32_t* keys = w.keys + item * w.key_stride;
    // Scores take the place of the keys that they become.
    auto* scores = reinterpret_cast<float*>(keys);
    for (int64_t h = 0; h < H; ++h) {
      float* logits = w.logits + (item * H + h) * w.logit_stride;
      for (int64_t n = N; n < w.logit_stride; ++n) logits[n] = -INFINITY;
      add_softmax(group, logits, N, rules.tokens, h == 0, scores);
    }
    for (int32_t t = 0; t < rules.tokens; ++t) keys[t] = ordered_key(load_float(scores + t));
  });
}

// Everything behind the scores.
void keep(const Call& call, const Workspace& w, const Pool& pool) {
  const LaneGroup group;
  const Rules& rules = call.plan->rules;
  const Picture* pictures = call.plan->pictures.data();
  const auto B = static_cast<int64_t>(call.plan->pictures.size());
  const int32_t T = rules.tokens, side = rules.side;
  const int64_t partition_bytes = int64_t{16} * T;  // about what a sweep touches

  sweep(pool, B, partition_bytes, [&](int64_t b) {
    const Picture& picture = pictures[b];
    const int32_t first = picture.first_partition;
    ChooseScratch choose_scratch{};
    allocate(group, rules, picture, w.keys + (call.P + b) * w.key_stride, &choose_scratch,
             {w.weights + first, w.capacities + first, w.remainders + first}, w.budgets + first);
    for (int32_t i = 0; i <= picture.sub_images(); ++i) {
      w.picture_of[first + i] = static_cast<int32_t>(b);
    }
  });

  const auto raster = [&](const Picture& picture, int64_t p) {
    return rules.order == Order::kRaster && p > picture.first_partition;
  };
  sweep(pool, call.P, partition_bytes, [&](int64_t p) {
    const Picture& picture = pictures[w.picture_of[p]];
    const auto partition = static_cast<int32_t>(p - picture.first_partition);
    uint32_t* keys = w.keys + p * w.key_stride;
    if (rules.policy == Policy::kExact && partition > 0 && !is_whole(picture, side)) {
      exclude_padding(group, sub_image_box(picture, side, partition - 1), side, T, keys);
    }
    ChooseScratch choose_scratch{};
    const Cut cut = choose(group, keys, T, w.budgets[p], &choose_scratch);
    call.output.counts[p] = list_kept(group, rules, picture, partition, keys, cut, w.kept + p * T,
                                      raster(picture, p) ? w.row_counts + p * side : nullptr);
  });

  sweep(pool, call.P, partition_bytes, [&](int64_t p) {
    const Picture& picture = pictures[w.picture_of[p]];
    const auto partition = static_cast<int32_t>(p - picture.first_partition);
    const int64_t first = picture.first_partition;
    const int64_t* counts = call.output.counts + first;
    int32_t* shifts = nullptr;
    if (raster(picture, p)) {
      shifts = w.shifts + p * side;
      raster_shifts(
          group, picture, side, partition - 1,
          w.row_counts + (first + 1 + (partition - 1) / picture.cols * picture.cols) * side,
          counts + 1, shifts);
    }
    const int64_t base = base_row(picture, partition, counts, shifts != nullptr);
    int64_t* indices = call.output.indices;
    for (int64_t i = 0; i < counts[partition]; ++i) {
      const int32_t t = w.kept[p * T + i];
      indices[base + i + (shifts != nullptr ? shifts[t / side] : 0)] = p * T + t;
    }
    if (partition > 0) return;
    for (int64_t i = filled_rows(picture, counts); i < picture.output_rows; ++i) {
      indices[picture.first_row + i] = -1;
    }
  });

  const Features& features = call.features;
  if (features.row_bytes == 0) return;
  const int64_t K = call.plan->output_rows;
  const auto token = [&](int64_t row) -> const char* {
    const int64_t index = call.output.indices[row];
    if (index < 0) return nullptr;
    return token_at(static_cast<const char*>(features.data), features.stride_p_bytes,
                    features.stride_t_bytes, index / T, static_cast<int32_t>(index % T));
  };
  sweep(pool, K, 2 * features.row_bytes, [&](int64_t row) {
    // Kept rows lie scattered: the processor's own prefetcher would start afresh on each.
    if (const char* next = row + 1 < K ? token(row + 1) : nullptr; next != nullptr) {
      for (int64_t i = 0; i < features.row_bytes; i += kCacheLine) __builtin_prefetch(next + i);
    }
    gather_row(group, token(row), features.row_bytes,
               static_cast<char*>(call.output.tokens) + row * features.row_bytes);
  });
}

template <class SomeCall>
void run(const SomeCall& call, const Workspace& w, const Pool& pool) {
  switch (call.dtype) {
    case Dtype::kFloat32: score<float>(call, w, pool); break;
    case Dtype::kFloat16: score<Float16>(call, w, pool); break;
    case Dtype::kBFloat16: score<BFloat16>(call, w, pool); break;
  }
  keep(call, w, pool);
}

}  // namespace

void select_kernel(const SelectCall& call, const Workspace& w, const Pool& pool) {
  run(call, w, pool);
}

void select_qk_kernel(const SelectQkCall& call, const Workspace& w, const Pool& pool) {
  run(call, w, pool);
}

}  // namespace HIRED_ISA
}  // namespace hired
