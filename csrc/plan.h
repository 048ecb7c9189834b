// SPDX-License-Identifier: Apache-2.0
//
// The host's part of a call: the integer arguments are checked and become one Picture each. All of
// it is a pure function of integers and alpha, so K is known before any data is.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "picture.h"
#include "status.h"

namespace hired {

// The largest sizes a backend serves.
struct Limits {
  const char* backend;
  int64_t partitions;  // P
  int64_t tokens;      // T
  int64_t sub_images;  // R * C of a picture
  int64_t queries;     // Q
  int64_t keys;        // N
  int64_t heads;       // H
  int64_t head_width;  // Dh
};

inline constexpr Limits kCpuLimits = {"cpu",   1 << 24, 1 << 20, 1 << 10,
                                      1 << 21, 1 << 21, 1 << 12, 1 << 20};

struct Integers {
  const std::vector<int64_t>& grids;    // R, C of each picture
  const std::vector<int64_t>& budgets;  // tokens to keep of each picture
  double alpha;
  const std::optional<std::vector<int64_t>>& crops;  // top, bottom, left, right of each picture
  const std::string& policy;
  const std::string& order;
  int64_t merge;
};

struct Plan {
  Rules rules;
  std::vector<Picture> pictures;
  int64_t output_rows = 0;  // K
  int32_t init_rows = 0;    // pictures whose initial layer is read
};

// int(count * alpha) of the double, clamped to [0, count] before it is narrowed.
int64_t first_share(int64_t count, double alpha);

// Checks `integers` against P partitions of T tokens, and fills `plan`.
Status make_plan(const Integers& integers, int64_t P, int64_t T, const Limits& limits, Plan* plan);

}  // namespace hired
