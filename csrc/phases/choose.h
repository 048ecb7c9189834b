// SPDX-License-Identifier: Apache-2.0
//
// Top-k of a partition as a cut: the k-th largest key and the index of the last patch that ties
// with it and is kept. Whether a patch is kept is then a question to that patch alone, and the kept
// ones come out in index order by a prefix sum: no sort, no atomics on the result, lower index
// first.
//
// The cut is found by radix selection, eight bits a pass from the top. Work: up to five passes over
// T keys held close by.
#pragma once

#include "../group.h"
#include "../scalar.h"

namespace hired {
inline namespace HIRED_ISA {

inline constexpr int kDigitBits = 8;
inline constexpr int kDigits = 1 << kDigitBits;

// Kept are the keys above `key`, and those equal to it up to index `last`.
struct Cut {
  uint32_t key;
  int32_t last;

  HIRED_FN bool keeps(uint32_t other, int32_t index) const {
    return other > key || (other == key && index <= last);
  }
};

// What the members of a group share while they look for a cut.
struct ChooseScratch {
  uint32_t histogram[kDigits];
  uint32_t digit;   // of the k-th largest key, in this pass
  uint32_t wanted;  // how many keys of that digit are still to be taken
  int32_t last;
};

// The digit, from the highest down, at which `wanted` keys have been passed.
template <class Group>
HIRED_FN void find_digit(const Group& group, uint32_t wanted, ChooseScratch* scratch) {
  uint32_t passed = 0;
  for (int base = 0; base < kDigits; base += group.size()) {
    const int digit = kDigits - 1 - base - group.rank();
    const uint32_t count = digit >= 0 ? scratch->histogram[digit] : 0;
    uint32_t total;
    const uint32_t before = passed + group.exclusive_sum(count, &total);
    if (before < wanted && wanted <= before + count) {
      scratch->digit = static_cast<uint32_t>(digit);
      scratch->wanted = wanted - before;
    }
    passed += total;
  }
  group.sync();
}

// The index of the `wanted`-th key, in index order, that equals `key`.
template <class Group>
HIRED_FN void find_last(const Group& group, const uint32_t* keys, int32_t T, uint32_t key,
                        uint32_t wanted, ChooseScratch* scratch) {
  uint32_t passed = 0;
  for (int32_t base = 0; base < T && passed < wanted; base += group.size()) {
    const int32_t t = base + group.rank();
    const uint32_t equal = t < T && keys[t] == key;
    uint32_t total;
    const uint32_t before = passed + group.exclusive_sum(equal, &total);
    if (equal && before + 1 == wanted) scratch->last = t;
    passed += total;
  }
  group.sync();
}

// The cut that keeps exactly k of `keys` [T], 0 <= k <= T.
template <class Group>
HIRED_FN Cut choose(const Group& group, const uint32_t* keys, int32_t T, int32_t k,
                    ChooseScratch* scratch) {
  if (k <= 0) return {0xffffffffu, -1};  // no score has this key
  uint32_t prefix = 0, wanted = static_cast<uint32_t>(k);
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int d = group.rank(); d < kDigits; d += group.size()) scratch->histogram[d] = 0;
    group.sync();
    // Keys that share the digits found so far; none are found before the first pass.
    const uint32_t found = shift + kDigitBits < 32 ? ~0u << (shift + kDigitBits) : 0;
    for (int32_t t = group.rank(); t < T; t += group.size()) {
      if ((keys[t] & found) == prefix) {
        group.add(&scratch->histogram[keys[t] >> shift & (kDigits - 1)], 1);
      }
    }
    group.sync();
    find_digit(group, wanted, scratch);
    prefix |= scratch->digit << shift;
    wanted = scratch->wanted;
  }
  find_last(group, keys, T, prefix, wanted, scratch);
  return {prefix, scratch->last};
}

// Calls visit(t, position) for each t with keep(t), position counting them in index order. Returns
// their number, to every member.
template <class Group, class Keep, class Visit>
HIRED_FN int32_t compact(const Group& group, int32_t T, const Keep& keep, const Visit& visit) {
  uint32_t passed = 0;
  for (int32_t base = 0; base < T; base += group.size()) {
    const int32_t t = base + group.rank();
    const bool kept = t < T && keep(t);
    uint32_t total;
    const uint32_t position = passed + group.exclusive_sum(kept, &total);
    if (kept) visit(t, static_cast<int32_t>(position));
    passed += total;
  }
  return static_cast<int32_t>(passed);
}

}  // namespace HIRED_ISA
}  // namespace hired
