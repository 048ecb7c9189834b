// SPDX-License-Identifier: Apache-2.0
//
// Workspace of attention heads on a CPU: where queries are widened and logits become attention.
#pragma once

#include <cstdint>

#include "arena.h"
#include "queries_keys.h"

namespace hired {

inline constexpr int64_t kMaxLanes = 16;  // floats of the widest vector of any instruction set

struct HeadSpace {
  int64_t logit_stride;  // N, padded to whole vectors and one more
  float* logits;         // [rows, H, logit_stride]
  int64_t query_stride;  // Dh, padded to whole vectors
  float* queries;        // [rows, H, query_stride]
};

inline int64_t padded(int64_t count) {
  return (count + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}

inline HeadSpace carve_heads(const Heads& heads, int64_t rows, Arena* arena) {
  HeadSpace space{};
  // Lanes are read from any of the last T logits on, up to one lane's width past the end.
  space.logit_stride = padded(heads.N) + kMaxLanes;
  space.logits = arena->take<float>(rows * heads.H * space.logit_stride);
  space.query_stride = padded(heads.Dh);
  space.queries = arena->take<float>(rows * heads.H * space.query_stride);
  return space;
}

}  // namespace hired
