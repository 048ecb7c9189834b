// SPDX-License-Identifier: Apache-2.0
//
// A call of hired::cls_attention, checked: what every launcher takes. For each of H heads of P rows
// the softmax of query . key * scale over all N keys, its last T columns, the mean of Q queries.
#pragma once

#include <cstdint>

#include "queries_keys.h"
#include "scalar.h"

namespace hired {

struct ClsAttentionCall {
  int64_t P, T;
  Dtype dtype;  // of the queries and keys
  Heads heads;
  QueriesKeys layer;  // P rows
  float* attention;   // [P, H, T]
};

}  // namespace hired
