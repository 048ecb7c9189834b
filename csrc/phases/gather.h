// SPDX-License-Identifier: Apache-2.0
//
// Kept tokens, copied as bytes whatever their dtype: each read once and written once.
#pragma once

#include "../group.h"

namespace hired {
inline namespace HIRED_ISA {

// A token of features [P, T, D], whose strides are in bytes.
HIRED_FN const char* token_at(const char* features, int64_t stride_p, int64_t stride_t, int64_t p,
                              int32_t t) {
  return features + p * stride_p + t * stride_t;
}

// One row of the output, `bytes` long: the token, or zeros where there is none (null).
template <class Group>
HIRED_FN void gather_row(const Group& group, const char* token, int64_t bytes, char* row) {
  if (token == nullptr) {
    group.zero(row, bytes);
  } else {
    group.copy(row, token, bytes);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
