// SPDX-License-Identifier: Apache-2.0
//
// CUDA's built-in types and qualifiers for a host compiler: dim3, the vector types with the
// alignment that they have on a device, and the qualifiers as empty macros. Standard headers come
// first, so that no macro reaches into them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define HIRED_VECTOR_TYPES(name, scalar)                                      \
  struct alignas(2 * sizeof(scalar)) name##2 {                                \
    scalar x, y;                                                              \
  };                                                                          \
  struct alignas(4 * sizeof(scalar) > 16 ? 16 : 4 * sizeof(scalar)) name##4 { \
    scalar x, y, z, w;                                                        \
  };                                                                          \
  inline name##2 make_##name##2(scalar x, scalar y) {                         \
    return {x, y};                                                            \
  }                                                                           \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) {     \
    return {x, y, z, w};                                                      \
  }

HIRED_VECTOR_TYPES(char, signed char)
HIRED_VECTOR_TYPES(uchar, unsigned char)
HIRED_VECTOR_TYPES(short, short)
HIRED_VECTOR_TYPES(ushort, unsigned short)
HIRED_VECTOR_TYPES(int, int)
HIRED_VECTOR_TYPES(uint, unsigned)
HIRED_VECTOR_TYPES(float, float)
HIRED_VECTOR_TYPES(longlong, long long)
HIRED_VECTOR_TYPES(ulonglong, unsigned long long)
HIRED_VECTOR_TYPES(double, double)
#undef HIRED_VECTOR_TYPES
