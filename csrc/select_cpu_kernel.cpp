// SPDX-License-Identifier: Apache-2.0
//
// hired::select and hired::select_qk on a CPU. Five sweeps, each over independent items on the
// caller's threads: scores (a partition; for select_qk a run of its keys first, or a job of a
// head's queries), budgets or, under `pooled`, the cut (a picture), choice (a partition), places (a
// partition), tokens (a row of the output). The phases of csrc/phases/ do the work, each with one
// thread as its group.
//
// Bytes: every key, or attention element, once; every kept token read once and written once; beside
// them keys of T words a partition and, for select_qk, N logits a head, which stay in the cache.
#include "select_cpu_kernel.h"

#include <cstring>

#include "cpu_heads.h"
#include "cpu_means.h"
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

constexpr int64_t kCacheLine = 64;

// A score row: P of the final layer, then one for each picture of the initial layer.
struct Row {
  bool
      needed;  // the initial layer is read only where sub-images have tokens to share: not `pooled`
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
  const int32_t T = rules.patches();
  const bool merged = rules.merge > 1;
  const int64_t row_bytes = call.H * T * static_cast<int64_t>(sizeof(Scalar));
  sweep(pool, call.P + B, row_bytes, [&](int64_t item) {
    const Row row = row_of(call, item, call.init.rows);
    if (!row.needed) return;
    const Attention& layer = row.init ? call.init : call.final;
    const auto* attention = static_cast<const Scalar*>(layer.data) + row.index * layer.stride_row;
    uint32_t* keys = w.keys + item * w.key_stride;
    score_attention(LaneGroup(), attention, layer.stride_h, layer.stride_t,
                    static_cast<int32_t>(call.H), T, merged, keys);
    if (merged) merge_scores(LaneGroup(), rules, keys, keys);
  });
}

template <class Scalar>
void score(const SelectQkCall& call, const Workspace& w, const Pool& pool) {
  const Rules& rules = call.plan->rules;
  const Heads heads{call.H, call.N, call.Dh, call.scale};
  const int64_t rows = call.P + static_cast<int64_t>(call.plan->pictures.size());
  const int32_t T = rules.patches();
  const auto row_of_item = [&](int64_t item) {
    const Row row = row_of(call, item, call.init.rows);
    return HeadRow{row.needed, row.init ? &call.init : &call.final, row.index};
  };
  fill_logits<Scalar>(heads, rows, row_of_item, w.heads.single, pool);
  fill_sums<Scalar>(heads, T, rows, row_of_item, w.heads.mean, pool);

  const int64_t row_bytes = call.H * call.N * static_cast<int64_t>(sizeof(float));
  sweep(pool, rows, row_bytes, [&](int64_t item) {
    const HeadRow row = row_of_item(item);
    if (!row.needed) return;
    uint32_t* keys = w.keys + item * w.key_stride;
    // Scores take the place of the keys that they become.
    auto* scores = reinterpret_cast<float*>(keys);
    for (int64_t h = 0; h < call.H; ++h) {
      if (row.layer->Q == 1) {
        add_head(heads, w.heads.single, item, h, T, h == 0, scores);
      } else {
        add_mean(heads, w.heads.mean, item, h, T, row.layer->Q, h == 0, scores);
      }
    }
    merge_scores(LaneGroup(), rules, keys, keys);
  });
}

