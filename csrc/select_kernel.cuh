// SPDX-License-Identifier: Apache-2.0
//
// hired::select and hired::select_qk as one kernel launch, on every GPU from sm_61 on.
//
// Grid: one block a job, four kinds of them, in this order:
//   heads   (select_qk) one head of one score row: N dot products, softmax, T probabilities, which
//           stand in the workspace as attention rows do in `select`; of many queries a run of them,
//           whose softmax rows are added up
//   weigh   one picture: scores of its full image at the initial layer, budgets of its partitions
//           (under `pooled` one partition: its scores at the final layer)
//   choose  one partition: scores at the final layer, its top-k as a mask (under `pooled` what it
//           has of the picture's top-k, which every partition's block finds for itself)
//   gather  some kept tokens of one partition: their rows of the output, and the copy
// A block does not take the job of its index but the next of the list, by a ticket that it draws
// with atomicAdd as it starts.
//
// It cannot hang, whatever else runs on the device. A job waits only for jobs that stand before it
// in the list: choose and weigh for heads, choose for weigh, gather for choose. Whoever holds a
// ticket is running, and so is every holder of a lower one, or it has finished. Of the unfinished
// tickets drawn, the lowest therefore waits for nobody and ends; so does the next, and so on. No
// block waits for one that has not started.
//
// Counters come in two sets, which launches use in turn. Whoever draws the last ticket turns them
// and clears the other set, which the launch before has used, for the one to come: no block waits
// to leave.
//
// Bytes: every key or attention element once, every kept token read and written once; beside them
// H * T probabilities a score row (select_qk), T bits a partition and, under `pooled`, its T scores
// once for each partition of the picture, all within the L2.
#pragma once

#include "device.cuh"
#include "groups.cuh"
#include "heads.cuh"
#include "phases/allocate.h"
#include "phases/choose.h"
#include "phases/gather.h"
#include "phases/place.h"
#include "phases/region.h"
#include "phases/score.h"
#include "queries.cuh"
#include "select.h"
#include "select_cuda.h"

