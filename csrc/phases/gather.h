// SPDX-License-Identifier: Apache-2.0
//
// Kept tokens, copied as bytes whatever their dtype: each read once and written once.
#pragma once

#include "../group.h"
#include "../picture.h"

namespace hired {
inline namespace HIRED_ISA {

// A patch of features [P, T, D], whose strides are in bytes.
HIRED_FN const char* patch_at(const char* features, int64_t stride_p, int64_t stride_t, int64_t p,
                              int32_t t) {
  return features + p * stride_p + t * stride_t;
}

// Of token m, its i-th patch in raster order, among the T of a partition.
HIRED_FN int32_t patch_of(const Rules& rules, int32_t m, int32_t i) {
  const int32_t g = rules.merge;
  if (g == 1) return m;
  return (m / rules.side * g + i / g) * (rules.side * g) + m % rules.side * g + i % g;
}

// A patch's part of a row of the output, `bytes` long: zeros where there is none (null).
template <class Group>
HIRED_FN void gather_patch(const Group& group, const char* patch, int64_t bytes, char* to) {
  if (patch == nullptr) {
    group.zero(to, bytes);
  } else {
    group.copy(to, patch, bytes);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
