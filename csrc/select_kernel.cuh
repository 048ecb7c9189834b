// SPDX-License-Identifier: Apache-2.0
//
// hired::select and hired::select_qk as one kernel launch, on every GPU from sm_61 on.
//
// Grid: one block a job, four kinds of them, in this order:
//   heads   (select_qk) one head of one score row: N dot products, softmax, T probabilities, which
//           stand in the workspace as attention rows do in `select`
//   weigh   one picture: scores of its full image at the initial layer, budgets of its partitions
//   choose  one partition: scores at the final layer, its top-k as a list and as counts
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
// Counters return to zero: the last block to leave clears them for the next launch.
//
// Bytes: every key or attention element once, every kept token read and written once; beside them
// H * T probabilities a score row (select_qk), 2 * T words a partition, all within the L2.
#pragma once

#include "device.cuh"
#include "heads.cuh"
#include "phases/allocate.h"
#include "phases/choose.h"
#include "phases/gather.h"
#include "phases/place.h"
#include "phases/region.h"
#include "phases/score.h"
#include "select.h"
#include "select_cuda.h"

namespace hired {
inline namespace HIRED_ISA {

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
  int32_t full_blocks, sub_blocks;      // gather jobs of a full image, of a sub-image
  int32_t key_lanes_init, key_lanes_final;  // as attend() has them
  Picture pictures[kPictures];
};

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

// Shared memory: attend()'s. Returns whether there was anything to do.
template <class Scalar, int kPictures>
__device__ __forceinline__ bool heads_job(const LaunchParams<kPictures>& params, int32_t job,
                                          char* shared, const BlockGroup& group) {
  const bool init = job < params.init_jobs;
  if (!init) job -= params.init_jobs;
  const int32_t row = job / params.H, h = job % params.H;
  const int32_t p = params.first_partition + row;  // final layer
  const int32_t b = init ? row : picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  auto& counters = params.workspace.counters->picture[b];
  if (init && picture.rest == 0) return false;  // nobody will ask

  const QueriesKeys& layer = init ? params.keys_init : params.keys_final;
  const int64_t call_picture = params.first_picture + b;
  const int64_t init_index = layer.rows == params.P ? picture.first_partition : call_picture;
  const int64_t index = init ? init_index : p;
  const int64_t score_row = init ? params.P + picture.init_row : p;
  attend<Scalar>({params.H, params.N, params.Dh, params.scale}, layer,
                 init ? params.key_lanes_init : params.key_lanes_final, index, h,
                 params.rules.tokens, shared, group,
                 params.workspace.probabilities + (score_row * params.H + h) * params.rules.tokens);
  arrive(init ? &counters.heads_init : &counters.heads_final);
  return true;
}

// keys [T] in shared memory of one score row, waiting for its heads if they are being computed.
template <class Scalar, bool kFromKeys, int kPictures>
__device__ __forceinline__ void score_row(const LaunchParams<kPictures>& params, int32_t b,
                                          bool init, int64_t p, const BlockGroup& group,
                                          uint32_t* keys) {
  const int32_t H = params.H, T = params.rules.tokens;
  const Picture& picture = params.pictures[b];
  const int64_t call_picture = params.first_picture + b;
  if constexpr (kFromKeys) {
    auto& counters = params.workspace.counters->picture[b];
    const auto heads = static_cast<uint32_t>(H);
    if (init) {
      wait_for(&counters.heads_init, heads, "heads_init", b);
    } else {
      const uint32_t all = heads * static_cast<uint32_t>(1 + picture.sub_images());
      wait_for(&counters.heads_final, all, "heads_final", b);
    }
    const int64_t row = init ? params.P + picture.init_row : p;
    score_attention(group, params.workspace.probabilities + row * H * T, T, 1, H, T, keys);
  } else {
    const Attention& layer = init ? params.attention_init : params.attention_final;
    const int64_t init_row = layer.rows == params.P ? picture.first_partition : call_picture;
    const auto* attention =
        static_cast<const Scalar*>(layer.data) + (init ? init_row : p) * layer.stride_row;
    score_attention(group, attention, layer.stride_h, layer.stride_t, H, T, keys);
  }
}

// Shared memory: remainders, weights, capacities [R * C] and budgets [1 + R * C] at their largest,
// ChooseScratch, keys [T].
template <class Scalar, bool kFromKeys, int kPictures>
__device__ __forceinline__ void weigh_job(const LaunchParams<kPictures>& params, int32_t b,
                                          char* shared, const BlockGroup& group) {
  const Picture& picture = params.pictures[b];
  const int32_t n = picture.sub_images();
  auto* remainders = reinterpret_cast<BlockGroup::Wide*>(shared);
  auto* weights = reinterpret_cast<uint32_t*>(remainders + kMaxSubImages);
  auto* capacities = reinterpret_cast<int32_t*>(weights + kMaxSubImages);
  int32_t* budgets = capacities + kMaxSubImages;
  auto* choose_scratch = reinterpret_cast<ChooseScratch*>(budgets + kMaxSubImages + 1);
  auto* keys = reinterpret_cast<uint32_t*>(choose_scratch + 1);
  if (picture.rest > 0) {
    score_row<Scalar, kFromKeys>(params, b, /*init=*/true, 0, group, keys);
  }
  allocate(group, params.rules, picture, keys, choose_scratch, {weights, capacities, remainders},
           budgets);
  group.sync();
  for (int32_t i = group.rank(); i <= n; i += group.size()) {
    params.workspace.budgets[picture.first_partition + i] = budgets[i];
  }
  arrive(&params.workspace.counters->picture[b].weighed);
}

// Shared memory: ChooseScratch, row counts [side], keys [T].
template <class Scalar, bool kFromKeys, int kPictures>
__device__ __forceinline__ void choose_job(const LaunchParams<kPictures>& params, int32_t p,
                                           char* shared, const BlockGroup& group) {
  const Rules& rules = params.rules;
  const int32_t T = rules.tokens, side = rules.side;
  const int32_t b = picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  const int32_t partition = p - picture.first_partition;
  auto& counters = params.workspace.counters->picture[b];
  auto* choose_scratch = reinterpret_cast<ChooseScratch*>(shared);
  auto* row_counts = reinterpret_cast<uint32_t*>(choose_scratch + 1);
  uint32_t* keys = row_counts + side;
  score_row<Scalar, kFromKeys>(params, b, /*init=*/false, p, group, keys);
  if (rules.policy == Policy::kExact && partition > 0 && !is_whole(picture, side)) {
    exclude_padding(group, sub_image_box(picture, side, partition - 1), side, T, keys);
  }
  int32_t budget = picture.full_budget;
  if (partition > 0) {
    wait_for(&counters.weighed, 1, "weighed", b);
    budget = load_fresh(params.workspace.budgets + p);
  }
  const Cut cut = choose(group, keys, T, budget, choose_scratch);
  const bool raster = rules.order == Order::kRaster && partition > 0;
  const int32_t count =
      list_kept(group, rules, picture, partition, keys, cut, params.workspace.kept + int64_t{p} * T,
                raster ? row_counts : nullptr);
  group.sync();
  if (raster) {
    for (int32_t y = group.rank(); y < side; y += group.size()) {
      params.workspace.row_counts[int64_t{p} * side + y] = row_counts[y];
    }
  }
  if (group.rank() == 0) params.output.counts[p] = count;
  arrive(&counters.chosen);
}

// Shared memory: counts [1 + R * C], shifts [side], row counts [C, side] of the sub-images in the
// same row of the grid.
template <int kPictures>
__device__ __forceinline__ void gather_job(const LaunchParams<kPictures>& params, int32_t job,
                                           char* shared, const BlockGroup& group) {
  const Rules& rules = params.rules;
  const int32_t T = rules.tokens, side = rules.side;
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

  wait_for(&params.workspace.counters->picture[b].chosen, static_cast<uint32_t>(1 + n), "chosen",
           b);
  auto* counts = reinterpret_cast<int64_t*>(shared);
  auto* shifts = reinterpret_cast<int32_t*>(counts + n + 1);
  auto* row_counts = reinterpret_cast<uint32_t*>(shifts + side);
  for (int32_t i = group.rank(); i <= n; i += group.size()) {
    counts[i] = load_fresh(params.output.counts + picture.first_partition + i);
  }
  const bool raster = rules.order == Order::kRaster && partition > 0;
  if (raster) {
    const int32_t band = (partition - 1) / picture.cols * picture.cols;
    const uint32_t* source =
        params.workspace.row_counts + int64_t{picture.first_partition + 1 + band} * side;
    for (int32_t i = group.rank(); i < picture.cols * side; i += group.size()) {
      row_counts[i] = load_fresh(source + i);
    }
    group.sync();
    raster_shifts(group, picture, side, partition - 1, row_counts, counts + 1, shifts);
  }
  group.sync();

  const WarpGroup warp;
  const int32_t warps = group.size() / kWarp;
  const int32_t first = chunk * warps + group.rank() / kWarp, step = chunks * warps;
  const Features& features = params.features;
  const auto* source = static_cast<const char*>(features.data);
  auto* tokens = static_cast<char*>(params.output.tokens);
  const auto write = [&](int64_t row, int64_t index, const char* token) {
    if (warp.rank() == 0) params.output.indices[row] = index;
    gather_row(warp, token, features.row_bytes, tokens + row * features.row_bytes);
  };
  const int64_t base = base_row(picture, partition, counts, raster);
  const int32_t* kept = params.workspace.kept + int64_t{p} * T;
  for (int32_t i = first; i < counts[partition]; i += step) {
    const int32_t t = load_fresh(kept + i);
    write(base + i + (raster ? shifts[t / side] : 0), int64_t{p} * T + t,
          token_at(source, features.stride_p_bytes, features.stride_t_bytes, p, t));
  }
  if (partition > 0) return;
  for (int64_t i = filled_rows(picture, counts) + first; i < picture.output_rows; i += step) {
    write(picture.first_row + i, -1, nullptr);
  }
}

// Every block: draw a ticket, do that job, leave; the last to leave clears the counters.
template <class Scalar, bool kFromKeys, int kPictures>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    select_kernel(const HIRED_GRID_CONSTANT LaunchParams<kPictures> params) {
  char* shared = shared_memory();
  auto* ticket = reinterpret_cast<uint32_t*>(shared);
  const BlockGroup group(ticket + 4);
  shared += 16 + kMaxWarps * sizeof(uint32_t);
  Counters& counters = *params.workspace.counters;
  if (threadIdx.x == 0) {
    *ticket = atomicAdd(&counters.tickets, 1u);
#ifdef HIRED_SPIN_LIMIT
    if (*ticket >= gridDim.x) give_up("tickets", 0, *ticket, gridDim.x - 1);
#endif
  }
  __syncthreads();
  auto job = static_cast<int32_t>(*ticket);
  const int32_t heads = kFromKeys ? params.init_jobs + params.partitions * params.H : 0;
  bool arrived = true;
  if (job < heads) {
    if constexpr (kFromKeys) arrived = heads_job<Scalar>(params, job, shared, group);
  } else if ((job -= heads) < params.count) {
    weigh_job<Scalar, kFromKeys>(params, job, shared, group);
  } else if ((job -= params.count) < params.partitions) {
    choose_job<Scalar, kFromKeys>(params, params.first_partition + job, shared, group);
  } else {
    gather_job(params, job - params.partitions, shared, group);
    arrived = false;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (arrived) __threadfence();  // its counter grows before `left` does
    if (atomicAdd(&counters.left, 1u) == gridDim.x - 1) {
      __threadfence();
      for (int32_t b = 0; b < params.count; ++b) counters.picture[b] = {};
      counters.tickets = 0;
      counters.left = 0;
    }
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
