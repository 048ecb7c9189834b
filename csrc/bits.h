// SPDX-License-Identifier: Apache-2.0
//
// Words as sets of bits: each machine has an instruction for these.
#pragma once

#include "group.h"

namespace hired {
inline namespace HIRED_ISA {

HIRED_FN uint32_t popcount(uint32_t word) {
#ifdef __CUDA_ARCH__
  return static_cast<uint32_t>(__popc(word));
#else
  return static_cast<uint32_t>(__builtin_popcount(word));
#endif
}

// How many bits it takes to write the number: 0 for 0, 32 from 2^31 on.
HIRED_FN int bit_width(uint32_t word) {
#ifdef __CUDA_ARCH__
  return 32 - __clz(static_cast<int>(word));
#else
  return word == 0 ? 0 : 32 - __builtin_clz(word);
#endif
}

// A word of n ones below zeros, all ones from 32 on.
HIRED_FN uint32_t low_bits(int32_t n) {
  return n < 32 ? (1u << n) - 1 : ~0u;
}

// The place of the bit that has n others below it.
HIRED_FN int nth_bit(uint32_t word, uint32_t n) {
  int place = 0;
  HIRED_UNROLL
  for (int half = 16; half > 0; half /= 2) {
    const uint32_t below = popcount(word >> place & low_bits(half));
    const bool above = n >= below;
    place += above ? half : 0;
    n -= above ? below : 0;
  }
  return place;
}

}  // namespace HIRED_ISA
}  // namespace hired
