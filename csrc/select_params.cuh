// SPDX-License-Identifier: Apache-2.0
//
// What a launch of select_kernel is given: numbers of the call, and its pictures, which are sent
// along as parameters.
#pragma once

#include "device.cuh"
#include "select.h"
#include "select_cuda.h"

namespace hired {
inline namespace HIRED_ISA {

// What scores come from, and whether tokens may be blocks of patches. Rows alone are told apart by
// that: on sm_75, sm_80 and sm_90 a multiprocessor then holds three blocks of them, and else two.
struct FromRows {  // select, merge = 1
  static constexpr bool kKeys = false, kQueries = false, kMerges = false;
};
struct FromMergedRows {  // select, merge > 1
  static constexpr bool kKeys = false, kQueries = false, kMerges = true;
};
struct FromOneQuery {  // select_qk, Q = 1 in both layers
  static constexpr bool kKeys = true, kQueries = false, kMerges = true;
};
struct FromQueries {  // select_qk, more in one of them at least
  static constexpr bool kKeys = true, kQueries = true, kMerges = true;
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

// The call's rules, of which the compiler knows what the source says.
template <class Source, int kPictures>
__device__ __forceinline__ Rules rules_of(const LaunchParams<kPictures>& params) {
  Rules rules = params.rules;
  if constexpr (!Source::kMerges) rules.merge = 1;
  return rules;
}

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

}  // namespace HIRED_ISA
}  // namespace hired
