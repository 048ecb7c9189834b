// SPDX-License-Identifier: Apache-2.0
//
// Thread groups: what a phase (csrc/phases/) knows of the threads that run it. A phase is a
// function over plain pointers, templated on its group; every member calls it with the same
// arguments and owns the elements rank, rank + size, ... of each loop. On a CPU the group has one
// member.
//
// A group offers: rank(), size(), sync(), add(counter, n) on an integer that all members see, and
// exclusive_sum(n, &total), the sum of n over the members of lower rank; to copy or clear a row of
// bytes, copy(to, from, bytes) and zero(to, bytes). All but rank, size and add are collective:
// every member calls them, the same number of times. For scores it names a Lane, kWidth floats that
// one member works on at a time, and its LaneWord, how many kAhead of them are loaded before the
// first is used, with load, store, lane(lanes, i), and sum(lanes) and max(lanes) over the lanes of
// all members. Wide holds the product of a picture's tokens and a partition's, within the backend's
// limits.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HIRED_FN __host__ __device__ __forceinline__
#define HIRED_UNROLL _Pragma("unroll")
#else
#define HIRED_FN inline
#define HIRED_UNROLL
#endif

// A source file compiled once for each instruction set gives each copy a namespace of its own, so
// that the linker never lets code for a newer processor stand in for the same function elsewhere.
#ifndef HIRED_ISA
#define HIRED_ISA portable
#endif

namespace hired {
inline namespace HIRED_ISA {

struct SerialGroup {
  using Wide = int64_t;

  HIRED_FN int rank() const { return 0; }
  HIRED_FN int size() const { return 1; }
  HIRED_FN void sync() const {}
  HIRED_FN void add(uint32_t* counter, uint32_t n) const { *counter += n; }
  HIRED_FN uint32_t exclusive_sum(uint32_t n, uint32_t* total) const {
    *total = n;
    return 0;
  }
  HIRED_FN void copy(char* to, const char* from, int64_t bytes) const {
    memcpy(to, from, static_cast<size_t>(bytes));
  }
  HIRED_FN void zero(char* to, int64_t bytes) const { memset(to, 0, static_cast<size_t>(bytes)); }
};

}  // namespace HIRED_ISA
}  // namespace hired