// Everything behind the scores.
void keep(const Call& call, const Workspace& w, const Pool& pool) {
  const LaneGroup group;
  const Rules& rules = call.plan->rules;
  const Picture* pictures = call.plan->pictures.data();
  const auto B = static_cast<int64_t>(call.plan->pictures.size());
  const int32_t T = rules.tokens, side = rules.side, words = mask_words(T);
  const int64_t partition_bytes = int64_t{16} * T;  // about what a sweep touches
  const bool pooled = rules.policy == Policy::kPooled;

  sweep(pool, B, partition_bytes, [&](int64_t b) {
    const Picture& picture = pictures[b];
    const int32_t first = picture.first_partition, partitions = 1 + picture.sub_images();
    for (int32_t i = 0; i < partitions; ++i) w.picture_of[first + i] = static_cast<int32_t>(b);
    ChooseScratch choose_scratch{};
    if (!pooled) {
      allocate(group, rules, picture, w.keys + (call.P + b) * w.key_stride, &choose_scratch,
               {w.weights + first, w.capacities + first, w.remainders + first,
                w.kept + int64_t{first} * words},  // free until the full image has been chosen
               w.budgets + first);
      return;
    }
    // One after the other, as if they were those of one partition.
    uint32_t* keys = w.pooled + int64_t{first} * T;
    for (int32_t i = 0; i < partitions; ++i) {
      uint32_t* of_partition = keys + int64_t{i} * T;
      std::memcpy(of_partition, w.keys + (first + i) * w.key_stride,
                  static_cast<size_t>(T) * sizeof(uint32_t));
      exclude_padding(group, rules, picture, i, of_partition);
    }
    const Survey surveyed = survey(group, keys, partitions * T, &choose_scratch);
    const Cut cut =
        choose(group, keys, partitions * T, picture.output_rows, surveyed, &choose_scratch);
    w.cut_keys[b] = cut.key;
    w.cut_lasts[b] = cut.last;
  });

  const auto raster = [&](const Picture& picture, int64_t p) {
    return rules.order == Order::kRaster && p > picture.first_partition;
  };
  sweep(pool, call.P, partition_bytes, [&](int64_t p) {
    const int32_t b = w.picture_of[p];
    const Picture& picture = pictures[b];
    const auto partition = static_cast<int32_t>(p - picture.first_partition);
    uint32_t* keys = pooled ? w.pooled + p * T : w.keys + p * w.key_stride;
    int32_t budget = 0;
    Cut cut{};
    if (pooled) {
      cut = Cut{w.cut_keys[b], w.cut_lasts[b]}.from(partition * T);
    } else {
      budget = w.budgets[p];
      if (rules.policy == Policy::kExact) exclude_padding(group, rules, picture, partition, keys);
      ChooseScratch choose_scratch{};
      const Survey surveyed = survey(group, keys, T, &choose_scratch);
      cut = choose(group, keys, T, budget, surveyed, &choose_scratch);
    }
    call.output.counts[p] =
        mark_kept(group, rules, picture, partition, keys, cut, budget, w.kept + p * words);
  });

  sweep(pool, call.P, partition_bytes, [&](int64_t p) {
    const Picture& picture = pictures[w.picture_of[p]];
    const auto partition = static_cast<int32_t>(p - picture.first_partition);
    const int64_t first = picture.first_partition;
    const int64_t* counts = call.output.counts + first;  // [1 + R * C]
    int64_t* indices = call.output.indices;
    int64_t row = base_row(rules, picture, partition, counts);
    int32_t y = -1, shift = 0;  // of the patch before
    const uint32_t* mask = w.kept + p * words;
    for (int32_t base = 0; base < T; base += 32) {
      for (uint32_t left = mask[base / 32]; left != 0; left &= left - 1) {
        const int32_t t = base + __builtin_ctz(left);
        if (raster(picture, p) && t / side != y) {
          y = t / side;
          const int32_t c = (partition - 1) % picture.cols;
          shift = row_shift(group.team(), mask - c * words, words, side, picture.cols, c, y);
        }
        indices[shift + row++] = p * T + t;
      }
    }
    if (partition > 0) return;
    // Rows that the picture owns and does not fill (`published` only).
    int64_t filled = 0;
    for (int32_t i = 0; i <= picture.sub_images(); ++i) filled += counts[i];
    for (int64_t i = filled; i < picture.output_rows; ++i) indices[picture.first_row + i] = -1;
  });

  const Features& features = call.features;
  const int64_t bytes = features.row_bytes;
  if (bytes == 0) return;
  const int32_t block = rules.block();
  const int64_t pieces = call.plan->output_rows * block;  // of the output, a patch each
  const auto patch = [&](int64_t piece) -> const char* {
    const int64_t index = call.output.indices[piece / block];
    if (index < 0) return nullptr;
    const int32_t t =
        patch_of(rules, static_cast<int32_t>(index % T), static_cast<int32_t>(piece % block));
    return patch_at(static_cast<const char*>(features.data), features.stride_p_bytes,
                    features.stride_t_bytes, index / T, t);
  };
  sweep(pool, pieces, 2 * bytes, [&](int64_t piece) {
    // Kept rows lie scattered: the processor's own prefetcher would start afresh on each.
    if (const char* next = piece + 1 < pieces ? patch(piece + 1) : nullptr; next != nullptr) {
      for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(next + i);
    }
    gather_patch(group, patch(piece), bytes,
                 static_cast<char*>(call.output.tokens) + piece * bytes);
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
