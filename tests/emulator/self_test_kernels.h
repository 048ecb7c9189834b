// SPDX-License-Identifier: Apache-2.0
//
// Kernels for the emulator's own test: right ones, and twins of them with one planted error each.
// WarpParams::wrong counts what a kernel itself finds wrong.
#pragma once

#include "cuda_emulator.h"

constexpr unsigned kFull = 0xffffffffu;

struct ScanParams {
  const unsigned* in;  // [blocks, threads]
  unsigned* out;
};
struct HistogramParams {
  const unsigned* in;  // [n]
  unsigned n;
  unsigned* bins;  // [count]
  unsigned count;
};
struct ReduceParams {
  unsigned* partial;  // [blocks]
  unsigned* counter;
  unsigned* result;
};
struct ChainParams {
  unsigned* sums;   // [blocks]
  unsigned* flags;  // [blocks]
  unsigned* tickets;
  unsigned blocks;
};
struct ExchangeParams {
  int* out;  // [blocks, threads]
};
struct WarpParams {
  unsigned* wrong;
};

template <class T>
T* shared() {
  return static_cast<T*>(hired_emulator::shared_memory());
}

// --- right ---------------------------------------------------------------------------------------

template <bool kBarrier>
__device__ __forceinline__ void scan_block(const ScanParams& p) {
  unsigned* totals = shared<unsigned>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned sum = p.in[i];
  for (int step = 1; step < 32; step *= 2) {
    const unsigned below = __shfl_up_sync(kFull, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) totals[warp] = sum;
  if (kBarrier) __syncthreads();
  for (int w = 0; w < warp; ++w) sum += totals[w];
  p.out[i] = sum;
}
__global__ void __launch_bounds__(1024) scan_kernel(const __grid_constant__ ScanParams p) {
  scan_block<true>(p);
}
__global__ void scan_race_kernel(ScanParams p) {
  scan_block<false>(p);
}

template <bool kBarrier>
__device__ void count_block(const HistogramParams& p) {
  unsigned* bins = shared<unsigned>();
  for (unsigned i = threadIdx.x; i < p.count; i += blockDim.x) bins[i] = 0;
  if (kBarrier) __syncthreads();
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x) {
    atomicAdd(&bins[__ldg(p.in + i)], 1u);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < p.count; i += blockDim.x) atomicAdd(&p.bins[i], bins[i]);
}
__global__ void histogram_kernel(HistogramParams p) {
  count_block<true>(p);
}
__global__ void histogram_race_kernel(HistogramParams p) {
  count_block<false>(p);
}

// The last block to arrive adds up what all have written.
template <bool kEarly>
__device__ void reduce_grid(const ReduceParams& p) {
  unsigned* values = shared<unsigned>();
  values[threadIdx.x] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    __syncthreads();
  }
  int last = 0;
  if (threadIdx.x == 0) {
    if (!kEarly) p.partial[blockIdx.x] = values[0];
    __threadfence();
    last = atomicAdd(p.counter, 1u) == gridDim.x - 1;
    if (kEarly) p.partial[blockIdx.x] = values[0];
  }
  if (!__syncthreads_or(last)) return;
  __threadfence();
  if (threadIdx.x != 0) return;
  unsigned sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += __ldcg(p.partial + i);
  *p.result = sum;
  *p.counter = 0;
}
__global__ void reduce_kernel(ReduceParams p) {
  reduce_grid<false>(p);
}
__global__ void reduce_early_kernel(ReduceParams p) {
  reduce_grid<true>(p);
}

enum class Order { kTicket, kLowerBlock, kHigherBlock };

// Block after block adds to the sum of the one before it, in the order of their tickets.
template <Order kOrder>
__global__ void chain_kernel(ChainParams p) {
  unsigned* turn = shared<unsigned>();
  if (threadIdx.x == 0) {
    turn[0] = kOrder == Order::kTicket       ? atomicAdd(p.tickets, 1u)
              : kOrder == Order::kLowerBlock ? blockIdx.x
                                             : p.blocks - 1 - blockIdx.x;
  }
  __syncthreads();
  const unsigned mine = turn[0];
  if (threadIdx.x == 0) {
    if (mine > 0) {
      while (*static_cast<volatile unsigned*>(p.flags + mine - 1) == 0) hired_emulator::poll();
    }
    __threadfence();
    p.sums[mine] = (mine > 0 ? __ldcg(p.sums + mine - 1) : 0) + mine + 1;
    __threadfence();
    atomicExch(p.flags + mine, 1u);
  }
  __syncthreads();
}

