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
// kept patches of the sub-images in raster order. row_counts [R * C, side], counts [R * C].
template <class Group>
HIRED_FN void raster_shifts(const Group& group, const Picture& picture, int32_t side,
                            int32_t sub_image, const uint32_t* row_counts, const int64_t* counts,
                            int32_t* shifts) {
  const int32_t C = picture.cols, r = sub_image / C, c = sub_image % C;
  uint32_t passed = 0;
  for (int32_t i = 0; i < r * C; ++i) passed += static_cast<uint32_t>(counts[i]);
  const uint32_t* band = row_counts + int64_t{r} * C * side;  // sub-images of the same row
  for (int32_t base = 0; base < side; base += group.size()) {
    const int32_t y = base + group.rank();
    uint32_t left = 0, others = 0;  // kept in patch row y: left of this sub-image; beside it
    for (int32_t j = 0; j < C && y < side; ++j) {
      const uint32_t count = j == c ? 0 : band[int64_t{j} * side + y];
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

// Writes the indices p * T + t of one partition's kept patches to their rows of the picture's
// output. counts [1 + R * C]; shifts [side] for a sub-image under raster order, null otherwise.
template <class Group>
HIRED_FN void place(const Group& group, const Rules& rules, const Picture& picture,
                    int32_t partition, const int32_t* kept, const int64_t* counts,
                    const int32_t* shifts, int64_t* indices) {
  const int64_t base = int64_t{picture.first_partition + partition} * rules.tokens;
  int64_t row = picture.first_row + (shifts != nullptr ? counts[0] : 0);
  for (int32_t i = 0; i < partition && shifts == nullptr; ++i) row += counts[i];
  for (int64_t i = group.rank(); i < counts[partition]; i += group.size()) {
    const int32_t t = kept[i];
    indices[row + i + (shifts != nullptr ? shifts[t / rules.side] : 0)] = base + t;
  }
}

// Rows that the picture owns and does not fill (`published` only) take index -1.
template <class Group>
HIRED_FN void place_nothing(const Group& group, const Picture& picture, const int64_t* counts,
                            int64_t* indices) {
  int64_t filled = 0;
  for (int32_t i = 0; i <= picture.sub_images(); ++i) filled += counts[i];
  for (int64_t i = filled + group.rank(); i < picture.output_rows; i += group.size()) {
    indices[picture.first_row + i] = -1;
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
