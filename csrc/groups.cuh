// SPDX-License-Identifier: Apache-2.0
//
// The threads of a GPU as group.h has them: a block, and a warp of it as its team. One barrier a
// reduction, sums in a fixed order, loads that stay together.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "group.h"

namespace hired {
inline namespace HIRED_ISA {

// One warp: a team of a block, which also moves a row of bytes by the widest access that its ends
// allow.
class WarpGroup {
 public:
  static constexpr int kSize = kWarp;

  __device__ int rank() const { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ int size() const { return kWarp; }
  __device__ void sync() const { __syncwarp(); }

  __device__ uint32_t exclusive_sum(uint32_t n, uint32_t* total) const {
    uint32_t inclusive = n;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const uint32_t below = __shfl_up_sync(kFullWarp, inclusive, step);
      inclusive += rank() >= step ? below : 0;
    }
    *total = __shfl_sync(kFullWarp, inclusive, kWarp - 1);
    return inclusive - n;
  }

  template <class Number>
  __device__ Number sum(Number n) const {
    static_assert(std::is_integral_v<Number> && sizeof(Number) == 4);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return static_cast<Number>(__reduce_add_sync(kFullWarp, static_cast<uint32_t>(n)));
#else
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) n += __shfl_xor_sync(kFullWarp, n, step);
    return n;
#endif
  }

  __device__ uint32_t either(uint32_t bits) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_or_sync(kFullWarp, bits);
#else
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      bits |= __shfl_xor_sync(kFullWarp, bits, step);
    }
    return bits;
#endif
  }

  template <class Value>
  __device__ Value from(bool here, Value value) const {
    constexpr int kWords = sizeof(Value) / sizeof(uint32_t);
    static_assert(sizeof(Value) == kWords * sizeof(uint32_t));
    const int lane = __ffs(static_cast<int>(__ballot_sync(kFullWarp, here))) - 1;
    uint32_t words[kWords];
    memcpy(words, &value, sizeof value);
#pragma unroll
    for (uint32_t& word : words) word = __shfl_sync(kFullWarp, word, lane);
    memcpy(&value, words, sizeof value);
    return value;
  }

  __device__ void copy(char* to, const char* from, int64_t bytes) const {
    const auto ends = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) |
                      static_cast<uintptr_t>(bytes);
    if (ends % 16 == 0) return copy_by<uint4>(to, from, bytes);
    if (ends % 4 == 0) return copy_by<uint32_t>(to, from, bytes);
    if (ends % 2 == 0) return copy_by<uint16_t>(to, from, bytes);
    copy_by<uint8_t>(to, from, bytes);
  }

  __device__ void zero(char* to, int64_t bytes) const {
    for (int64_t i = rank(); i < bytes; i += kWarp) to[i] = 0;
  }

 private:
  template <class Unit>
  __device__ void copy_by(char* to, const char* from, int64_t bytes) const {
    constexpr int kTogether = 4 * kWarp;  // 2 KB of 16 bytes in one trip: more is split in two
    auto* target = reinterpret_cast<Unit*>(to) + rank();
    const auto* source = reinterpret_cast<const Unit*>(from) + rank();
    int64_t left = bytes / static_cast<int64_t>(sizeof(Unit)) - rank();
#pragma unroll 1
    for (; left > 0; left -= kTogether) {
      const int n = left < kTogether ? static_cast<int>(left) : kTogether;
      Unit held[kTogether / kWarp];
#pragma unroll
      for (int i = 0; i < kTogether; i += kWarp) {
        if (i < n) held[i / kWarp] = __ldg(source + i);
      }
#pragma unroll
      for (int i = 0; i < kTogether; i += kWarp) {
        if (i < n) target[i] = held[i / kWarp];
      }
      source += kTogether;
      target += kTogether;
    }
  }
};

// All threads of a block.
class BlockGroup {
 public:
  using Wide = int32_t;  // at most kMaxSubImages * T * T = 2^30: no division in 64 bits
  using Lane = float;
  using LaneWord = uint32_t;
  template <class Scalar>
  using Raw = RawScore<Scalar>;
  static constexpr int kWidth = 1;
  static constexpr int kAhead = 16;  // the heads of CLIP-L
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
  static constexpr int kColumns = 2;  // as three blocks of a multiprocessor have registers for
#else
  static constexpr int kColumns = 3;  // with 256 threads all 576 patches of CLIP-L at 336 pixels
#endif
  // Words of shared memory that reductions exchange: two of each warp, twice, since one reduction
  // may begin while some threads still read what the last one left.
  static constexpr int kScratch = 2 * 2 * kMaxWarps;

  __device__ explicit BlockGroup(uint32_t* scratch) : scratch_(scratch) {}

  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ uint32_t add(uint32_t* counter, uint32_t n) const { return atomicAdd(counter, n); }

