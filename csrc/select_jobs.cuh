// SPDX-License-Identifier: Apache-2.0
//
// Jobs behind the scores: budgets, choices and rows of the output. select_kernel.cuh says which
// waits for which.
#pragma once

#include "groups.cuh"
#include "phases/allocate.h"
#include "phases/choose.h"
#include "phases/gather.h"
#include "phases/place.h"
#include "phases/region.h"
#include "phases/score.h"
#include "select_params.cuh"
#include "select_scores.cuh"

namespace hired {
inline namespace HIRED_ISA {

// Shared memory: remainders, weights, capacities [R * C] and budgets [1 + R * C] at their largest,
// ChooseScratch, mask [mask_words(M)], keys of score_row().
template <class Scalar, class Source, int kPictures>
__device__ __forceinline__ void weigh_job(const LaunchParams<kPictures>& params, int32_t b,
                                          PictureCounters* counters, char* shared,
                                          const BlockGroup& group) {
  const Picture& picture = params.pictures[b];
  const int32_t n = picture.sub_images();
  auto* choose_scratch = reinterpret_cast<ChooseScratch*>(shared);
  auto* remainders = reinterpret_cast<BlockGroup::Wide*>(choose_scratch + 1);
  auto* weights = reinterpret_cast<uint32_t*>(remainders + kMaxSubImages);
  auto* capacities = reinterpret_cast<int32_t*>(weights + kMaxSubImages);
  int32_t* budgets = capacities + kMaxSubImages;
  auto* mask = reinterpret_cast<uint32_t*>(budgets + kMaxSubImages + 1);
  uint32_t* keys = mask + mask_words(params.rules.tokens);
  if (picture.rest > 0) {
    score_row<Scalar, Source>(params, b, /*init=*/true, 0, counters, group, keys);
  }
  allocate(group, params.rules, picture, keys, choose_scratch,
           {weights, capacities, remainders, mask}, budgets);
  for (int32_t i = group.rank(); i <= n; i += group.size()) {
    params.workspace.budgets[picture.first_partition + i] = budgets[i];
  }
  arrive(&counters[b].weighed);
}

// What a partition keeps of its keys [M] by a cut, for those who gather.
template <class Keys, int kPictures>
__device__ __forceinline__ void keep(const LaunchParams<kPictures>& params, int32_t b, int32_t p,
                                     const Keys& keys, const Cut& cut, int32_t k,
                                     PictureCounters* counters, const BlockGroup& group) {
  const Picture& picture = params.pictures[b];
  const int32_t partition = p - picture.first_partition;
  uint32_t* mask = params.workspace.kept + int64_t{p} * mask_words(params.rules.tokens);
  const int32_t count = mark_kept(group, params.rules, picture, partition, keys, cut, k, mask);
  if (group.rank() == 0) params.output.counts[p] = count;
  arrive(partition == 0 ? &counters[b].chosen_full : &counters[b].chosen_sub);
}

// Shared memory: ChooseScratch, keys of score_row().
template <class Scalar, class Source, int kPictures>
__device__ __forceinline__ void choose_job(const LaunchParams<kPictures>& params, int32_t p,
                                           PictureCounters* counters, char* shared,
                                           const BlockGroup& group) {
  const Rules& rules = params.rules;
  const int32_t T = rules.tokens;
  const int32_t b = picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  const int32_t partition = p - picture.first_partition;
  auto* choose_scratch = reinterpret_cast<ChooseScratch*>(shared);
  auto* keys = reinterpret_cast<uint32_t*>(choose_scratch + 1);
  score_row<Scalar, Source>(params, b, /*init=*/false, p, counters, group, keys);
  if (rules.policy == Policy::kExact) exclude_padding(group, rules, picture, partition, keys);
  const Survey surveyed = survey(group, keys, T, choose_scratch);
  int32_t budget = picture.full_budget;
  if (partition > 0) {
    wait_for(&counters[b].weighed, 1, "weighed", b);
    budget = load_fresh(params.workspace.budgets + p);
  }
  const Cut cut = choose(group, keys, T, budget, surveyed, choose_scratch);
  keep(params, b, p, keys, cut, budget, counters, group);
}

// Scores of a partition under `pooled`, for all of its picture. Shared memory: keys of score_row().
template <class Scalar, class Source, int kPictures>
__device__ __forceinline__ void score_job(const LaunchParams<kPictures>& params, int32_t p,
                                          PictureCounters* counters, char* shared,
                                          const BlockGroup& group) {
  const int32_t b = picture_of_partition(params, p), T = params.rules.tokens;
  const Picture& picture = params.pictures[b];
  auto* keys = reinterpret_cast<uint32_t*>(shared);
  score_row<Scalar, Source>(params, b, /*init=*/false, p, counters, group, keys);
  exclude_padding(group, params.rules, picture, p - picture.first_partition, keys);
  uint32_t* shown = params.workspace.keys + int64_t{p} * T;
  for (int32_t t = group.rank(); t < T; t += group.size()) shown[t] = keys[t];
  arrive(&counters[b].weighed);
}

// Keys that other blocks have left in memory.
struct FreshKeys {
  const uint32_t* keys;

  __device__ __forceinline__ uint32_t operator[](int32_t t) const { return load_fresh(keys + t); }
};

// The same in shared memory, each thread its own, with as few trips as registers allow.
__device__ __forceinline__ void stage(const BlockGroup& group, const uint32_t* keys, int32_t n,
                                      uint32_t* staged) {
  constexpr int kTogether = 12;  // of 256 threads all keys of five partitions of 576
  const int32_t step = group.size();
  for (int32_t first = group.rank(); first < n; first += kTogether * step) {
    uint32_t held[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int32_t t = first + i * step;
      held[i] = load_fresh(keys + (t < n ? t : first));
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i * step < n) staged[first + i * step] = held[i];
    }
  }
}

// What a partition keeps of the picture's n keys, of which its own begin at `own`. Shared memory:
// ChooseScratch.
template <class Keys, int kPictures>
__device__ __forceinline__ void choose_of_all(const LaunchParams<kPictures>& params, int32_t b,
                                              int32_t p, const Keys& keys, int32_t n,
                                              const Keys& own_keys, int32_t own,
                                              ChooseScratch* choose_scratch,
                                              PictureCounters* counters, const BlockGroup& group) {
  const Survey surveyed = survey(group, keys, n, choose_scratch);
  const Cut cut = choose(group, keys, n, params.pictures[b].output_rows, surveyed, choose_scratch);
  keep(params, b, p, own_keys, cut.from(own), 0, counters, group);
}

// What a partition keeps of its picture's best under `pooled`: each of the picture's blocks looks
// for the same cut through all of its keys, which costs less than to wait for one that does. Shared
// memory: ChooseScratch, keys [(1 + R * C) * M] where there are no more than kStagedKeys.
template <int kPictures>
__device__ __forceinline__ void choose_pooled_job(const LaunchParams<kPictures>& params, int32_t p,
                                                  PictureCounters* counters, char* shared,
                                                  const BlockGroup& group) {
  const int32_t b = picture_of_partition(params, p), T = params.rules.tokens;
  const Picture& picture = params.pictures[b];
  const int32_t partitions = 1 + picture.sub_images(), n = partitions * T;
  const int32_t own = (p - picture.first_partition) * T;
  auto* choose_scratch = reinterpret_cast<ChooseScratch*>(shared);
  const uint32_t* shown = params.workspace.keys + int64_t{picture.first_partition} * T;
  wait_for(&counters[b].weighed, static_cast<uint32_t>(partitions), "weighed", b);
  if (n <= kStagedKeys) {
    auto* keys = reinterpret_cast<uint32_t*>(choose_scratch + 1);
    stage(group, shown, n, keys);
    choose_of_all(params, b, p, keys, n, keys + own, own, choose_scratch, counters, group);
  } else {
    const FreshKeys keys{shown}, own_keys{shown + own};
    choose_of_all(params, b, p, keys, n, own_keys, own, choose_scratch, counters, group);
  }
}

// A patch's part of a row of the output, by one warp: its token's index with the first of them, and
// the patch itself or, where there is none, zeros.
template <int kPictures>
__device__ __forceinline__ void write_patch(const LaunchParams<kPictures>& params,
                                            const Rules& rules, const WarpGroup& warp, int64_t row,
                                            int32_t piece, int64_t index, const char* patch) {
  if (piece == 0 && warp.rank() == 0) params.output.indices[row] = index;
  const int64_t bytes = params.features.row_bytes;
  char* tokens = static_cast<char*>(params.output.tokens);
  gather_patch(warp, patch, bytes, tokens + (row * rules.block() + piece) * bytes);
}

// Shared memory: masks [C, mask_words(M)] of the sub-images in the same row of the grid (or of the
// partition alone), counts [1 + R * C] of those partitions that come before.
template <class Source, int kPictures>
__device__ __forceinline__ void gather_job(const LaunchParams<kPictures>& params, int32_t job,
                                           PictureCounters* counters, char* shared,
                                           const BlockGroup& group) {
  const Rules rules = rules_of<Source>(params);
  const int32_t T = rules.tokens, side = rules.side, words = mask_words(T);
  int32_t b = 0, high = params.count - 1;
  while (b < high) {
    const int32_t middle = (b + high + 1) / 2;
    if (gather_jobs_before(params, middle) <= job) {
      b = middle;
    } else {
      high = middle - 1;
    }
  }
  const Picture& picture = params.pictures[b];
  const int32_t n = picture.sub_images();
  job -= gather_jobs_before(params, b);
  const bool full = job < params.full_blocks;
  if (!full) job -= params.full_blocks;
  const int32_t partition = full ? 0 : 1 + job / params.sub_blocks;
  const int32_t chunk = full ? job : job % params.sub_blocks;
  const int32_t chunks = full ? params.full_blocks : params.sub_blocks;
  const int32_t p = picture.first_partition + partition;
  const bool raster = rules.order == Order::kRaster && !full;
  const int32_t C = raster ? picture.cols : 1, c = raster ? (partition - 1) % C : 0;

  // Whose counts have to be known. The full image's is its budget, but under `pooled`.
  const bool last = rules.order == Order::kFullLast;
  const bool ask_full = full || (rules.policy == Policy::kPooled && !last);
  const bool ask_sub = !full || (last && n > 0);
  if (ask_full) wait_for(&counters[b].chosen_full, 1, "chosen_full", b);
  if (ask_sub) wait_for(&counters[b].chosen_sub, static_cast<uint32_t>(n), "chosen_sub", b);
  // Masks and the low words of counts, with one trip to memory for both.
  auto* masks = reinterpret_cast<uint32_t*>(shared);
  const uint32_t* counts = masks + C * words;
  const uint32_t* mask_source = params.workspace.kept + int64_t{p - c} * words;
  const auto* count_source =
      reinterpret_cast<const uint32_t*>(params.output.counts + picture.first_partition);
  const int32_t first_count = ask_full ? 0 : 1;
  const int32_t staged = C * words + (ask_sub ? 1 + n : 1) - first_count;
  for (int32_t i = group.rank(); i < staged; i += group.size()) {
    const int32_t counted = i - C * words + first_count;
    const bool is_mask = i < C * words;
    masks[is_mask ? i : i + first_count] =
        load_fresh(is_mask ? mask_source + i : count_source + 2 * counted);
  }
  if (!ask_full && group.rank() == 0) masks[C * words] = picture.full_budget;
  group.sync();

  const WarpGroup warp = group.team();
  const int32_t first = chunk * group.teams() + group.team_index(), step = chunks * group.teams();
  const int32_t block = rules.block();
  const Features& features = params.features;
  const auto* source = static_cast<const char*>(features.data);
  const int64_t base = base_row(rules, picture, partition, counts);
  const int32_t pieces = static_cast<int32_t>(counts[partition]) * block;
  for (int32_t i = first; i < pieces; i += step) {
    const int32_t kept = block > 1 ? i / block : i, piece = i - kept * block;
    const int32_t t = kept_patch(warp, masks + c * words, words, kept);
    const int32_t shift = raster ? row_shift(warp, masks, words, side, C, c, t / side) : 0;
    write_patch(params, rules, warp, base + kept + shift, piece, int64_t{p} * T + t,
                patch_at(source, features.stride_p_bytes, features.stride_t_bytes, p,
                         patch_of(rules, t, piece)));
  }
  if (rules.policy != Policy::kPublished || !full) return;
  // Rows that the picture owns and does not fill.
  if (n > 0) wait_for(&counters[b].chosen_sub, static_cast<uint32_t>(n), "chosen_sub", b);
  int64_t filled = picture.full_budget;
  for (int32_t i = 1; i <= n; ++i) filled += load_fresh(count_source + 2 * i);
  for (int64_t i = filled + first; i < picture.output_rows; i += step) {
    write_patch(params, rules, warp, picture.first_row + i, 0, -1, nullptr);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
