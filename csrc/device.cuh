// SPDX-License-Identifier: Apache-2.0
//
// What kernels need of the machine they run on: a GPU from sm_61 on, or the emulator of
// tests/emulator, which compiles the same source for a host (HIRED_EMULATE). Nothing newer than
// sm_61 is used: shuffles and votes with full masks in converged code, volatile and __threadfence
// between blocks, no independent thread scheduling.
#pragma once

#ifdef HIRED_EMULATE
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>
#endif

#ifdef HIRED_SPIN_LIMIT
#include <cstdio>
#endif
#include <type_traits>

#include "group.h"
#include "scalar.h"

// Parameters stay where the launch put them, also where they are indexed; sm_61 has no word for it.
#if defined(HIRED_EMULATE) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700)
#define HIRED_GRID_CONSTANT
#else
#define HIRED_GRID_CONSTANT __grid_constant__
#endif

namespace hired {
inline namespace HIRED_ISA {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarp = 32;
inline constexpr int kMaxWarps = 32;  // of a block

// The one buffer of dynamic shared memory, 16 bytes aligned.
__device__ __forceinline__ char* shared_memory() {
#ifdef HIRED_EMULATE
  return reinterpret_cast<char*>(hired_emulator::shared_memory());
#else
  extern __shared__ uint4 hired_shared_memory[];
  return reinterpret_cast<char*>(hired_shared_memory);
#endif
}

// Waits for other blocks -------------------------------------------------------------------------

// Everything this block has written is seen by whoever sees the counter grow. Called by all
// threads.
__device__ __forceinline__ void arrive(uint32_t* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
  }
}

#ifdef HIRED_SPIN_LIMIT
// Says which counter is amiss, of which of the launch's pictures, and ends the kernel: the next
// synchronisation returns an error. The job is the ticket that select_kernel keeps at the start of
// shared memory.
__device__ inline void give_up(const char* counter, int32_t picture, uint32_t have, uint32_t want) {
  const uint32_t job = *reinterpret_cast<const uint32_t*>(shared_memory());
#ifdef HIRED_EMULATE
  char text[128];
  snprintf(text, sizeof text, "hired: block %u, job %u: %s, picture %d: have %u, want %u",
           blockIdx.x, job, counter, picture, have, want);
  hired_emulator::fail(text, hired_emulator::Site::here());
#else
  printf("hired: block %u, job %u: %s, picture %d: have %u, want %u\n", blockIdx.x, job, counter,
         picture, have, want);
  __trap();
#endif
}
#endif

// Returns once `counter` has reached `count`. Called by all threads; what other blocks wrote is
// then read past the first-level cache (load_fresh). Who may be waited for: see select_kernel.cuh.
// With HIRED_SPIN_LIMIT, a debug build, a wait of so many polls says what it is for and ends the
// kernel, and so does a counter that has gone too far; about half a microsecond a poll.
__device__ __forceinline__ void wait_for(const uint32_t* counter, uint32_t count,
                                         [[maybe_unused]] const char* name,
                                         [[maybe_unused]] int32_t picture) {
  if (threadIdx.x == 0) {
    const volatile uint32_t* fresh = counter;
    [[maybe_unused]] uint32_t polls = 0;
    while (*fresh < count) {
#ifdef HIRED_EMULATE
      hired_emulator::poll();
#endif
#ifdef HIRED_SPIN_LIMIT
      if (++polls > HIRED_SPIN_LIMIT) give_up(name, picture, *fresh, count);
#endif
    }
    __threadfence();
#ifdef HIRED_SPIN_LIMIT
    if (*fresh > count) give_up(name, picture, *fresh, count);
#endif
  }
  __syncthreads();
}

// A value that another block wrote in this launch: first-level caches are not coherent.
template <class Value>
__device__ __forceinline__ Value load_fresh(const Value* p) {
  return __ldcg(p);
}
__device__ __forceinline__ float load_fresh_float(const float* p) {
  return __ldcg(p);
}
__device__ __forceinline__ float load_fresh_float(const Float16* p) {
  return widen_float16<uint32_t>(__ldcg(&p->bits));
}
__device__ __forceinline__ float load_fresh_float(const BFloat16* p) {
  return widen_bfloat16<uint32_t>(__ldcg(&p->bits));
}

// Element i of 16 bytes; i is a constant once loops unroll.
template <class Scalar>
__device__ __forceinline__ float piece_element(const uint4& piece, int i) {
  constexpr int kEach = 4 / static_cast<int>(sizeof(Scalar));  // in a word
  const int word_index = i / kEach;
  const uint32_t word = word_index == 0   ? piece.x
                        : word_index == 1 ? piece.y
                        : word_index == 2 ? piece.z
                                          : piece.w;
  if constexpr (sizeof(Scalar) == 4) {
    return __uint_as_float(word);
  } else {
    const uint32_t bits = i % 2 == 0 ? word & 0xffffu : word >> 16;
    if constexpr (std::is_same_v<Scalar, Float16>) return widen_float16<uint32_t>(bits);
    return widen_bfloat16<uint32_t>(bits);
  }
}

// Groups -----------------------------------------------------------------------------------------

// All threads of a block. `scratch` holds kMaxWarps words of shared memory.
class BlockGroup {
 public:
  using Wide = int32_t;  // at most kMaxSubImages * T * T = 2^30: no division in 64 bits
  using Lane = float;
  using LaneWord = uint32_t;
  static constexpr int kWidth = 1;
  static constexpr int kAhead = 16;  // one round trip to memory for the 16 heads of CLIP-L, not 15

