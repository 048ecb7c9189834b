// SPDX-License-Identifier: Apache-2.0
//
// CUDA's loads past the first-level cache, which clang has from release 20 on. tools/cuda.cmake
// includes it before every source that the Pascal compiler compiles.
#pragma once

#if defined(__clang__) && defined(__CUDA__) && __clang_major__ < 20

#define HIRED_LDCG(type, suffix, constraint)                                              \
  static __device__ __forceinline__ type __ldcg(const type* p) {                          \
    type value;                                                                           \
    asm("ld.global.cg." suffix " %0, [%1];" : "=" constraint(value) : "l"(p) : "memory"); \
    return value;                                                                         \
  }

HIRED_LDCG(short, "s16", "h")
HIRED_LDCG(unsigned short, "u16", "h")
HIRED_LDCG(int, "s32", "r")
HIRED_LDCG(unsigned int, "u32", "r")
HIRED_LDCG(long, "s64", "l")
HIRED_LDCG(unsigned long, "u64", "l")
HIRED_LDCG(long long, "s64", "l")
HIRED_LDCG(unsigned long long, "u64", "l")
HIRED_LDCG(float, "f32", "f")
HIRED_LDCG(double, "f64", "d")

#undef HIRED_LDCG

static __device__ __forceinline__ uint4 __ldcg(const uint4* p) {
  uint4 value;
  asm("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(p)
      : "memory");
  return value;
}

#endif
