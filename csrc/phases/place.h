// SPDX-License-Identifier: Apache-2.0
//
// Which row of the output a kept patch takes: the full image's in index order, then the sub-images'
// one after the other, or in raster order over the assembled grid, as LLaVA-NeXT packs them. A
// partition needs to know of the others only how many patches they keep, in all or a patch row.
#pragma once

#include "../group.h"
#include "../picture.h"
#include "choose.h"
#include "region.h"

namespace hired {
inline namespace HIRED_ISA {

// kept: the partition's kept patches in index order; row_counts [side]: how many of them in each
// patch row, unless null. partition 0 is the full image. Returns their number.
template <class Group>
HIRED_FN int32_t list_kept(const Group& group, const Rules& rules, const Picture& picture,
                           int32_t partition, const uint32_t* keys, const Cut& cut, int32_t* kept,
                           uint32_t* row_counts) {
  const int32_t side = rules.side;
  // Under `published` padding takes part in the choice, and is dropped from what was chosen.
  const bool drop = rules.policy == Policy::kPublished && partition > 0 && !is_whole(picture, side);
  const Box box = drop ? sub_image_box(picture, side, partition - 1) : Box{};
  if (row_counts != nullptr) {
    for (int32_t y = group.rank(); y < side; y += group.size()) row_counts[y] = 0;
    group.sync();
  }
  return compact(
      group, rules.tokens,
      [&](int32_t t) { return cut.keeps(keys[t], t) && (!drop || box.holds(t / side, t % side)); },
      [&](int32_t t, int32_t position) {
        kept[position] = t;
        if (row_counts != nullptr) group.add(&row_counts[t / side], 1);
      });
}

// shifts [side]: what is added to a patch's position in its sub-image to give its place among all
// kept patches of the sub-images in raster order. row_counts [C, side] are those of the sub-images
// in the same row of the grid, counts [R * C].
template <class Group>
HIRED_FN void raster_shifts(const Group& group, const Picture& picture, int32_t side,
                            int32_t sub_image, const uint32_t* row_counts, const int64_t* counts,
                            int32_t* shifts) {
  const int32_t C = picture.cols, r = sub_image / C, c = sub_image % C;
  uint32_t passed = 0;
  for (int32_t i = 0; i < r * C; ++i) passed += static_cast<uint32_t>(counts[i]);
  for (int32_t base = 0; base < side; base += group.size()) {
    const int32_t y = base + group.rank();
    uint32_t left = 0, others = 0;  // kept in patch row y: left of this sub-image; beside it
    for (int32_t j = 0; j < C && y < side; ++j) {
      const uint32_t count = j == c ? 0 : row_counts[int64_t{j} * side + y];
      others += count;
      left += j < c ? count : 0;
    }
    uint32_t total;
    const uint32_t above = passed + group.exclusive_sum(others, &total);
    if (y < side) shifts[y] = static_cast<int32_t>(above + left);
    passed += total;
  }
  group.sync();
}

// The output row from which a partition's kept patches count: to it, a patch adds its position in
// the partition and, where `raster`, the shift of its patch row. counts [1 + R * C].
HIRED_FN int64_t base_row(const Picture& picture, int32_t partition, const int64_t* counts,
                          bool raster) {
  int64_t row = picture.first_row;
  for (int32_t i = 0; i < (raster ? 1 : partition); ++i) row += counts[i];
  return row;
}

// Rows of the output that a picture fills; what it owns beyond them (`published` only) is empty.
HIRED_FN int64_t filled_rows(const Picture& picture, const int64_t* counts) {
  int64_t filled = 0;
  for (int32_t i = 0; i <= picture.sub_images(); ++i) filled += counts[i];
  return filled;
}

}  // namespace HIRED_ISA
}  // namespace hired