  __device__ explicit BlockGroup(uint32_t* scratch) : scratch_(scratch) {}

  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ void add(uint32_t* counter, uint32_t n) const { atomicAdd(counter, n); }

  __device__ uint32_t exclusive_sum(uint32_t n, uint32_t* total) const {
    uint32_t inclusive = n;
    for (int step = 1; step < kWarp; step *= 2) {
      const uint32_t below = __shfl_up_sync(kFullWarp, inclusive, step);
      inclusive += lane_index() >= step ? below : 0;
    }
    if (lane_index() == kWarp - 1) scratch_[warp_index()] = inclusive;
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (int warp = 0; warp < size() / kWarp; ++warp) {
      before += warp < warp_index() ? scratch_[warp] : 0;
      all += scratch_[warp];
    }
    __syncthreads();
    *total = all;
    return before + inclusive - n;
  }

  // Reductions add and compare in a fixed order: the same inputs give the same bits.
  __device__ float sum(float value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      value += __shfl_xor_sync(kFullWarp, value, step);
    }
    share(value);
    float all = 0.0f;
    for (int warp = 0; warp < size() / kWarp; ++warp) all += shared(warp);
    __syncthreads();
    return all;
  }

  __device__ float max(float value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, value, step);
      value = other > value ? other : value;
    }
    share(value);
    float largest = shared(0);
    for (int warp = 1; warp < size() / kWarp; ++warp) {
      largest = shared(warp) > largest ? shared(warp) : largest;
    }
    __syncthreads();
    return largest;
  }

  // Shared memory, or what this thread wrote itself.
  __device__ float load(const float* p) const { return *p; }
  __device__ void store(float* p, float value) const { *p = value; }
  // Attention rows, which may be another block's work.
  template <class Scalar>
  __device__ float load(const Scalar* p, int64_t, int) const {
    return load_fresh_float(p);
  }
  __device__ float lane(float value, int) const { return value; }

 private:
  __device__ static int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ void share(float value) const {
    if (lane_index() == 0) scratch_[warp_index()] = __float_as_uint(value);
    __syncthreads();
  }
  __device__ float shared(int warp) const { return __uint_as_float(scratch_[warp]); }

  uint32_t* scratch_;
};

// One warp, to move a row of bytes by the widest access that its ends allow.
class WarpGroup {
 public:
  __device__ int rank() const { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ int size() const { return kWarp; }

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
    constexpr int kInFlight = 4;
    const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
    auto* target = reinterpret_cast<Unit*>(to);
    const auto* source = reinterpret_cast<const Unit*>(from);
    int64_t i = rank();
    for (; i + (kInFlight - 1) * kWarp < units; i += kInFlight * kWarp) {
      Unit held[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) held[j] = __ldg(source + i + j * kWarp);
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) target[i + j * kWarp] = held[j];
    }
    for (; i < units; i += kWarp) target[i] = __ldg(source + i);
  }
};

}  // namespace HIRED_ISA
}  // namespace hired
