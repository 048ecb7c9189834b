// SPDX-License-Identifier: Apache-2.0
//
// The CPU's vector registers as GCC and Clang vector types, as wide as this file's instruction set
// has them. A group names its lane type: these here, a plain float on a GPU; phases are written once
// for both, with the operators that both have.
#pragma once

#include <cmath>

#include "group.h"
#include "scalar.h"

#if defined(__F16C__)
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

HIRED_FN Lanes load_lanes(const float* p) { return load_unaligned<Lanes>(p); }

HIRED_FN Lanes load_lanes(const BFloat16* p) {
  return widen_bfloat16(__builtin_convertvector(load_unaligned<LaneHalves>(p), LaneWords));
}

HIRED_FN Lanes load_lanes(const Float16* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, load_unaligned<__m256i>(p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load_unaligned<__m128i>(p));
#else
  return widen_float16(__builtin_convertvector(load_unaligned<LaneHalves>(p), LaneWords));
#endif
}

HIRED_FN void store_lanes(float* p, Lanes lanes) { memcpy(p, &lanes, sizeof lanes); }

// A group of one thread that works on kLanes elements at a time.
struct LaneGroup : SerialGroup {
  using Lane = Lanes;
  using LaneWord = LaneWords;
  static constexpr int kWidth = kLanes;

  template <class Scalar>
  HIRED_FN Lanes load(const Scalar* p) const {
    return load_lanes(p);
  }

  // n of the lanes, `stride` elements apart; the others are zero.
  template <class Scalar>
  HIRED_FN Lanes load(const Scalar* p, int64_t stride, int n) const {
    if (stride == 1 && n == kLanes) return load_lanes(p);
    Lanes lanes = {};
    for (int i = 0; i < n; ++i) lanes[i] = load_float(p + i * stride);
    return lanes;
  }

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
