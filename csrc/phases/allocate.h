// SPDX-License-Identifier: Apache-2.0
//
// The picture's budget, shared out among its sub-images by how many of the full image's best
// patches at the initial layer lie in each. Integers throughout under `exact`; the two float32
// roundings of the published code under `published`.
#pragma once

#include "../group.h"
#include "../picture.h"
#include "choose.h"
#include "region.h"

namespace hired {
inline namespace HIRED_ISA {

// weights [R * C]: how many of the patches that `cut` keeps of the full image's initial-layer keys
// [T] fall to each sub-image; by regions under `exact`, by contiguous runs under `published`.
template <class Group>
HIRED_FN void count_weights(const Group& group, const Rules& rules, const Picture& picture,
                            const uint32_t* keys, const Cut& cut, uint32_t* weights) {
  const int32_t n = picture.sub_images();
  for (int32_t i = group.rank(); i < n; i += group.size()) weights[i] = 0;
  group.sync();
  const int32_t run = rules.tokens / n;
  for (int32_t t = group.rank(); t < rules.tokens; t += group.size()) {
    if (!cut.keeps(keys[t], t)) continue;
    const bool runs = rules.policy == Policy::kPublished;
    group.add(&weights[runs ? t / run : sub_image_of<typename Group::Wide>(picture, rules.side, t)],
              1);
  }
  group.sync();
}

// What the members of a group share while they allocate; [R * C] each.
template <class Wide>
struct AllocateScratch {
  uint32_t* weights;
  int32_t* capacities;
  Wide* remainders;
};

// Largest remainder under capacity: shares [n] part `rest` by `weights` [n]; where shares,
// remainders included, exceed their capacity, all such are fixed at it and what remains is parted
// afresh among the others. `rest` is at most the sum of the capacities. A picture has few
// sub-images, so every member walks over all of them rather than wait for a reduction; at most n
// rounds.
template <class Group>
HIRED_FN void share_out(const Group& group, typename Group::Wide rest, int32_t n,
                        const uint32_t* weights, const int32_t* capacities, int32_t* shares,
                        typename Group::Wide* remainders) {
  using Wide = typename Group::Wide;
  constexpr Wide kFixed = -1;  // in place of a remainder
  for (int32_t i = group.rank(); i < n; i += group.size()) remainders[i] = shares[i] = 0;
  group.sync();
  for (;;) {
    Wide weight_sum = 0, capacity_sum = 0;
    for (int32_t i = 0; i < n; ++i) {
      if (remainders[i] == kFixed) continue;
      weight_sum += static_cast<Wide>(weights[i]);
      capacity_sum += capacities[i];
    }
    const Wide sum = weight_sum > 0 ? weight_sum : capacity_sum;
    if (sum == 0) return;  // nothing left to share, and nobody left to take it
    group.sync();
    for (int32_t i = group.rank(); i < n; i += group.size()) {
      if (remainders[i] == kFixed) continue;
      const Wide product = rest * (weight_sum > 0 ? static_cast<Wide>(weights[i]) : capacities[i]);
      shares[i] = static_cast<int32_t>(product / sum);
      remainders[i] = product % sum;
    }
    group.sync();
    Wide left = rest;
    for (int32_t i = 0; i < n; ++i) left -= remainders[i] == kFixed ? 0 : shares[i];
    group.sync();
    for (int32_t i = group.rank(); i < n; i += group.size()) {
      if (remainders[i] == kFixed) continue;
      Wide ahead = 0;  // ties to the lower index
      for (int32_t j = 0; j < n; ++j) {
        ahead += remainders[j] > remainders[i] || (remainders[j] == remainders[i] && j < i);
      }
      shares[i] += ahead < left;
    }
    group.sync();
    bool overflow = false;
    for (int32_t i = 0; i < n; ++i) {
      if (remainders[i] == kFixed || shares[i] <= capacities[i]) continue;
      overflow = true;
      rest -= capacities[i];
    }
    if (!overflow) return;
    group.sync();
    for (int32_t i = group.rank(); i < n; i += group.size()) {
      if (remainders[i] == kFixed || shares[i] <= capacities[i]) continue;
      shares[i] = capacities[i];
      remainders[i] = kFixed;
    }
    group.sync();
  }
}

// The published budgets: each product rounded to float32 twice and truncated; the remainder is
// lost.
template <class Group>
HIRED_FN void share_out_published(const Group& group, int32_t rest, int32_t n, int32_t T,
                                  const uint32_t* weights, int32_t* shares) {
  uint32_t sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += weights[i];
  for (int32_t i = group.rank(); i < n; i += group.size()) {
    const float weight = static_cast<float>(weights[i]) / static_cast<float>(sum);
    const float share = weight * static_cast<float>(rest);
    shares[i] = share < static_cast<float>(T) ? static_cast<int32_t>(share) : T;
  }
  group.sync();
  if (group.rank() == 0) {
    // Rounding up may overrun `rest` where it is beyond 2^22 tokens; the output has no row for
    // that.
    int32_t left = rest;
    for (int32_t i = 0; i < n; ++i) {
      shares[i] = shares[i] < left ? shares[i] : left;
      left -= shares[i];
    }
  }
  group.sync();
}

// budgets [1 + R * C]: what each partition keeps (under `published`, before the crop). keys [T] are
// the full image's at the initial layer; they are read only where sub-images have tokens to share.
template <class Group>
HIRED_FN void allocate(const Group& group, const Rules& rules, const Picture& picture,
                       const uint32_t* keys, ChooseScratch* choose_scratch,
                       const AllocateScratch<typename Group::Wide>& scratch, int32_t* budgets) {
  const int32_t n = picture.sub_images();
  if (group.rank() == 0) budgets[0] = picture.full_budget;
  if (picture.rest == 0) {
    for (int32_t i = group.rank(); i < n; i += group.size()) budgets[1 + i] = 0;
    group.sync();
    return;
  }
  const Cut cut = choose(group, keys, rules.tokens, rules.counted, choose_scratch);
  count_weights(group, rules, picture, keys, cut, scratch.weights);
  if (rules.policy == Policy::kPublished) {
    share_out_published(group, picture.rest, n, rules.tokens, scratch.weights, budgets + 1);
    return;
  }
  for (int32_t i = group.rank(); i < n; i += group.size()) {
    scratch.capacities[i] = sub_image_box(picture, rules.side, i).area();
  }
  share_out(group, picture.rest, n, scratch.weights, scratch.capacities, budgets + 1,
            scratch.remainders);
}

}  // namespace HIRED_ISA
}  // namespace hired
