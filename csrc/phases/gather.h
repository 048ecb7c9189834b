// SPDX-License-Identifier: Apache-2.0
//
// Kept tokens, copied as bytes whatever their dtype: each read once and written once.
#pragma once

#include "../group.h"

namespace hired {
inline namespace HIRED_ISA {

HIRED_FN const char* feature_row(const char* features, int64_t stride_p, int64_t stride_t,
                                 int32_t T, int64_t index) {
  return features + index / T * stride_p + index % T * stride_t;
}

// features [P, T, D] with strides in bytes and unit stride in D; one row of the output, `bytes`
// long. Index -1 gives zeros.
template <class Group>
HIRED_FN void gather_row(const Group& group, const char* features, int64_t stride_p,
                         int64_t stride_t, int32_t T, int64_t index, int64_t bytes, char* row) {
  if (index < 0) {
    group.zero(row, bytes);
  } else {
    group.copy(row, feature_row(features, stride_p, stride_t, T, index), bytes);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
