// SPDX-License-Identifier: Apache-2.0
//
// CUDA C++ for a host compiler: stands in for <cuda_runtime.h>, so that a kernel's own source,
// compiled as C++17 with -DHIRED_EMULATE, runs on the host (scheduler.h). Link with scheduler.cpp,
// primitives.cpp and blocks.cpp; -ffp-contract=off keeps float arithmetic the device's.
//
// Only what sm_61 has is offered, and sm_90's clusters. Vector accesses check their alignment,
// barriers and warp primitives who takes part in them.
#pragma once

#include "cuda_types.h"
#include "host_api.h"
#include "scheduler.h"

#define threadIdx (::hired_emulator::running->thread)
#define blockIdx (::hired_emulator::running->block)
#define blockDim (::hired_emulator::running->block_size)
#define gridDim (::hired_emulator::running->grid_size)
#define warpSize 32
#define HIRED_SPIN_LIMIT (::hired_emulator::options().spin_limit)

// --- barriers and fences -------------------------------------------------------------------------

inline void __syncthreads(hired_emulator::Site site = hired_emulator::Site::here()) {
  hired_emulator::barrier(hired_emulator::Primitive::kSyncThreads, 0, site);
}
inline int __syncthreads_or(int predicate,
                            hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::barrier(hired_emulator::Primitive::kSyncThreadsOr, predicate, site);
}
inline int __syncthreads_and(int predicate,
                             hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::barrier(hired_emulator::Primitive::kSyncThreadsAnd, predicate, site);
}
inline int __syncthreads_count(int predicate,
                               hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::barrier(hired_emulator::Primitive::kSyncThreadsCount, predicate, site);
}

inline void __threadfence() {
  hired_emulator::switch_point();
}
inline void __threadfence_block() {
  hired_emulator::switch_point();
}
inline void __threadfence_system() {
  hired_emulator::switch_point();
}

[[noreturn]] inline void __trap(hired_emulator::Site site = hired_emulator::Site::here()) {
  hired_emulator::fail("__trap", site);
}

// --- warp primitives -----------------------------------------------------------------------------

namespace hired_emulator {

template <class T>
T shuffle(Primitive kind, unsigned mask, T value, unsigned argument, int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "a shuffle takes 32 or 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_primitive(kind, mask, bits, argument, width, site);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace hired_emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::shuffle(hired_emulator::Primitive::kShuffle, mask, value,
                                 static_cast<unsigned>(source), width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::shuffle(hired_emulator::Primitive::kShuffleUp, mask, value, delta, width,
                                 site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::shuffle(hired_emulator::Primitive::kShuffleDown, mask, value, delta, width,
                                 site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  hired_emulator::Site site = hired_emulator::Site::here()) {
  return hired_emulator::shuffle(hired_emulator::Primitive::kShuffleXor, mask, value,
                                 static_cast<unsigned>(lane_mask), width, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              hired_emulator::Site site = hired_emulator::Site::here()) {
  return static_cast<unsigned>(hired_emulator::warp_primitive(hired_emulator::Primitive::kBallot,
                                                              mask, predicate != 0, 0, 32, site));
}
inline int __any_sync(unsigned mask, int predicate,
                      hired_emulator::Site site = hired_emulator::Site::here()) {
  return static_cast<int>(hired_emulator::warp_primitive(hired_emulator::Primitive::kAny, mask,
                                                         predicate != 0, 0, 32, site));
}
inline int __all_sync(unsigned mask, int predicate,
                      hired_emulator::Site site = hired_emulator::Site::here()) {
  return static_cast<int>(hired_emulator::warp_primitive(hired_emulator::Primitive::kAll, mask,
                                                         predicate != 0, 0, 32, site));
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       hired_emulator::Site site = hired_emulator::Site::here()) {
  hired_emulator::warp_primitive(hired_emulator::Primitive::kSyncWarp, mask, 0, 0, 32, site);
}

// --- memory --------------------------------------------------------------------------------------

namespace hired_emulator {

template <class T>
void check_aligned(const T* p, const char* what, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) {
    fail(std::string(what) + " of " + std::to_string(sizeof(T)) + " bytes at a misaligned address",
         site);
  }
}

template <class T, class Update>
T atomic(T* p, const char* what, Site site, const Update& update) {
  check_aligned(p, what, site);
  switch_point();
  const T old = *p;
  *p = update(old);
  if (memcmp(&old, p, sizeof old) != 0) progress();
  switch_point();
  return old;
}

}  // namespace hired_emulator

#define HIRED_ATOMIC(name, T, expression)                                                  \
  inline T name(T* p, T value, hired_emulator::Site site = hired_emulator::Site::here()) { \
    return hired_emulator::atomic(p, #name, site, [=](T old) -> T { return expression; }); \
  }
#define HIRED_ATOMIC_CAS(T)                                                                   \
  inline T atomicCAS(T* p, T expected, T value,                                               \
                     hired_emulator::Site site = hired_emulator::Site::here()) {              \
    return hired_emulator::atomic(p, "atomicCAS", site,                                       \
                                  [=](T old) -> T { return old == expected ? value : old; }); \
  }
#define HIRED_ATOMICS(T)                                \
  HIRED_ATOMIC(atomicMax, T, old > value ? old : value) \
  HIRED_ATOMIC(atomicMin, T, old < value ? old : value) \
  HIRED_ATOMIC(atomicExch, T, ((void)old, value))       \
  HIRED_ATOMIC(atomicOr, T, old | value)                \
  HIRED_ATOMIC(atomicAnd, T, old& value)                \
  HIRED_ATOMIC(atomicXor, T, old ^ value)               \
  HIRED_ATOMIC_CAS(T)

HIRED_ATOMICS(int)
HIRED_ATOMICS(unsigned)
HIRED_ATOMICS(unsigned long long)
HIRED_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + value))
HIRED_ATOMIC(atomicAdd, unsigned, old + value)
HIRED_ATOMIC(atomicAdd, unsigned long long, old + value)
HIRED_ATOMIC(atomicAdd, float, old + value)
HIRED_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - value))
HIRED_ATOMIC(atomicSub, unsigned, old - value)
HIRED_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
#undef HIRED_ATOMICS
#undef HIRED_ATOMIC_CAS
#undef HIRED_ATOMIC

