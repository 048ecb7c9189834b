// SPDX-License-Identifier: Apache-2.0
//
// Queries and keys of a ViT layer, as plain pointers and strides in elements: what
// attention is computed from, for hired::select_qk and hired::cls_attention.
#pragma once

#include <cstdint>

namespace hired {

struct QueriesKeys {
  const void* query;  // [rows, Q, H, Dh]
  const void* key;    // [rows, N, H, Dh]
  int64_t rows, Q;
  int64_t query_stride_row, query_stride_q, query_stride_h;
  int64_t key_stride_row, key_stride_n, key_stride_h;
};

// What the heads of a call have in common.
struct Heads {
  int64_t H, N, Dh;
  float scale;
};

}  // namespace hired