  __device__ WarpGroup team() const { return {}; }
  __device__ int team_index() const { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ int teams() const { return static_cast<int>(blockDim.x) / kWarp; }

  __device__ __forceinline__ uint32_t exclusive_sum(uint32_t n, uint32_t* total) const {
    uint32_t of_warp;
    const uint32_t in_warp = team().exclusive_sum(n, &of_warp);
    const uint32_t* shared = share(of_warp);
    uint32_t before = 0, all = 0;
    for_each_warp(shared, [&](int warp, uint32_t sum) {
      before += warp < team_index() ? sum : 0;
      all += sum;
    });
    *total = all;
    return before + in_warp;
  }

  __device__ __forceinline__ uint64_t either(uint64_t bits) const {
    const uint32_t high = team().either(static_cast<uint32_t>(bits >> 32));
    const uint32_t* shared = share(team().either(static_cast<uint32_t>(bits)), high);
    uint32_t all_low = 0, all_high = 0;
    for_each_warp(shared, [&](int, uint32_t word) { all_low |= word; });
    for_each_warp(shared + kMaxWarps, [&](int, uint32_t word) { all_high |= word; });
    return uint64_t{all_high} << 32 | all_low;
  }

  template <class Keep>
  __device__ __forceinline__ uint32_t mark(int32_t T, const Keep& keep, uint32_t* mask) const {
    uint32_t marked = 0;
    for (int32_t base = team_index() * kWarp; base < T; base += size()) {
      const int32_t t = base + team().rank();
      const bool kept = t < T && keep(t);
      const uint32_t word = __ballot_sync(kFullWarp, kept);
      if (team().rank() == 0) mask[base / kWarp] = word;
      marked += kept;
    }
    return marked;
  }

  // Reductions add and compare in a fixed order: the same inputs give the same bits.
  __device__ __forceinline__ float sum(float value) const {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      value += __shfl_xor_sync(kFullWarp, value, step);
    }
    const uint32_t* shared = share(__float_as_uint(value));
    float all = 0.0f;
    for_each_warp(shared, [&](int, uint32_t sum) { all += __uint_as_float(sum); });
    return all;
  }

  __device__ __forceinline__ float max(float value) const {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, value, step);
      value = other > value ? other : value;
    }
    const uint32_t* shared = share(__float_as_uint(value));
    float largest = -INFINITY;
    for_each_warp(shared, [&](int, uint32_t word) {
      const float other = __uint_as_float(word);
      largest = other > largest ? other : largest;
    });
    return largest;
  }

  // Attention rows, which may be another block's work.
  template <class Scalar>
  __device__ Raw<Scalar> fetch(const Scalar* p, int64_t, int) const {
    return {fetch_bits(p)};
  }
  // sm_61's assembler moves fetches to where they are used, and waits for each. Here all that is
  // done with them hangs on all of them, by a zero that only we know.
  template <class Scalar>
  __device__ void together([[maybe_unused]] RawScore<Scalar> (&ahead)[kAhead][kColumns]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
    uint32_t zero = 0;
    for_each_of(ahead, [&](auto& raw) { zero |= raw.bits; });
    zero &= threadIdx.y;  // of which blocks have none
    for_each_of(ahead, [&](auto& raw) { raw.bits |= zero; });
#endif
  }
  template <class Scalar>
  __device__ float widen(const RawScore<Scalar>& raw) const {
    return widen_score(raw);
  }
  // Shared memory, or what this thread wrote itself.
  __device__ float load(const float* p) const { return *p; }
  __device__ void store(float* p, float value) const { *p = value; }
  __device__ float lane(float value, int) const { return value; }

 private:
  // Leaves what each warp has, and `other` kMaxWarps words further on, for all to read.
  __device__ __forceinline__ const uint32_t* share(uint32_t value, uint32_t other = 0) const {
    uint32_t* shared = scratch_ + turn_ * 2 * kMaxWarps;
    turn_ ^= 1;
    if (team().rank() == 0) {
      shared[team_index()] = value;
      shared[kMaxWarps + team_index()] = other;
    }
    __syncthreads();
    return shared;
  }

  template <class Scalar, class Visit>
  __device__ static void for_each_of(RawScore<Scalar> (&ahead)[kAhead][kColumns],
                                     const Visit& visit) {
#pragma unroll
    for (auto& of_head : ahead) {
#pragma unroll
      for (auto& raw : of_head) visit(raw);
    }
  }

  // Calls fold(warp, its word) for one warp after the other. Words are read together, whether or
  // not there are so many warps.
  template <class Fold>
  __device__ __forceinline__ void for_each_warp(const uint32_t* shared, const Fold& fold) const {
    constexpr int kTogether = 8;  // the warps of 256 threads
    static_assert(kMaxWarps % kTogether == 0);
    for (int base = 0; base < teams(); base += kTogether) {
      uint32_t words[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) words[i] = shared[base + i];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (base + i < teams()) fold(base + i, words[i]);
      }
    }
  }

  uint32_t* scratch_;
  mutable int turn_ = 0;
};

}  // namespace HIRED_ISA
}  // namespace hired
