// SPDX-License-Identifier: Apache-2.0
//
// The CPU's vector registers as GCC and Clang vector types, as wide as this file's instruction set
// has them. A group names its lane type: these here, a plain float on a GPU; phases are written
// once for both, with the operators that both have.
#pragma once

#include <cmath>

#include "group.h"
#include "scalar.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace hired {
inline namespace HIRED_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;  // SSE2, NEON
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t LaneWords __attribute__((vector_size(4 * kLanes)));
typedef uint16_t LaneHalves __attribute__((vector_size(2 * kLanes)));

template <>
struct FloatOf<LaneWords> {
  using type = Lanes;
};

HIRED_FN Lanes load_lanes(const float* p) {
  return load_unaligned<Lanes>(p);
}

// Sixteen bits each, widened to 32. GCC 12 takes a detour through half vectors for the generic
// form.
HIRED_FN LaneWords load_halves(const void* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<LaneWords>(
      _mm512_maskz_cvtepu16_epi32(0xffff, load_unaligned<__m256i>(p)));
#elif defined(__AVX2__)
  return reinterpret_cast<LaneWords>(_mm256_cvtepu16_epi32(load_unaligned<__m128i>(p)));
#else
  return __builtin_convertvector(load_unaligned<LaneHalves>(p), LaneWords);
#endif
}

HIRED_FN Lanes load_lanes(const BFloat16* p) {
  return widen_bfloat16(load_halves(p));
}

HIRED_FN Lanes load_lanes(const Float16* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, load_unaligned<__m256i>(p));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(load_unaligned<__m128i>(p));
#else
  return widen_float16(load_halves(p));
#endif
}

HIRED_FN void store_lanes(float* p, Lanes lanes) {
  memcpy(p, &lanes, sizeof lanes);
}

// One lane for each of kLanes vectors: the sum of its lanes. A butterfly: each round folds the
// halves of two vectors into one, so kLanes sums cost kLanes - 1 additions. A fixed tree: the same
// inputs give the same bits.
template <int kHalf>
HIRED_FN void fold_halves(Lanes* vectors) {
  // Lane l of the fold of a and b: blocks of kHalf lanes come from a and b in turn.
  LaneWords low{}, high{};
  for (int l = 0; l < kLanes; ++l) {
    const int block = l / kHalf;
    const int lane = block / 2 * 2 * kHalf + l % kHalf + block % 2 * kLanes;
    low[l] = static_cast<uint32_t>(lane);
    high[l] = static_cast<uint32_t>(lane + kHalf);
  }
  for (int i = 0; i < kHalf; ++i) {
    const Lanes a = vectors[i], b = vectors[i + kHalf];
    vectors[i] = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
  }
  if constexpr (kHalf > 1) fold_halves<kHalf / 2>(vectors);
}

// Uses up `vectors`.
HIRED_FN Lanes sums_of(Lanes (&vectors)[kLanes]) {
  fold_halves<kLanes / 2>(vectors);
  return vectors[0];
}

// A group of one thread that works on kLanes elements at a time.
struct LaneGroup : SerialGroup {
  using Lane = Lanes;
  using LaneWord = LaneWords;
  static constexpr int kWidth = kLanes;
  static constexpr int kAhead = 1, kColumns = 1;  // the processor looks ahead by itself
  template <class Scalar>
  using Raw = Lanes;  // it widens as it loads

  template <class Scalar>
  HIRED_FN Lanes load(const Scalar* p) const {
    return load_lanes(p);
  }

  // n of the lanes, `stride` elements apart; the others are zero.
  template <class Scalar>
  HIRED_FN Lanes fetch(const Scalar* p, int64_t stride, int n) const {
    if (stride == 1 && n == kLanes) return load_lanes(p);
    Lanes lanes = {};
    for (int i = 0; i < n; ++i) lanes[i] = load_float(p + i * stride);
    return lanes;
  }
  template <class Fetched>
  HIRED_FN void together(Fetched&) const {}
  HIRED_FN Lanes widen(const Lanes& fetched) const { return fetched; }

  HIRED_FN void store(float* p, Lanes lanes) const { store_lanes(p, lanes); }
  HIRED_FN float lane(const Lanes& lanes, int i) const { return lanes[i]; }

  // A fixed tree, so that the same inputs give the same bits: the upper half on the lower half.
  HIRED_FN float sum(const Lanes& lanes) const {
    float partial[kLanes];
    store_lanes(partial, lanes);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
    }
    return partial[0];
  }

  HIRED_FN float max(const Lanes& lanes) const {
    float largest = lanes[0];
    for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
  }
};

}  // namespace HIRED_ISA
}  // namespace hired
