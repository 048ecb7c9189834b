// SPDX-License-Identifier: Apache-2.0
//
// The picture's budget, shared out among its sub-images by how many of the full image's best
// patches at the initial layer lie in each. Integers throughout under `exact`; the two float32
// roundings of the published code under `published`.
#pragma once

#include "../group.h"
#include "../picture.h"
#include "choose.h"
#include "place.h"
#include "region.h"

namespace hired {
inline namespace HIRED_ISA {

// weights [R * C]: how many of the full image's kept patches fall to each sub-image; by regions
// under `exact`, by contiguous runs under `published`. mask: those that are best at the initial
// layer.
template <class Group>
HIRED_FN void count_weights(const Group& group, const Rules& rules, const Picture& picture,
                            const uint32_t* mask, uint32_t* weights) {
  const auto team = group.team();
  const int32_t n = picture.sub_images();
  for (int32_t i = group.team_index(); i < n; i += group.teams()) {
    uint32_t kept = 0;
    if (rules.policy == Policy::kPublished) {
      const int32_t run = rules.tokens / n, end = (i + 1) * run;
      for (int32_t t = i * run + 32 * team.rank(); t < end; t += 32 * team.size()) {
        kept += kept_between(mask, t, t + 32 < end ? t + 32 : end);
      }
    } else {
      const Box box = full_image_box<typename Group::Wide>(picture, rules.side, i);
      for (int32_t y = box.y0 + team.rank(); y < box.y1; y += team.size()) {
        kept += kept_between(mask, y * rules.side + box.x0, y * rules.side + box.x1);
      }
    }
    kept = team.sum(kept);
    if (team.rank() == 0) weights[i] = kept;
  }
  group.sync();
}

// What the members of a group share while they allocate.
template <class Wide>
struct AllocateScratch {
  uint32_t* weights;    // [R * C]
  int32_t* capacities;  // [R * C]
  Wide* remainders;     // [R * C]
  uint32_t* mask;       // [mask_words(T)]
};

// Largest remainder under capacity: shares [n] part `rest` by `weights` [n]; where shares,
// remainders included, exceed their capacity, all such are fixed at it and what remains is parted
// afresh among the others. `rest` is at most the sum of the capacities. A picture has few
// sub-images, so one team does it, without barriers; at most n rounds.
template <class Wide, class Team>
HIRED_FN void share_out(const Team& team, Wide rest, int32_t n, const uint32_t* weights,
                        const int32_t* capacities, int32_t* shares, Wide* remainders) {
  constexpr Wide kFixed = -1;  // in place of a remainder
  for (int32_t i = team.rank(); i < n; i += team.size()) remainders[i] = shares[i] = 0;
  for (;;) {
    Wide weight_sum = 0, capacity_sum = 0;
    for (int32_t i = team.rank(); i < n; i += team.size()) {
      if (remainders[i] == kFixed) continue;
      weight_sum += static_cast<Wide>(weights[i]);
      capacity_sum += capacities[i];
    }
    weight_sum = team.sum(weight_sum);
    const Wide sum = weight_sum > 0 ? weight_sum : team.sum(capacity_sum);
    if (sum == 0) return;  // nothing left to share, and nobody left to take it
    Wide shared = 0;
    for (int32_t i = team.rank(); i < n; i += team.size()) {
      if (remainders[i] == kFixed) continue;
      const Wide product = rest * (weight_sum > 0 ? static_cast<Wide>(weights[i]) : capacities[i]);
      shares[i] = static_cast<int32_t>(product / sum);
      remainders[i] = product % sum;
      shared += shares[i];
    }
    const Wide left = rest - team.sum(shared);
    team.sync();
    int32_t over = 0;  // own shares that exceed their capacity
    Wide taken = 0;    // and those capacities
    for (int32_t i = team.rank(); i < n; i += team.size()) {
      if (remainders[i] == kFixed) continue;
      Wide ahead = 0;  // ties to the lower index
      for (int32_t j = 0; j < n; ++j) {
        ahead += remainders[j] > remainders[i] || (remainders[j] == remainders[i] && j < i);
      }
      shares[i] += ahead < left;
      over += shares[i] > capacities[i];
      taken += shares[i] > capacities[i] ? capacities[i] : 0;
    }
    if (team.sum(over) == 0) return;
    rest -= team.sum(taken);
    team.sync();
    for (int32_t i = team.rank(); i < n; i += team.size()) {
      if (remainders[i] == kFixed || shares[i] <= capacities[i]) continue;
      shares[i] = capacities[i];
      remainders[i] = kFixed;
    }
  }
}

// The published budgets: each product rounded to float32 twice and truncated; the remainder is
// lost.
template <class Team>
HIRED_FN void share_out_published(const Team& team, int32_t rest, int32_t n, int32_t T,
                                  const uint32_t* weights, int32_t* shares) {
  uint32_t sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += weights[i];
  for (int32_t i = team.rank(); i < n; i += team.size()) {
    const float weight = static_cast<float>(weights[i]) / static_cast<float>(sum);
    const float share = weight * static_cast<float>(rest);
    shares[i] = share < static_cast<float>(T) ? static_cast<int32_t>(share) : T;
  }
  team.sync();
  if (team.rank() == 0) {
    // Rounding up may overrun `rest` where it is beyond 2^22 tokens; the output has no row for
    // that.
    int32_t left = rest;
    for (int32_t i = 0; i < n; ++i) {
      shares[i] = shares[i] < left ? shares[i] : left;
      left -= shares[i];
    }
  }
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
  for (int32_t i = group.rank(); i < n; i += group.size()) {
    scratch.capacities[i] = sub_image_box(picture, rules.side, i).area();
  }
  const Survey surveyed = survey(group, keys, rules.tokens, choose_scratch);
  const Cut cut = choose(group, keys, rules.tokens, rules.counted, surveyed, choose_scratch);
  group.mark(rules.tokens, [&](int32_t t) { return cut.keeps(keys[t], t); }, scratch.mask);
  group.sync();
  count_weights(group, rules, picture, scratch.mask, scratch.weights);
  if (group.team_index() == 0) {
    if (rules.policy == Policy::kPublished) {
      share_out_published(group.team(), picture.rest, n, rules.tokens, scratch.weights,
                          budgets + 1);
    } else {
      share_out<typename Group::Wide>(group.team(), picture.rest, n, scratch.weights,
                                      scratch.capacities, budgets + 1, scratch.remainders);
    }
  }
  group.sync();
}

}  // namespace HIRED_ISA
}  // namespace hired