template <bool kBarrier>
__device__ void exchange(const ExchangeParams& p) {
  int* mine = shared<int>();
  const unsigned other = (hired_emulator::cluster_rank() + 1) % hired_emulator::cluster_size();
  hired_emulator::cluster_sync();  // all have started
  mine[threadIdx.x] = static_cast<int>(1000 * blockIdx.x + threadIdx.x);
  if (kBarrier) hired_emulator::cluster_sync();
  p.out[blockIdx.x * blockDim.x + threadIdx.x] =
      hired_emulator::map_shared(mine, other)[threadIdx.x];
  hired_emulator::cluster_sync();  // nobody leaves while it is read
}
__global__ void exchange_kernel(ExchangeParams p) {
  exchange<true>(p);
}
__global__ void exchange_race_kernel(ExchangeParams p) {
  exchange<false>(p);
}

__global__ void warp_kernel(WarpParams p) {
  const int lane = threadIdx.x % 32;
  bool good = true;
  good &= __shfl_sync(kFull, lane * 3, 5) == 15;
  good &= __shfl_sync(kFull, lane, lane + 33) == (lane + 1) % 32;
  good &= __shfl_sync(kFull, lane, 3, 8) == lane / 8 * 8 + 3;
  good &= __shfl_up_sync(kFull, 1.5f * lane, 4) == 1.5f * (lane < 4 ? lane : lane - 4);
  good &= __shfl_up_sync(kFull, lane, 4, 8) == (lane % 8 < 4 ? lane : lane - 4);
  good &= __shfl_down_sync(kFull, 1ull << lane, 7) == 1ull << (lane < 25 ? lane + 7 : lane);
  good &= __shfl_down_sync(kFull, lane, 40) == lane;
  good &= __shfl_xor_sync(kFull, static_cast<unsigned>(lane), 9) == static_cast<unsigned>(lane ^ 9);
  // Into an earlier segment it reads, into a later one it keeps its own.
  good &= __shfl_xor_sync(kFull, lane, 8, 8) == (lane & 8 ? lane ^ 8 : lane);
  good &= __ballot_sync(kFull, lane % 3 == 0) == 0x49249249u;
  good &= __any_sync(kFull, lane == 31) == 1 && __any_sync(kFull, 0) == 0;
  good &= __all_sync(kFull, lane < 32) == 1 && __all_sync(kFull, lane != 7) == 0;
  int* values = shared<int>();
  values[threadIdx.x] = lane;
  __syncwarp();
  good &= values[threadIdx.x ^ 1] == (lane ^ 1);
  if (!good) atomicAdd(p.wrong, 1u);
}

// Halves, and a few lanes, on their own.
__global__ void part_kernel(WarpParams p) {
  const int lane = threadIdx.x % 32;
  bool good = true;
  if (lane < 16) {
    good &= __shfl_sync(0x0000ffffu, lane, 2) == 2;
    if (lane % 5 == 0) good &= __ballot_sync(0x00008421u, 1) == 0x00008421u;
  } else {
    good &= __shfl_sync(0xffff0000u, lane, 20) == 20;
  }
  __syncwarp();
  if (!good) atomicAdd(p.wrong, 1u);
}

__global__ void block_vote_kernel(WarpParams p) {
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  bool good = __syncthreads_or(i == n - 1) == 1;
  good &= __syncthreads_or(0) == 0;
  good &= __syncthreads_and(i < n) == 1;
  good &= __syncthreads_and(i != 3) == 0;
  good &= __syncthreads_count(i % 2) == n / 2;
  if (!good) atomicAdd(p.wrong, 1u);
}

// Here `wrong` counts the threads.
__global__ void coordinates_kernel(WarpParams p) {
  const bool inside = threadIdx.x < blockDim.x && threadIdx.y < blockDim.y &&
                      threadIdx.z < blockDim.z && blockIdx.x < gridDim.x &&
                      blockIdx.y < gridDim.y && blockIdx.z < gridDim.z;
  const unsigned rank = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned lowest = __shfl_sync(__ballot_sync(rank < 32 ? kFull : 0x0fffffffu, 1), rank, 0);
  if (inside && rank - lowest < 32) atomicAdd(p.wrong, 1u);
}

// One lane tells the others: from sm_70 on.
__global__ void mate_kernel(WarpParams) {
  auto* flag = static_cast<volatile int*>(shared<int>());
  if (threadIdx.x == 0) *flag = 0;
  __syncthreads();
  if (threadIdx.x != 31) {
    while (*flag == 0) hired_emulator::poll();
  } else {
    atomicExch(shared<int>(), 1);
  }
  __syncthreads();
}

