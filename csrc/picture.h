// SPDX-License-Identifier: Apache-2.0
//
// What the phases know of a picture and of the rules that hold for the whole call: plain numbers,
// worked out on the host by plan.cpp, small enough to travel as kernel parameters.
#pragma once

#include <cstdint>

#include "group.h"

namespace hired {

enum class Policy : int32_t { kExact, kPublished };
enum class Order : int32_t { kRaster, kPartition };

struct Rules {
  int32_t tokens;   // T, patch tokens of a partition
  int32_t side;     // isqrt(T), patches a side; T = side * side wherever a phase reads it
  int32_t counted;  // int(T * (1 - alpha)): best patches of the full image that make the weights
  Policy policy;
  Order order;
};

struct Picture {
  int64_t first_row;                 // of the output
  int32_t first_partition;           // the full image; its sub-images follow row-major
  int32_t rows, cols;                // R, C; 0, 0 without sub-images
  int32_t full_budget;               // k0, what the full image keeps
  int32_t rest;                      // what the sub-images share
  int32_t output_rows;               // rows of the output that the picture owns
  int32_t top, bottom, left, right;  // what is picture, in patches of the assembled grid
  int32_t init_row;  // where rest > 0: among the pictures whose initial layer is read

  HIRED_FN int32_t sub_images() const { return rows * cols; }
};

inline namespace HIRED_ISA {

// Words of what is kept of T patches: patch t is bit t % 32 of word t / 32.
HIRED_FN int32_t mask_words(int32_t T) {
  return (T + 31) / 32;
}

}  // namespace HIRED_ISA
}  // namespace hired
