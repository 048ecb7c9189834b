// SPDX-License-Identifier: Apache-2.0
//
// hired::cls_attention as one kernel launch, on every GPU from sm_61 on.
//
// Grid: P * H blocks; a block owns a head of a row and its T columns of the output. Blocks know
// nothing of each other: no counters, no workspace. The arithmetic is that of the heads of
// hired::select_qk: attend(), or attend_run() for one job after the other, each of which adds
// to what the one before has left in the output.
//
// Bytes of one query: every key once, every element of the output once. Shared memory holds the
// logits, so that N is limited as there.
#pragma once

#include "queries.cuh"

namespace hired {
inline namespace HIRED_ISA {

struct ClsAttentionParams {
  DeviceHeads heads;
  QueriesKeys layer;
  int32_t key_lanes;  // as attend() has them
  int32_t T;
  float* attention;  // [P, H, T]
};

template <class Scalar, bool kQueries>
__global__ void __launch_bounds__(kThreads, kQueries ? kQueriesBlocksPerSm : kBlocksPerSm)
    cls_attention_kernel(const HIRED_GRID_CONSTANT ClsAttentionParams params) {
  char* shared = shared_memory();
  const BlockGroup group(reinterpret_cast<uint32_t*>(shared));
  auto* logits = reinterpret_cast<float*>(shared + BlockGroup::kScratch * sizeof(uint32_t));
  const int64_t head = blockIdx.x;
  const auto row = static_cast<int32_t>(head / params.heads.H);
  const auto h = static_cast<int32_t>(head % params.heads.H);
  float* attention = params.attention + head * params.T;
  if constexpr (kQueries) {
    set_run<Scalar>(params.heads, params.layer, params.key_lanes != 0, row, h, /*first=*/0,
                    kMaxJobs, params.T, reinterpret_cast<char*>(logits),
                    static_cast<float>(params.layer.Q), attention);
    attend_run<Scalar>(params.heads.N, reinterpret_cast<char*>(logits));
  } else {
    attend<Scalar>(params.heads, params.layer, params.key_lanes, row, h, params.T, logits, group,
                   attention);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