// --- with a planted error ------------------------------------------------------------------------

__global__ void uninitialised_kernel(WarpParams p) {
  if (shared<int>()[threadIdx.x] != 0) atomicAdd(p.wrong, 1u);
}

__global__ void forever_kernel(WarpParams p) {
  if (threadIdx.x == 0) {
    while (atomicAdd(p.wrong, 0u) == 0) {
      __threadfence();
      hired_emulator::poll();
    }
  }
  __syncthreads();
}

__global__ void cross_barrier_kernel(ExchangeParams) {
  if (threadIdx.x == 0) {
    hired_emulator::cluster_sync();
  } else {
    __syncthreads();
  }
}

__global__ void divergent_exit_kernel(WarpParams) {
  if (threadIdx.x == 40) return;
  __syncthreads();
}

__global__ void divergent_site_kernel(WarpParams p) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    atomicAdd(p.wrong, 1u);
    __syncthreads();
  }
}

__global__ void divergent_kind_kernel(WarpParams) {
  threadIdx.x < 32 ? __syncthreads() : (void)__syncthreads_or(1);
}

__global__ void shuffle_exit_kernel(WarpParams) {
  if (threadIdx.x % 32 != 5) __shfl_sync(kFull, 1, 0);
}

__global__ void shuffle_barrier_kernel(WarpParams) {
  if (threadIdx.x % 32 != 5) __shfl_sync(kFull, 1, 0);
  __syncthreads();
}

__global__ void shuffle_outsider_kernel(WarpParams) {
  __shfl_sync(0xfffffffeu, 1, 1);
}

__global__ void shuffle_full_kernel(WarpParams) {
  __shfl_sync(kFull, 1, 0);
}

__global__ void shuffle_width_kernel(WarpParams) {
  __shfl_sync(kFull, 1, 0, 12);
}

__global__ void shuffle_source_kernel(WarpParams) {
  if (threadIdx.x % 32 < 8) __shfl_sync(0x000000ffu, 1, 8);
}

__global__ void two_primitives_kernel(WarpParams) {
  if (threadIdx.x % 32 < 8) {
    __ballot_sync(kFull, 1);
  } else {
    __any_sync(kFull, 1);
  }
}

__global__ void two_masks_kernel(WarpParams) {
  const unsigned lane = threadIdx.x % 32;
  if (lane < 8) __shfl_sync(lane < 4 ? 0x000000ffu : 0x000000f1u, 1, 0);
}

__global__ void misaligned_kernel(WarpParams p) {
  const auto* bytes = reinterpret_cast<const char*>(shared<int>()) + 4;
  if (__ldcg(reinterpret_cast<const uint4*>(bytes)).x == 0) atomicAdd(p.wrong, 1u);
}

__global__ void overrun_kernel(WarpParams) {
  if (threadIdx.x == 63) shared<volatile int>()[threadIdx.x + 1] = 1;
}

__global__ void overread_kernel(WarpParams p) {
  if (shared<volatile int>()[threadIdx.x + 1] == 0) atomicAdd(p.wrong, 1u);
}

// By a thread that others have run in between: its stack is still watched.
__global__ void overrun_local_kernel(WarpParams p) {
  volatile unsigned mine[4] = {};
  volatile unsigned* at = mine;
  asm("" : "+r"(at));  // what the compiler sees through, other sanitizers report
  for (int i = 0; i < 4; ++i) __syncthreads();
  at[threadIdx.x / 16 + (threadIdx.x == 63)] = 1;
  __syncthreads();
  if (at[threadIdx.x / 16] != 1) atomicAdd(p.wrong, 1u);
}

// The last barrier of `exchange` is missing, and block 0 is late. kMapped: it asked in time.
template <bool kMapped>
__global__ void exit_before_read_kernel(ExchangeParams p) {
  int* mine = shared<int>();
  const unsigned rank = hired_emulator::cluster_rank();
  const unsigned other = (rank + 1) % hired_emulator::cluster_size();
  mine[threadIdx.x] = static_cast<int>(1000 * blockIdx.x + threadIdx.x);
  int* theirs = kMapped ? hired_emulator::map_shared(mine, other) : nullptr;
  hired_emulator::cluster_sync();
  for (int i = 0; rank == 0 && i < 50; ++i) __threadfence();
  if (!kMapped) theirs = hired_emulator::map_shared(mine, other);
  p.out[blockIdx.x * blockDim.x + threadIdx.x] = theirs[threadIdx.x];
}
