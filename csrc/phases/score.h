// SPDX-License-Identifier: Apache-2.0
//
// Scores of tokens, as ordered keys: the judges' attention to their patches, summed over heads in
// ascending order and then over the patches of a token in raster order, in float32. From attention
// rows each element is read once; from queries and keys the softmax over all N keys comes first,
// e^(x - max) / sum, without a matrix of it.
#pragma once

#include "../group.h"
#include "../picture.h"
#include "../scalar.h"
#include "region.h"

namespace hired {
inline namespace HIRED_ISA {

// keys [T] of attention [H, T]: ((a0 + a1) + a2) + ..., the same bits on every backend; where they
// are to be merged, the bits of the scores themselves. A member leaves its own, which others may
// read once the group has met.
//
// Elements of kAhead heads and kColumns patches are fetched before the first is looked at, and
// without a condition, for which addresses stop at the last head and patch: one trip to memory for
// all of them. (A load under a condition, or a conversion behind each, and the compiler waits.)
template <class Group, class Scalar>
HIRED_FN void score_attention(const Group& group, const Scalar* attention, int64_t stride_h,
                              int64_t stride_t, int32_t H, int32_t T, bool merged, uint32_t* keys) {
  constexpr int kWidth = Group::kWidth, kAhead = Group::kAhead, kColumns = Group::kColumns;
  const int64_t head_stride = stride_h * static_cast<int64_t>(sizeof(Scalar));
  const int32_t step = group.size() * kWidth;
  for (int32_t first = group.rank() * kWidth; first < T; first += kColumns * step) {
    const int n = T - first < kWidth ? T - first : kWidth;
    const char* next[kColumns];  // elements of the next head
    typename Group::Lane sums[kColumns];
    HIRED_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int32_t t = first + j * step;
      next[j] = reinterpret_cast<const char*>(attention + (t < T ? t : first) * stride_t);
      sums[j] = typename Group::Lane{};
    }
    for (int32_t left = H; left > 0; left -= kAhead) {
      typename Group::template Raw<Scalar> ahead[kAhead][kColumns];
      HIRED_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int64_t bytes = i + 1 < left ? head_stride : 0;
        HIRED_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          ahead[i][j] = group.fetch(reinterpret_cast<const Scalar*>(next[j]), stride_t, n);
          next[j] += bytes;
        }
      }
      group.together(ahead);
      HIRED_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        HIRED_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          if (i < left) sums[j] += group.widen(ahead[i][j]);
        }
      }
    }
    HIRED_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int32_t t = first + j * step;
      for (int i = 0; i < n && t < T; ++i) {
        const float score = group.lane(sums[j], i);
        keys[t + i] = merged ? bit_cast<uint32_t>(score) : ordered_key(score);
      }
    }
  }
}

// keys [M] of the scores [T] of patches, which are given by their bits: a token's is the sum of its
// block of patches, one after the other in raster order. A group of one may leave them in place:
// patch m belongs to token m or to an earlier one.
template <class Group>
HIRED_FN void merge_scores(const Group& group, const Rules& rules, const uint32_t* scores,
                           uint32_t* keys) {
  const int32_t g = rules.merge, side = rules.side * g;
  for (int32_t m = group.rank(); m < rules.tokens; m += group.size()) {
    const uint32_t* corner = scores + m / rules.side * g * side + m % rules.side * g;
    float sum = bit_cast<float>(corner[0]);
    for (int32_t i = 1; i < g * g; ++i) sum += bit_cast<float>(corner[i / g * side + i % g]);
    keys[m] = ordered_key(sum);
  }
}

// e^x for x <= 0 within 1 ulp or two, denormal results included; NaN for NaN. 2^n comes in two
// factors, so that a denormal result is rounded once. Polynomial: Cephes expf (Moshier).
template <class Lane, class LaneWord>
HIRED_FN Lane exp_nonpositive(Lane x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer below
  constexpr uint32_t kRoundBits = 0x4b400000u;
  const Lane least = Lane{} - 105.0f;  // e^-105 rounds to zero
  x = x < least ? least : x;
  const Lane shifted = x * 1.44269504f + kRound;
  const Lane n = shifted - kRound;
  const Lane r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Lane p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // n lies in [-152, 0]; halves of it are exponents of normal numbers. Unsigned: NaN brings
  // anything.
  const LaneWord minus_n = kRoundBits - bit_cast<LaneWord>(shifted);
  const LaneWord half = minus_n >> 1;
  const LaneWord rest = minus_n - half;
  return p * bit_cast<Lane>(LaneWord((127u - half) << 23)) *
         bit_cast<Lane>(LaneWord((127u - rest) << 23));
}

// The largest of this member's logits [N], lane by lane, padded with -inf to whole lanes. NaN is
// passed over: it shows in the sum.
template <class Group>
HIRED_FN typename Group::Lane largest_of(const Group& group, const float* logits, int64_t N) {
  using Lane = typename Group::Lane;
  Lane largest = Lane{} - INFINITY;
  for (int64_t i = int64_t{group.rank()} * Group::kWidth; i < N;
       i += int64_t{group.size()} * Group::kWidth) {
    const Lane x = group.load(logits + i);
    largest = x > largest ? x : largest;
  }
  return largest;
}

// scores [T], padded to whole lanes: adds one head's softmax of logits [N], taking its last T.
// largest: of all logits, spread over members and lanes in any way. logits, which members may have
// written for each other, are padded with -inf to whole lanes, and once more; they are left as
// e^(x - max).
template <class Group>
HIRED_FN void add_softmax(const Group& group, const typename Group::Lane& largest, float* logits,
                          int64_t N, int32_t T, bool first, float* scores) {
  using Lane = typename Group::Lane;
  constexpr int kWidth = Group::kWidth;
  const int64_t start = int64_t{group.rank()} * kWidth, step = int64_t{group.size()} * kWidth;
  const float max = group.max(largest);
  Lane partial = {};
  for (int64_t i = start; i < N; i += step) {
    const Lane e =
        exp_nonpositive<Lane, typename Group::LaneWord>(Lane(group.load(logits + i) - max));
    group.store(logits + i, e);
    partial += e;
  }
  const float sum = group.sum(partial);
  const float* last = logits + (N - T);
  for (int64_t t = start; t < T; t += step) {
    const Lane probability = group.load(last + t) / sum;
    group.store(scores + t, first ? probability : Lane(group.load(scores + t) + probability));
  }
}

// keys [M] of a partition, 0 being the full image: those of padding fall below every score. A
// member's own keys.
template <class Group>
HIRED_FN void exclude_padding(const Group& group, const Rules& rules, const Picture& picture,
                              int32_t partition, uint32_t* keys) {
  const int32_t side = rules.side;
  if (partition == 0 || is_whole(picture, side)) return;
  const Box box = sub_image_box(picture, side, partition - 1);
  for (int32_t t = group.rank(); t < rules.tokens; t += group.size()) {
    if (!box.holds(t / side, t % side)) keys[t] = kKeyExcluded;
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
