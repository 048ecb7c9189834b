// SPDX-License-Identifier: Apache-2.0
//
// A call of hired::select or hired::select_qk as plain pointers and strides (in elements, unless a
// name says bytes), checked: what every launcher takes.
#pragma once

#include <cstdint>

#include "plan.h"
#include "queries_keys.h"
#include "scalar.h"

namespace hired {

struct Features {  // [P, T, D]
  const void* data;
  int64_t stride_p_bytes, stride_t_bytes;
  int64_t row_bytes;  // D elements
};

struct Output {
  void* tokens;      // [K, D]
  int64_t* indices;  // [K]
  int64_t* counts;   // [P]
};

// Rows of scores to come. `rows` is P, one a partition, or B, one a picture (initial layer only).
struct Attention {  // [rows, H, T]
  const void* data;
  int64_t rows;
  int64_t stride_row, stride_h, stride_t;
};

struct Call {
  const Plan* plan;
  int64_t P;
  Dtype dtype;  // of the attention rows, or of the queries and keys
  int64_t H;
  Features features;
  Output output;
};

struct SelectCall : Call {
  Attention init, final;
};

struct SelectQkCall : Call {
  int64_t N, Dh;
  float scale;
  QueriesKeys init, final;
};

}  // namespace hired
