// SPDX-License-Identifier: Apache-2.0
//
// What the phases know of a picture and of the rules that hold for the whole call: plain numbers,
// worked out on the host by plan.cpp, small enough to travel as kernel parameters.
#pragma once

#include <cstdint>

#include "group.h"

namespace hired {

enum class Policy : int32_t { kExact, kPublished, kPooled };
enum class Order : int32_t { kRaster, kPartition, kFullLast };

// A token is a block of merge x merge patches. Where merge is 1, tokens and patches are the same,
// and phases that know of tokens alone call them patches.
struct Rules {
  int32_t tokens;   // M = T / merge^2, tokens of a partition
  int32_t side;     // isqrt(M), tokens a side; M = side * side wherever a phase reads it
  int32_t merge;    // g, patches a side of a token
  int32_t counted;  // int(M * (1 - alpha)): best tokens of the full image that make the weights
  Policy policy;
  Order order;

  HIRED_FN int32_t block() const { return merge * merge; }       // patches of a token
  HIRED_FN int32_t patches() const { return tokens * block(); }  // T
};

struct Picture {
  int64_t first_row;                 // of the output
  int32_t first_partition;           // the full image; its sub-images follow row-major
  int32_t rows, cols;                // R, C; 0, 0 without sub-images
  int32_t full_budget;               // k0, what the full image keeps; not under `pooled`
  int32_t rest;                      // what the sub-images share; 0 under `pooled`
  int32_t output_rows;               // rows of the output that the picture owns
  int32_t top, bottom, left, right;  // what is picture, in tokens of the assembled grid
  int32_t init_row;  // where rest > 0: among the pictures whose initial layer is read

  HIRED_FN int32_t sub_images() const { return rows * cols; }
};

inline namespace HIRED_ISA {

// Words of what is kept of T tokens: token t is bit t % 32 of word t / 32.
HIRED_FN int32_t mask_words(int32_t T) {
  return (T + 31) / 32;
}

}  // namespace HIRED_ISA
}  // namespace hired
