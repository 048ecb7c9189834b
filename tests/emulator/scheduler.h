// SPDX-License-Identifier: Apache-2.0
//
// Runs launches of CUDA kernels on the host, each CUDA thread a fiber, all on the caller's thread.
// A fiber runs until it reaches a barrier, a warp primitive, a poll or its end; atomics and fences
// let another fiber go first now and then. Who runs next, and in which order blocks start, is
// shuffled from Options::seed; the same seed gives the same run.
//
// What it cannot see: weak memory order (a missing __threadfence), races inside straight code, and
// spin loops that never call poll(), which hang.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_types.h"

namespace hired_emulator {

enum class Warps {
  kIndependent,  // sm_70 and later: every thread makes progress on its own
  // sm_61: a warp's lanes run in turns, none while another spins; warp primitives come from one
  // place in the source, with full masks.
  kLockStep,
};

struct Options {
  uint64_t seed = 1;
  unsigned resident_blocks = 8;  // at once; never less than one cluster
  unsigned cluster_size = 1;     // of launches that do not name their own
  Warps warps = Warps::kIndependent;
  unsigned poll_limit = 1000;  // polls of each thread that can run, while nothing else happens
  unsigned spin_limit = UINT32_MAX;  // polls of one wait: HIRED_SPIN_LIMIT of the kernels
  unsigned switch_percent = 25;      // chance that another thread runs before, or after, an atomic
  bool abort_on_failure = true;      // cudaLaunchKernel: print and abort, or return an error
};

// Takes effect at the next launch.
Options& options();

// An error of the kernel: what, where, in which block and thread, under which seed.
class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A place in the source, the caller's when it is a default argument.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Primitive {
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kSyncWarp,
  kSyncThreads,
  kSyncThreadsOr,
  kSyncThreadsAnd,
  kSyncThreadsCount,
  kClusterSync,
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster_size = 1;
  const void* stream = nullptr;
  std::function<void()> thread;  // what every thread runs
};

// Runs launches together, their blocks in one pool; those of one stream one after the other.
// Throws Failure.
void run(const std::vector<Launch>& launches);

// Every cudaLaunchKernel within `launches` waits for its end, then all run together. Throws
// Failure.
void together(const std::function<void()>& launches);

// What cudaLaunchKernel does with a launch: queue it (within `together`) or run it. False after a
// failure, whose text last_failure() then holds.
bool submit(Launch launch);
const std::string& last_failure();

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            const Arguments&... arguments) {
  run({{grid, block, shared_bytes, options().cluster_size, nullptr,
        [=] { kernel(arguments...); }}});
}

// --- for the running thread ----------------------------------------------------------------------

struct Coordinates {
  uint3 thread, block;
  dim3 block_size, grid_size;
};

extern const Coordinates* running;

void* shared_memory();
unsigned cluster_rank();
unsigned cluster_size();
// The address in block `rank` of the cluster of what stands at `p` in this block's shared memory.
void* map_shared_address(const void* p, unsigned rank, Site site);

uint64_t warp_primitive(Primitive kind, unsigned mask, uint64_t value, unsigned argument, int width,
                        Site site);
int barrier(Primitive kind, int predicate, Site site);

// One turn of a wait loop: lets others run, and counts.
void poll(Site site = Site::here());
// Lets others run, by chance.
void switch_point();
// Memory that others may wait for has changed.
void progress();
[[noreturn]] void fail(const std::string& what, Site site);

template <class T>
T* map_shared(T* p, unsigned rank, Site site = Site::here()) {
  return static_cast<T*>(map_shared_address(p, rank, site));
}

inline void cluster_sync(Site site = Site::here()) {
  barrier(Primitive::kClusterSync, 0, site);
}

}  // namespace hired_emulator