#define HIRED_LOAD(name)                                                         \
  template <class T>                                                             \
  T name(const T* p, hired_emulator::Site site = hired_emulator::Site::here()) { \
    hired_emulator::check_aligned(p, #name, site);                               \
    return *p;                                                                   \
  }
#define HIRED_STORE(name)                                               \
  template <class T>                                                    \
  void name(T* p, std::common_type_t<T> value,                          \
            hired_emulator::Site site = hired_emulator::Site::here()) { \
    hired_emulator::check_aligned(p, #name, site);                      \
    *p = value;                                                         \
  }
HIRED_LOAD(__ldg)
HIRED_LOAD(__ldca)
HIRED_LOAD(__ldcg)
HIRED_LOAD(__ldcs)
HIRED_STORE(__stwb)
HIRED_STORE(__stcg)
HIRED_STORE(__stcs)
#undef HIRED_LOAD
#undef HIRED_STORE

// --- arithmetic ----------------------------------------------------------------------------------

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

#define HIRED_BITS(name, To, From)             \
  inline To name(From from) {                  \
    static_assert(sizeof(To) == sizeof(From)); \
    To to;                                     \
    memcpy(&to, &from, sizeof to);             \
    return to;                                 \
  }
HIRED_BITS(__float_as_uint, unsigned, float)
HIRED_BITS(__float_as_int, int, float)
HIRED_BITS(__uint_as_float, float, unsigned)
HIRED_BITS(__int_as_float, float, int)
#undef HIRED_BITS

inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline float __fsqrt_rn(float a) {
  return sqrtf(a);
}
// As on the device: to the nearest, saturated; 0 for NaN.
inline int __float2int_rn(float x) {
  if (!(x == x)) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  if (x < -2147483648.0f) return INT32_MIN;
  return static_cast<int>(nearbyintf(x));
}
inline float __int2float_rn(int x) {
  return static_cast<float>(x);
}
inline float __uint2float_rn(unsigned x) {
  return static_cast<float>(x);
}

#define HIRED_MIN_MAX(T)   \
  inline T min(T a, T b) { \
    return b < a ? b : a;  \
  }                        \
  inline T max(T a, T b) { \
    return a < b ? b : a;  \
  }
HIRED_MIN_MAX(int)
HIRED_MIN_MAX(unsigned)
HIRED_MIN_MAX(long)
HIRED_MIN_MAX(unsigned long)
HIRED_MIN_MAX(long long)
HIRED_MIN_MAX(unsigned long long)
#undef HIRED_MIN_MAX
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}
