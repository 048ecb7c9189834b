// SPDX-License-Identifier: Apache-2.0
//
// hired::cls_attention as one kernel launch, on every GPU from sm_61 on.
//
// Grid: P * H blocks; a block owns a head of a row and its T columns of the output. Blocks know
// nothing of each other: no counters, no workspace. The arithmetic is attend(), that of the heads
// of hired::select_qk.
//
// Bytes: every key once, every element of the output once. Shared memory holds the logits, so that
// N is limited as there.
#pragma once

#include "heads.cuh"

namespace hired {
inline namespace HIRED_ISA {

struct ClsAttentionParams {
  DeviceHeads heads;
  QueriesKeys layer;
  int32_t key_lanes;  // as attend() has them
  int32_t T;
  float* attention;  // [P, H, T]
};

template <class Scalar>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    cls_attention_kernel(const HIRED_GRID_CONSTANT ClsAttentionParams params) {
  char* shared = shared_memory();
  const BlockGroup group(reinterpret_cast<uint32_t*>(shared));
  auto* logits = reinterpret_cast<float*>(shared + BlockGroup::kScratch * sizeof(uint32_t));
  const int64_t head = blockIdx.x;
  const auto row = static_cast<int32_t>(head / params.heads.H);
  const auto h = static_cast<int32_t>(head % params.heads.H);
  attend<Scalar>(params.heads, params.layer, params.key_lanes, row, h, params.T, logits, group,
                 params.attention + head * params.T);
}

}  // namespace HIRED_ISA
}  // namespace hired
