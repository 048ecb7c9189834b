// SPDX-License-Identifier: Apache-2.0
//
// Thread groups: what a phase (csrc/phases/) knows of the threads that run it. A phase is a
// function over plain pointers, templated on its group; every member calls it with the same
// arguments and owns the elements rank, rank + size, ... of each loop, the same ones in every
// phase. On a CPU the group has one member.
//
// A group offers: rank(), size(), sync(), and add(counter, n) on an integer that all members see,
// which returns what that held. Over all members, in order of rank: exclusive_sum(n, &total), the
// sum of n over those of lower rank; either(bits), the bitwise or; mark(T, keep, mask), which sets
// bit t % 32 of word t / 32 where keep(t), and returns how many this member set. To copy or clear a
// row of bytes, copy(to, from, bytes) and zero(to, bytes).
//
// Members stand in teams() teams (warps), which can do without a barrier: team() is a group of
// those in this one's, the team_index()-th, with rank(), size() (kSize where it must be a
// constant), sync(), exclusive_sum(), sum(n) and from(here, value), which gives the value of the
// one member where `here` holds to all.
//
// All but rank, size, add and what says how many there are is collective: every member calls it,
// the same number of times. either(), exclusive_sum() and, below, sum() and max() of the whole
// group are barriers, too; mark() is none.
//
// For scores a group names a Lane, kWidth floats that one member works on at a time, and its
// LaneWord. fetch(p, stride, n) reads n elements as they are in memory, Raw<Scalar>, and widen()
// makes a Lane of them: kAhead times kColumns of them are fetched before the first is widened, of
// which together() sees to it that the compiler thinks so, too.
// load and store move lanes as floats, lane(lanes, i) is one of them, and sum(lanes) and max(lanes)
// are over the lanes of all members. Wide holds the product of a picture's tokens and a
// partition's, within the backend's limits.
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
  static constexpr int kSize = 1;

  HIRED_FN int rank() const { return 0; }
  HIRED_FN int size() const { return 1; }
  HIRED_FN void sync() const {}
  HIRED_FN uint32_t add(uint32_t* counter, uint32_t n) const {
    const uint32_t held = *counter;
    *counter += n;
    return held;
  }
  HIRED_FN uint32_t exclusive_sum(uint32_t n, uint32_t* total) const {
    *total = n;
    return 0;
  }
  HIRED_FN uint64_t either(uint64_t bits) const { return bits; }
  template <class Keep>
  HIRED_FN uint32_t mark(int32_t T, const Keep& keep, uint32_t* mask) const {
    uint32_t marked = 0;
    for (int32_t base = 0; base < T; base += 32) {
      uint32_t word = 0;
      for (int32_t t = base; t < T && t < base + 32; ++t) {
        const uint32_t kept = keep(t);
        word |= kept << (t - base);
        marked += kept;
      }
      mask[base / 32] = word;
    }
    return marked;
  }
  HIRED_FN void copy(char* to, const char* from, int64_t bytes) const {
    memcpy(to, from, static_cast<size_t>(bytes));
  }
  HIRED_FN void zero(char* to, int64_t bytes) const { memset(to, 0, static_cast<size_t>(bytes)); }

  HIRED_FN SerialGroup team() const { return {}; }
  HIRED_FN int team_index() const { return 0; }
  HIRED_FN int teams() const { return 1; }
  template <class Number>
  HIRED_FN Number sum(Number n) const {
    return n;
  }
  template <class Value>
  HIRED_FN Value from(bool, const Value& value) const {
    return value;
  }
};

}  // namespace HIRED_ISA
}  // namespace hired
