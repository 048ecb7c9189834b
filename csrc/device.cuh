// SPDX-License-Identifier: Apache-2.0
//
// What kernels need of the machine they run on: a GPU from sm_61 on, or the emulator of
// tests/emulator, which compiles the same source for a host (HIRED_EMULATE). For sm_61 nothing
// newer is used: shuffles and votes with full masks in converged code, volatile and __threadfence
// between blocks, no independent thread scheduling. Later GPUs have release and acquire between
// blocks (sm_70) and sums over a warp in one instruction (sm_80).
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

#include "cuda_limits.h"
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

// Whoever waits needs no fence where there is an acquire, from sm_70 on; and a release waits for
// stores alone where __threadfence is sequentially consistent.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
#define HIRED_RELEASE_ACQUIRE 1
#else
#define HIRED_RELEASE_ACQUIRE 0
#endif

// Everything this block has written is seen by whoever sees the counter grow. Called by all
// threads.
__device__ __forceinline__ void arrive(uint32_t* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
#if HIRED_RELEASE_ACQUIRE
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#else
    __threadfence();
    atomicAdd(counter, 1u);
#endif
  }
}

// What a counter holds now. Where there is no acquire, a fence is due before anything is read.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* counter) {
#if HIRED_RELEASE_ACQUIRE
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
#else
  return *static_cast<const volatile uint32_t*>(counter);
#endif
}

#ifdef HIRED_SPIN_LIMIT
// Says which counter is amiss, of which of the launch's pictures, and ends the kernel: the next
// synchronisation returns an error. The job is the ticket that select_kernel keeps at the start of
// shared memory.
__device__ inline void give_up(const char* counter, int32_t picture, uint32_t have, uint32_t want) {
  const uint32_t job = *reinterpret_cast<const uint32_t*>(shared_memory()) & ~kOtherSet;
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
    [[maybe_unused]] uint32_t polls = 0;
    while (load_acquire(counter) < count) {
#ifdef HIRED_EMULATE
      hired_emulator::poll();
#endif
#ifdef HIRED_SPIN_LIMIT
      if (++polls > HIRED_SPIN_LIMIT) {
        give_up(name, picture, load_acquire(counter), count);
      }
#endif
    }
#if !HIRED_RELEASE_ACQUIRE
    __threadfence();
#endif
#ifdef HIRED_SPIN_LIMIT
    if (load_acquire(counter) > count) give_up(name, picture, load_acquire(counter), count);
#endif
  }
  __syncthreads();
}

// A value that another block may have written in this launch: first-level caches are not coherent.
template <class Value>
__device__ __forceinline__ Value load_fresh(const Value* p) {
  return __ldcg(p);
}

// A score as it is in memory. Fetches stay in the order in which they are written, ahead of what is
// done with them: left to themselves, compilers move each to where it is widened.
__device__ __forceinline__ uint32_t fetch_bits(const float* p) {
  uint32_t bits;
#ifdef __CUDA_ARCH__
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(bits) : "l"(p));
#else
  memcpy(&bits, p, sizeof bits);
#endif
  return bits;
}
template <class Half>
__device__ __forceinline__ uint16_t fetch_bits(const Half* p) {
  uint16_t bits;
#ifdef __CUDA_ARCH__
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(bits) : "l"(p));
#else
  bits = p->bits;
#endif
  return bits;
}

template <class Scalar>
struct RawScore {
  decltype(fetch_bits(static_cast<const Scalar*>(nullptr))) bits;
};
__device__ __forceinline__ float widen_score(const RawScore<float>& raw) {
  return __uint_as_float(raw.bits);
}
__device__ __forceinline__ float widen_score(const RawScore<Float16>& raw) {
  return widen_float16<uint32_t>(raw.bits);
}
__device__ __forceinline__ float widen_score(const RawScore<BFloat16>& raw) {
  return widen_bfloat16<uint32_t>(raw.bits);
}

// Sixteen bytes that no block writes in this launch, in the same order.
__device__ __forceinline__ uint4 fetch_piece(const void* p) {
#ifdef __CUDA_ARCH__
  uint4 piece;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
               : "l"(p));
  return piece;
#else
  return __ldg(static_cast<const uint4*>(p));
#endif
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

}  // namespace HIRED_ISA
}  // namespace hired
