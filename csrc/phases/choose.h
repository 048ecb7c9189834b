// SPDX-License-Identifier: Apache-2.0
//
// Top-k of a partition as a cut: the k-th largest key and the index of the last patch that ties
// with it and is kept. Whether a patch is kept is then a question to that patch alone: no sort, no
// atomics on the result, lower index first.
//
// The cut is found by radix selection, eight bits a pass, from the highest bit in which keys differ
// (scores of one partition share sign and high bits of the exponent, so that their top byte decides
// nothing). Once the digit of the k-th key holds no more than kFew keys, those are compared with
// each other and the remaining passes are spared: 576 scores of a softmax take one pass or two.
// The first histogram does not depend on k, so it is taken beforehand, where k is waited for.
// Keys are anything with an operator [].
#pragma once

#include "../bits.h"
#include "../group.h"
#include "../scalar.h"

namespace hired {
inline namespace HIRED_ISA {

inline constexpr int kDigitBits = 8;
inline constexpr uint32_t kDigits = 1 << kDigitBits;
inline constexpr uint32_t kFew = 32;  // a warp compares as many at once

// Kept are the keys above `key`, and those equal to it up to index `last`.
struct Cut {
  uint32_t key;
  int32_t last;

  HIRED_FN bool keeps(uint32_t other, int32_t index) const {
    return other > key || (other == key && index <= last);
  }
  // The same cut for keys that begin at `first` of these.
  HIRED_FN Cut from(int32_t first) const { return {key, last - first}; }
};

// What the members of a group share while they look for a cut.
struct ChooseScratch {
  alignas(16) uint32_t histogram[kDigits];
  Cut candidates[kFew];  // each as the cut of which it is the last
  uint32_t listed;       // candidates so far
  Cut cut;
};

// What is known of keys before it is known how many to keep.
struct Survey {
  uint32_t common;  // the bits above the first digit, in which no keys differ
  int32_t shift;    // of the first digit, which the histogram counts
};

// Of the keys whose bits from `shift` on are those of `prefix`. What may not be kept is of none.
HIRED_FN bool has_prefix(uint32_t key, uint32_t prefix, int32_t shift) {
  return key != kKeyExcluded && (key ^ prefix) >> shift == 0;
}

// Reads its own keys alone, and leaves all of them for others to read.
template <class Group, class Keys>
HIRED_FN Survey survey(const Group& group, const Keys& keys, int32_t T, ChooseScratch* scratch) {
  uint32_t ones = 0, zeros = 0;  // bits that are set, that are clear, in some key
  for (int32_t t = group.rank(); t < T; t += group.size()) {
    const uint32_t key = keys[t];
    ones |= key;
    zeros |= key == kKeyExcluded ? 0 : ~key;
  }
  for (uint32_t d = group.rank(); d < kDigits; d += group.size()) scratch->histogram[d] = 0;
  if (group.rank() == 0) scratch->listed = 0;
  const uint64_t either = group.either(uint64_t{ones} << 32 | zeros);
  ones = static_cast<uint32_t>(either >> 32);
  const int width = bit_width(ones & static_cast<uint32_t>(either));
  const int32_t shift = width > kDigitBits ? width - kDigitBits : 0;
  for (int32_t t = group.rank(); t < T; t += group.size()) {
    const uint32_t key = keys[t];
    if (key != kKeyExcluded) group.add(&scratch->histogram[key >> shift & (kDigits - 1)], 1);
  }
  return {ones & ~((kDigits << shift) - 1), shift};
}

// The digit at which `wanted` keys have been passed, from the highest down.
struct Digit {
  uint32_t value;
  uint32_t wanted;  // how many of its keys are still to be taken
  uint32_t count;   // how many keys it has
};

template <class Team>
HIRED_FN Digit find_digit(const Team& team, uint32_t wanted, const uint32_t* histogram) {
  constexpr uint32_t kEach = kDigits / Team::kSize;  // digits of a member
  struct alignas(16) Four {
    uint32_t counts[4];
  };
  const uint32_t first = kDigits - kEach * (team.rank() + 1);
  uint32_t sum = 0;
  Four fours[kEach / 4];
  HIRED_UNROLL
  for (uint32_t i = 0; i < kEach / 4; ++i) {
    fours[i] = reinterpret_cast<const Four*>(histogram + first)[i];
    for (uint32_t count : fours[i].counts) sum += count;
  }
  uint32_t all;
  uint32_t before = team.exclusive_sum(sum, &all);
  const bool here = before < wanted && wanted <= before + sum;
  Digit digit{};
  HIRED_UNROLL
  for (uint32_t i = kEach; i-- > 0;) {
    const uint32_t count = fours[i / 4].counts[i % 4];
    if (before < wanted && wanted <= before + count) digit = {first + i, wanted - before, count};
    before += count;
  }
  return team.from(here, digit);
}

// The cut at the `wanted`-th of at most kFew keys that have a prefix: each counts those ahead of
// it.
template <class Group, class Keys>
HIRED_FN Cut cut_few(const Group& group, const Keys& keys, int32_t T, uint32_t prefix,
                     int32_t shift, uint32_t count, uint32_t wanted, ChooseScratch* scratch) {
  for (int32_t t = group.rank(); t < T; t += group.size()) {
    const uint32_t key = keys[t];
    if (has_prefix(key, prefix, shift)) {
      scratch->candidates[group.add(&scratch->listed, 1)] = {key, t};
    }
  }
  group.sync();
  for (uint32_t i = group.rank(); i < count; i += group.size()) {
    const Cut mine = scratch->candidates[i];
    uint32_t kept = 0;
    for (uint32_t j = 0; j < count; ++j) {
      const Cut other = scratch->candidates[j];
      kept += mine.keeps(other.key, other.last);
    }
    if (kept == wanted) scratch->cut = mine;
  }
  group.sync();
  return scratch->cut;
}

// The cut at the `wanted`-th key, in index order, that equals `key`.
template <class Group, class Keys>
HIRED_FN Cut cut_ties(const Group& group, const Keys& keys, int32_t T, uint32_t key,
                      uint32_t wanted, ChooseScratch* scratch) {
  uint32_t passed = 0;
  for (int32_t base = 0; base < T && passed < wanted; base += group.size()) {
    const int32_t t = base + group.rank();
    const uint32_t equal = t < T && keys[t] == key;
    uint32_t total;
    const uint32_t before = passed + group.exclusive_sum(equal, &total);
    if (equal && before + 1 == wanted) scratch->cut = {key, t};
    passed += total;
  }
  group.sync();
  return scratch->cut;
}

// The cut that keeps exactly k of the surveyed keys [T]: 0 <= k <= those that may be kept.
template <class Group, class Keys>
HIRED_FN Cut choose(const Group& group, const Keys& keys, int32_t T, int32_t k,
                    const Survey& surveyed, ChooseScratch* scratch) {
  if (k <= 0) return {0xffffffffu, -1};  // no score has this key
  uint32_t prefix = surveyed.common, wanted = static_cast<uint32_t>(k);
  group.sync();
  for (int32_t shift = surveyed.shift;;) {
    const Digit digit = find_digit(group.team(), wanted, scratch->histogram);
    prefix |= digit.value << shift;
    wanted = digit.wanted;
    if (digit.count <= kFew) {
      return cut_few(group, keys, T, prefix, shift, digit.count, wanted, scratch);
    }
    if (shift == 0) return cut_ties(group, keys, T, prefix, wanted, scratch);
    const int32_t next = shift > kDigitBits ? shift - kDigitBits : 0;
    group.sync();
    for (uint32_t d = group.rank(); d < kDigits; d += group.size()) scratch->histogram[d] = 0;
    group.sync();
    for (int32_t t = group.rank(); t < T; t += group.size()) {
      const uint32_t key = keys[t];
      if (has_prefix(key, prefix, shift)) {
        group.add(&scratch->histogram[key >> next & (kDigits - 1)], 1);
      }
    }
    group.sync();
    shift = next;
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