namespace hired {
inline namespace HIRED_ISA {

// What scores come from.
struct FromRows {  // select
  static constexpr bool kKeys = false, kQueries = false;
};
struct FromOneQuery {  // select_qk, Q = 1 in both layers
  static constexpr bool kKeys = true, kQueries = false;
};
struct FromQueries {  // select_qk, more in one of them at least
  static constexpr bool kKeys = true, kQueries = true;
};

// A launch serves the pictures [first, first + count) of a call. Partitions are counted over the
// whole call, as in Picture.
template <int kPictures>
struct LaunchParams {
  Rules rules;
  Features features;
  Output output;
  Attention attention_init, attention_final;  // select
  QueriesKeys keys_init, keys_final;          // select_qk
  DeviceWorkspace workspace;
  int64_t P;
  int32_t H, N, Dh;
  float scale;
  int32_t first_picture, count;
  int32_t first_partition, partitions;  // of this launch
  int32_t init_jobs;                    // head jobs of the initial layer: none if nobody reads it
  int32_t weigh_jobs;                   // `count` of them, or `partitions` under `pooled`
  int32_t init_runs, final_runs;        // FromQueries: jobs of a head
  int32_t full_blocks, sub_blocks;      // gather jobs of a full image, of a sub-image
  int32_t key_lanes_init, key_lanes_final;  // as attend() has them
  Picture pictures[kPictures];
};

static_assert(sizeof(LaunchParams<kTinyBatch>) <= 704);
static_assert(sizeof(LaunchParams<kSmallBatch>) <= 4096, "what sm_61 takes");
static_assert(sizeof(LaunchParams<kLargeBatch>) <= 32764, "what sm_70 and later take");

template <int kPictures>
__device__ __forceinline__ int32_t picture_of_partition(const LaunchParams<kPictures>& params,
                                                        int32_t p) {
  int32_t low = 0, high = params.count - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (params.pictures[middle].first_partition <= p) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Gather jobs before picture b of this launch.
template <int kPictures>
__device__ __forceinline__ int32_t gather_jobs_before(const LaunchParams<kPictures>& params,
                                                      int32_t b) {
  const int32_t partitions = params.pictures[b].first_partition - params.first_partition;
  return b * params.full_blocks + (partitions - b) * params.sub_blocks;
}

// Partial rows of a layer in the workspace, those of the final layer first.
template <int kPictures>
__device__ __forceinline__ float* head_rows(const LaunchParams<kPictures>& params, bool init,
                                            int64_t row) {
  const int64_t before = init ? params.P * params.final_runs : 0;
  return params.workspace.probabilities +
         (before + row * (init ? params.init_runs : params.final_runs)) * params.H *
             params.rules.patches();
}

// Shared memory: attend()'s.
template <class Scalar, int kPictures>
__device__ __forceinline__ void heads_job(const LaunchParams<kPictures>& params, int32_t job,
                                          PictureCounters* counters, char* shared,
                                          const BlockGroup& group) {
  const bool init = job < params.init_jobs;
  if (!init) job -= params.init_jobs;
  const int32_t row = job / params.H, h = job % params.H;
  const int32_t p = params.first_partition + row;  // final layer
  const int32_t b = init ? row : picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  if (init && picture.rest == 0) return;  // nobody will ask

  const QueriesKeys& layer = init ? params.keys_init : params.keys_final;
  const int64_t call_picture = params.first_picture + b;
  const int64_t init_index = layer.rows == params.P ? picture.first_partition : call_picture;
  const int64_t index = init ? init_index : p;
  const int64_t score_row = init ? params.P + picture.init_row : p;
  const int32_t T = params.rules.patches();
  attend<Scalar>({params.H, params.N, params.Dh, params.scale}, layer,
                 init ? params.key_lanes_init : params.key_lanes_final, index, h, T,
                 reinterpret_cast<float*>(shared), group,
                 params.workspace.probabilities + (score_row * params.H + h) * T);
  PictureCounters& counted = counters[b];
  arrive(init                           ? &counted.heads_init
         : p == picture.first_partition ? &counted.heads_full
                                        : &counted.heads_sub);
}

// The same of a run of a head's queries, where there are many; jobs of a head follow each other.
// Shared memory: attend()'s or attend_run()'s.
template <class Scalar, int kPictures>
__device__ __forceinline__ void queries_job(const LaunchParams<kPictures>& params, int32_t job,
                                            PictureCounters* counters, char* shared,
                                            const BlockGroup& group) {
  const bool init = job < params.init_jobs;
  if (!init) job -= params.init_jobs;
  const int32_t runs = init ? params.init_runs : params.final_runs, T = params.rules.patches();
  const int32_t head = job / runs, row = head / params.H, h = head % params.H;
  const int32_t p = params.first_partition + row;  // final layer
  const int32_t b = init ? row : picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  if (init && picture.rest == 0) return;  // nobody will ask

  const QueriesKeys layer = one_of(init, params.keys_init, params.keys_final);
  const int64_t call_picture = params.first_picture + b;
  const int64_t init_index = layer.rows == params.P ? picture.first_partition : call_picture;
  const int64_t index = init ? init_index : p;
  const DeviceHeads heads = {params.H, params.N, params.Dh, params.scale};
  const int32_t key_lanes = init ? params.key_lanes_init : params.key_lanes_final;
  float* sums =
      head_rows(params, init, init ? picture.init_row : p) + int64_t{h * runs + job % runs} * T;
  PictureCounters& counted = counters[b];
  uint32_t* arrived = init                           ? &counted.heads_init
                      : p == picture.first_partition ? &counted.heads_full
                                                     : &counted.heads_sub;
  if (layer.Q == 1) {
    attend<Scalar>(heads, layer, key_lanes, index, h, T, reinterpret_cast<float*>(shared), group,
                   sums);
  } else {
    set_run<Scalar>(heads, layer, key_lanes != 0, index, h, job % runs, /*jobs=*/1, T, shared, 1.0f,
                    sums);
    attend_run<Scalar>(params.N, shared);
  }
  arrive(arrived);
}

// keys [M] in shared memory of one score row, each thread its own, waiting for its heads if they
// are being computed. Where patches are merged, their scores [T] come to stand behind the keys.
template <class Scalar, class Source, int kPictures>
__device__ __forceinline__ void score_row(const LaunchParams<kPictures>& params, int32_t b,
                                          bool init, int64_t p,
                                          [[maybe_unused]] PictureCounters* counters,
                                          const BlockGroup& group, uint32_t* keys) {
  const int32_t H = params.H, T = params.rules.patches();
  const bool merged = params.rules.merge > 1;
  uint32_t* scores = merged ? keys + params.rules.tokens : keys;
  const Picture& picture = params.pictures[b];
  const int64_t call_picture = params.first_picture + b;
  if constexpr (Source::kKeys) {
    auto heads = static_cast<uint32_t>(H);
    if constexpr (Source::kQueries) heads *= init ? params.init_runs : params.final_runs;
    if (init) {
      wait_for(&counters[b].heads_init, heads, "heads_init", b);
    } else if (p == picture.first_partition) {
      wait_for(&counters[b].heads_full, heads, "heads_full", b);
    } else {
      const uint32_t all = heads * static_cast<uint32_t>(picture.sub_images());
      wait_for(&counters[b].heads_sub, all, "heads_sub", b);
    }
    if constexpr (Source::kQueries) {
      const QueriesKeys& layer = init ? params.keys_init : params.keys_final;
      score_queries(group, head_rows(params, init, init ? picture.init_row : p), H,
                    init ? params.init_runs : params.final_runs, static_cast<float>(layer.Q), T,
                    merged, scores);
    } else {
      const int64_t row = init ? params.P + picture.init_row : p;
      score_attention(group, params.workspace.probabilities + row * H * T, T, 1, H, T, merged,
                      scores);
    }
  } else {
    const Attention& layer = init ? params.attention_init : params.attention_final;
    const int64_t init_row = layer.rows == params.P ? picture.first_partition : call_picture;
    const auto* attention =
        static_cast<const Scalar*>(layer.data) + (init ? init_row : p) * layer.stride_row;
    score_attention(group, attention, layer.stride_h, layer.stride_t, H, T, merged, scores);
  }
  if (merged) {
    group.sync();
    merge_scores(group, params.rules, scores, keys);
  }
}

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
  const auto choose_from = [&](const auto& keys, const auto& own_keys) {
    const Survey surveyed = survey(group, keys, n, choose_scratch);
    const Cut cut = choose(group, keys, n, picture.output_rows, surveyed, choose_scratch);
    keep(params, b, p, own_keys, cut.from(own), 0, counters, group);
  };
  wait_for(&counters[b].weighed, static_cast<uint32_t>(partitions), "weighed", b);
  if (n <= kStagedKeys) {
    auto* keys = reinterpret_cast<uint32_t*>(choose_scratch + 1);
    stage(group, shown, n, keys);
    choose_from(keys, keys + own);
  } else {
    choose_from(FreshKeys{shown}, FreshKeys{shown + own});
  }
}

// A patch's part of a row of the output, by one warp: its token's index with the first of them, and
// the patch itself or, where there is none, zeros.
template <int kPictures>
__device__ __forceinline__ void write_patch(const LaunchParams<kPictures>& params,
                                            const WarpGroup& warp, int64_t row, int32_t piece,
                                            int64_t index, const char* patch) {
  if (piece == 0 && warp.rank() == 0) params.output.indices[row] = index;
  const int64_t bytes = params.features.row_bytes;
  char* tokens = static_cast<char*>(params.output.tokens);
  gather_patch(warp, patch, bytes, tokens + (row * params.rules.block() + piece) * bytes);
}

// Shared memory: masks [C, mask_words(M)] of the sub-images in the same row of the grid (or of the
// partition alone), counts [1 + R * C] of those partitions that come before.
template <int kPictures>
__device__ __forceinline__ void gather_job(const LaunchParams<kPictures>& params, int32_t job,
                                           PictureCounters* counters, char* shared,
                                           const BlockGroup& group) {
  const Rules& rules = params.rules;
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
  uint32_t* counts = masks + C * words;
  const uint32_t* mask_source = params.workspace.kept + int64_t{p - c} * words;
  const auto* count_source =
      reinterpret_cast<const uint32_t*>(params.output.counts + picture.first_partition);
  const int32_t first_count = ask_full ? 0 : 1;
  const int32_t staged = C * words + (ask_sub ? 1 + n : 1) - first_count;
  for (int32_t i = group.rank(); i < staged; i += group.size()) {
    const int32_t counted = i - C * words + first_count;
    const bool is_mask = i < C * words;
    (is_mask ? masks + i : counts + counted)[0] =
        load_fresh(is_mask ? mask_source + i : count_source + 2 * counted);
  }
  group.sync();

  const WarpGroup warp = group.team();
  const int32_t first = chunk * group.teams() + group.team_index(), step = chunks * group.teams();
  const int32_t block = rules.block();
  const Features& features = params.features;
  const auto* source = static_cast<const char*>(features.data);
  const int64_t base =
      base_row(rules, picture, partition, ask_full ? counts[0] : picture.full_budget, counts + 1);
  const int32_t pieces = static_cast<int32_t>(counts[partition]) * block;
  for (int32_t i = first; i < pieces; i += step) {
    const int32_t kept = block > 1 ? i / block : i, piece = i - kept * block;
    const int32_t t = kept_patch(warp, masks + c * words, words, kept);
    const int32_t shift = raster ? row_shift(warp, masks, words, side, C, c, t / side) : 0;
    write_patch(params, warp, base + kept + shift, piece, int64_t{p} * T + t,
                patch_at(source, features.stride_p_bytes, features.stride_t_bytes, p,
                         patch_of(rules, t, piece)));
  }
  if (rules.policy != Policy::kPublished || !full) return;
  // Rows that the picture owns and does not fill.
  if (n > 0) wait_for(&counters[b].chosen_sub, static_cast<uint32_t>(n), "chosen_sub", b);
  int64_t filled = picture.full_budget;
  for (int32_t i = 1; i <= n; ++i) filled += load_fresh(count_source + 2 * i);
  for (int64_t i = filled + first; i < picture.output_rows; i += step) {
    write_patch(params, warp, picture.first_row + i, 0, -1, nullptr);
  }
}

// Turns the sets of counters for the next launch: by the block that has drawn the last ticket, so
// that nobody draws one any more.
__device__ __forceinline__ void turn(Counters* counters, uint32_t set, const BlockGroup& group) {
  if (group.rank() == 0) counters->tickets = set ^ kOtherSet;
  auto* other = reinterpret_cast<uint4*>(counters->sets[set == 0 ? 1 : 0]);
  constexpr int kFours = sizeof(PictureCounters) * kLargeBatch / sizeof(uint4);
  for (int i = group.rank(); i < kFours; i += group.size()) other[i] = make_uint4(0, 0, 0, 0);
}

// Every block: draw a ticket, do that job.
template <class Scalar, class Source, int kPictures>
__global__ void __launch_bounds__(kThreads, Source::kQueries ? kQueriesBlocksPerSm : kBlocksPerSm)
    select_kernel(const HIRED_GRID_CONSTANT LaunchParams<kPictures> params) {
  char* shared = shared_memory();
  auto* ticket = reinterpret_cast<uint32_t*>(shared);
  const BlockGroup group(ticket + 4);
  shared += (4 + BlockGroup::kScratch) * sizeof(uint32_t);
  Counters* all = params.workspace.counters;
  if (threadIdx.x == 0) *ticket = atomicAdd(&all->tickets, 1u);
  __syncthreads();
  const uint32_t set = *ticket & kOtherSet;
  auto job = static_cast<int32_t>(*ticket & ~kOtherSet);
#ifdef HIRED_SPIN_LIMIT
  if (threadIdx.x == 0 && (*ticket & ~kOtherSet) >= gridDim.x) {
    give_up("tickets", 0, *ticket & ~kOtherSet, gridDim.x - 1);
  }
#endif
  if (job == static_cast<int32_t>(gridDim.x) - 1) turn(all, set, group);
  PictureCounters* counters = all->sets[set == 0 ? 0 : 1];
  const bool pooled = params.rules.policy == Policy::kPooled;
  int32_t heads = Source::kKeys ? params.init_jobs + params.partitions * params.H : 0;
  if constexpr (Source::kQueries) {
    heads = params.init_jobs + params.partitions * params.H * params.final_runs;
  }
  if (job < heads) {
    if constexpr (Source::kQueries) {
      queries_job<Scalar>(params, job, counters, shared, group);
    } else if constexpr (Source::kKeys) {
      heads_job<Scalar>(params, job, counters, shared, group);
    }
  } else if ((job -= heads) < params.weigh_jobs) {
    if (pooled) {
      score_job<Scalar, Source>(params, params.first_partition + job, counters, shared, group);
    } else {
      weigh_job<Scalar, Source>(params, job, counters, shared, group);
    }
  } else if ((job -= params.weigh_jobs) < params.partitions) {
    if (pooled) {
      choose_pooled_job(params, params.first_partition + job, counters, shared, group);
    } else {
      choose_job<Scalar, Source>(params, params.first_partition + job, counters, shared, group);
    }
  } else {
    gather_job(params, job - params.partitions, counters, shared, group);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
