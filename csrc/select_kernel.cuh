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

#include "select_jobs.cuh"
#include "select_params.cuh"
#include "select_scores.cuh"

namespace hired {
inline namespace HIRED_ISA {

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
    gather_job<Source>(params, job - params.partitions, counters, shared, group);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
