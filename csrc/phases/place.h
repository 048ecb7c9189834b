// SPDX-License-Identifier: Apache-2.0
//
// What a partition keeps, as a mask of T bits, and which row of the output each kept patch takes:
// the full image's in index order, then the sub-images' one after the other, or in raster order
// over the assembled grid, as LLaVA-NeXT packs them; or the full image's behind the others. Where
// patches are merged, patches here are tokens, and T is M. Positions are counts of bits, so that
// masks are all that partitions have to know of each other: 72 bytes of one with 576 patches.
#pragma once

#include "../bits.h"
#include "../group.h"
#include "../picture.h"
#include "choose.h"
#include "region.h"

namespace hired {
inline namespace HIRED_ISA {

// mask [mask_words(T)]: what the partition keeps of its keys [T] by a cut, which keeps k of them
// but under `pooled`. partition 0 is the full image. Returns their number.
template <class Group, class Keys>
HIRED_FN int32_t mark_kept(const Group& group, const Rules& rules, const Picture& picture,
                           int32_t partition, const Keys& keys, const Cut& cut, int32_t k,
                           uint32_t* mask) {
  const int32_t T = rules.tokens, side = rules.side;
  // Under `published` padding takes part in the choice, and is dropped from what was chosen.
  const bool drops =
      rules.policy == Policy::kPublished && partition > 0 && !is_whole(picture, side);
  if (!drops && rules.policy != Policy::kPooled) {
    group.mark(T, [&](int32_t t) { return cut.keeps(keys[t], t); }, mask);
    return k;
  }
  const Box box = drops ? sub_image_box(picture, side, partition - 1) : Box{0, side, 0, side};
  const uint32_t marked = group.mark(
      T,
      [&](int32_t t) { return cut.keeps(keys[t], t) && (!drops || box.holds(t / side, t % side)); },
      mask);
  uint32_t all;
  group.exclusive_sum(marked, &all);
  return static_cast<int32_t>(all);
}

// How many of the patches [begin, end) are kept.
HIRED_FN uint32_t kept_between(const uint32_t* mask, int32_t begin, int32_t end) {
  uint32_t kept = 0;
  for (int32_t first = begin / 32 * 32; first < end; first += 32) {
    const uint32_t before = first < begin ? low_bits(begin - first) : 0;
    kept += popcount(mask[first / 32] & low_bits(end - first) & ~before);
  }
  return kept;
}

// The i-th kept patch of mask [words].
template <class Team>
HIRED_FN int32_t kept_patch(const Team& team, const uint32_t* mask, int32_t words, int32_t i) {
  uint32_t passed = 0;
  for (int32_t base = 0;; base += team.size()) {
    const int32_t w = base + team.rank();
    const uint32_t word = w < words ? mask[w] : 0;
    const uint32_t kept = popcount(word);
    uint32_t total;
    const uint32_t skipped = static_cast<uint32_t>(i) - passed - team.exclusive_sum(kept, &total);
    passed += total;
    if (static_cast<uint32_t>(i) >= passed) continue;
    return team.from(skipped < kept, 32 * w + nth_bit(word, skipped));
  }
}

// What is added to the position of patches in row y of sub-image (r, c), among those that it keeps,
// to give their place among all kept patches of the r-th row of the grid in raster order. masks
// [C, words] are those of that row.
template <class Team>
HIRED_FN int32_t row_shift(const Team& team, const uint32_t* masks, int32_t words, int32_t side,
                           int32_t C, int32_t c, int32_t y) {
  uint32_t ahead = 0;  // in the other sub-images: rows above, and row y where they lie to the left
  for (int32_t j = 0; j < C; ++j) {
    const int32_t end = j == c ? 0 : (j < c ? y + 1 : y) * side;
    for (int32_t w = team.rank(); 32 * w < end; w += team.size()) {
      ahead += popcount(masks[j * words + w] & low_bits(end - 32 * w));
    }
  }
  return static_cast<int32_t>(team.sum(ahead));
}

// The output row from which a partition's kept patches count: to it, a patch adds its position in
// the partition and, under `raster`, the shift of its patch row. counts [1 + R * C]: how many each
// partition keeps, of which only those that come before are asked.
template <class Count>
HIRED_FN int64_t base_row(const Rules& rules, const Picture& picture, int32_t partition,
                          const Count* counts) {
  const bool last = rules.order == Order::kFullLast;
  int32_t before = partition - 1;  // sub-images, of which all that is kept comes first
  if (partition == 0) {
    before = last ? picture.sub_images() : 0;
  } else if (rules.order == Order::kRaster) {
    before = before / picture.cols * picture.cols;
  }
  int64_t row = picture.first_row;
  if (!last && partition > 0) row += counts[0];
  for (int32_t i = 0; i < before; ++i) row += counts[1 + i];
  return row;
}

}  // namespace HIRED_ISA
}  // namespace hired
