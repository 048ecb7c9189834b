// SPDX-License-Identifier: Apache-2.0
//
// The dtypes of scores, read as float32 whatever the machine can do with them, and the order
// between scores as an order between unsigned integers.
#pragma once

#include <cstdint>
#include <cstring>

#include "group.h"

namespace hired {

enum class Dtype : int32_t { kFloat32, kFloat16, kBFloat16 };

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline namespace HIRED_ISA {

template <class To, class From>
HIRED_FN To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// On a host `p` need not be aligned to Value; on a GPU it is.
template <class Value>
HIRED_FN Value load_unaligned(const void* p) {
#ifdef __CUDA_ARCH__
  return *static_cast<const Value*>(p);
#else
  Value value;
  memcpy(&value, p, sizeof value);
  return value;
#endif
}

// Widening takes 32-bit words, one or a vector of them: the low 16 bits hold the narrow number.
template <class Word>
struct FloatOf;
template <>
struct FloatOf<uint32_t> {
  using type = float;
};

template <class Word>
HIRED_FN typename FloatOf<Word>::type widen_bfloat16(Word bits) {
  return bit_cast<typename FloatOf<Word>::type>(Word(bits << 16));
}

// IEEE binary16 without float16 arithmetic. Neither branch meets a float32 denormal, so the result
// does not depend on the processor's flush-to-zero mode.
template <class Word>
HIRED_FN typename FloatOf<Word>::type widen_float16(Word bits) {
#ifdef __CUDA_ARCH__
  float widened;
  asm("cvt.f32.f16 %0, %1;" : "=f"(widened) : "h"(static_cast<uint16_t>(bits)));
  return widened;
#else
  using Float = typename FloatOf<Word>::type;
  const Word sign = (bits & 0x8000u) << 16;
  const Word magnitude = (bits & 0x7fffu) << 13;
  // Exponent bias 15 becomes 127: add 112, and 112 once more for infinity and NaN.
  const Word special = magnitude >= 0x0f800000u ? Word(magnitude ^ magnitude) + 0x38000000u
                                                : Word(magnitude ^ magnitude);
  const Word normal = magnitude + 0x38000000u + special;
  // A binary16 denormal is its fraction times 2^-24: set it behind the exponent of 2^-14, subtract.
  const Word implied = bit_cast<Word>(
      Float(bit_cast<Float>(Word(magnitude + 0x38800000u)) - bit_cast<float>(0x38800000u)));
  return bit_cast<Float>(Word((magnitude < 0x00800000u ? implied : normal) | sign));
#endif
}

HIRED_FN float load_float(const float* p) {
  return load_unaligned<float>(p);
}
HIRED_FN float load_float(const Float16* p) {
  return widen_float16<uint32_t>(load_unaligned<uint16_t>(p));
}
HIRED_FN float load_float(const BFloat16* p) {
  return widen_bfloat16<uint32_t>(load_unaligned<uint16_t>(p));
}

// Order of scores: higher first, -0 equal to +0, NaN below -inf, and below all of them what may not
// be kept. Keys compare as the scores do.
inline constexpr uint32_t kKeyExcluded = 0;
inline constexpr uint32_t kKeyNan = 1;

HIRED_FN uint32_t ordered_key(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // A sign and a magnitude, as a number moved up by 2^31: both zeros are 2^31.
  const uint32_t key = 0x80000000u + ((bits >> 31) != 0 ? 0u - magnitude : magnitude);
  return magnitude > 0x7f800000u ? kKeyNan : key;
}

}  // namespace HIRED_ISA
}  // namespace hired
