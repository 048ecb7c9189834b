// SPDX-License-Identifier: Apache-2.0
//
// The machine behind scheduler.h: threads, warps, blocks and clusters, who of them can run, and
// what they wait for. scheduler.cpp switches and picks, primitives.cpp holds barriers and warp
// primitives, blocks.cpp starts and ends blocks. One machine, one run at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scheduler.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define HIRED_ASAN 1
#else
#define HIRED_ASAN 0
#endif

namespace hired_emulator {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kStackBytes = HIRED_ASAN ? 256 << 10 : 128 << 10;

// splitmix64
struct Random {
  uint64_t state = 0;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t n) { return (next() >> 32) * n >> 32; }
};

struct Block;
struct Cluster;
struct Warp;

struct alignas(64) Thread : Coordinates {  // what every switch touches in two cache lines
  Block* home = nullptr;
  Warp* warp = nullptr;
  void** context = nullptr;  // where it goes on; null before its first turn
  unsigned lane = 0;
  int width = 0;
  uint64_t value = 0;  // given to a warp primitive, then its result
  unsigned argument = 0;
  const char* place = nullptr;  // where it waits, polls or sleeps
  Site site = {"", 0};
  unsigned char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's

  uint32_t bit() const { return 1u << lane; }
};

// Lanes that have reached a warp primitive and wait for the rest of its mask.
struct Meeting {
  uint32_t mask, arrived;
  Primitive kind;
  Site site;
};

struct Warp {  // sets of lanes, a bit each
  Block* home = nullptr;
  Thread* threads = nullptr;
  unsigned index = 0;
  uint32_t exists = 0, exited = 0;
  uint32_t ready = 0;       // can run
  uint32_t polling = 0;     // have done nothing but poll since they last got on
  uint32_t at_barrier = 0;  // of the block or the cluster
  std::vector<Meeting> meetings;
};

struct Barrier {
  Primitive kind = Primitive::kSyncThreads;
  Site site = {"", 0};
  const Thread* first = nullptr;
  unsigned arrived = 0, yes = 0, exited = 0, members = 0;
  int result = 0;
};

struct Block {
  const Launch* launch = nullptr;
  Cluster* cluster = nullptr;
  unsigned rank = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  uint32_t ready_warps = 0;  // with a thread that can run
  uint32_t slow_warps = 0;   // that this run rarely picks
  size_t place_in_active = 0;
  bool started = false;
  Barrier barrier;
  unsigned char* shared = nullptr;
};

struct Cluster {
  size_t launch = 0;
  std::vector<std::unique_ptr<Block>> blocks;
  Barrier barrier;
};

struct Queue {  // of a launch: clusters to start, in this order from the back
  std::vector<uint64_t> clusters;
  uint64_t unfinished = 0;
};

struct Nap {
  Thread* thread;
  uint64_t until;
};

class Machine {
 public:
  void run(const std::vector<Launch>& launches);

  // For the running thread.
  Thread& me() { return *current_; }
  uint64_t warp_primitive(Primitive kind, uint32_t mask, uint64_t value, unsigned argument,
                          int width, Site site);
  int barrier(Primitive kind, int predicate, Site site);
  void poll(Site site);
  void progress();
  void switch_point();
  std::string where(const char* what, Site site) const;
  [[noreturn]] void fail(const std::string& what);

 private:
  // scheduler.cpp
  static void enter();
  [[noreturn]] void begin(const Thread& thread);
  void leave_for(Thread* next);
  void switch_to(Thread* next, bool for_good = false);
  Thread* pick();
  Thread* take_lane(uint64_t random);
  uint32_t eligible(const Warp& warp) const;
  void make_ready(Warp& warp, uint32_t lanes);
  void make_waiting(Thread& thread);
  void wait(const char* place, Site site);
  void switch_by_chance(unsigned percent);
  void wake();

  // primitives.cpp
  void meet(Warp& warp, const Meeting& meeting);
  void release(Block& block);
  void check_exit(Thread& thread);

  // blocks.cpp
  bool start_cluster();
  void prepare(Block& block, uint64_t block_index);
  unsigned char* take_stack();
  void fill_shared(Block& block);
  void exit_thread();
  void end_block(Block& block);
  void retire_clusters();
  void abandon();
  std::string stuck() const;

  Options options_;
  Random random_;
  uint64_t burst_ = 0;  // of 64 picks, how many stay with the last block

  const std::vector<Launch>* launches_ = nullptr;
  std::vector<Queue> queues_;
  std::vector<std::unique_ptr<Cluster>> resident_;
  size_t resident_blocks_ = 0;

  std::vector<Block*> active_;  // blocks with a thread that can run
  Block* last_block_ = nullptr;
  Warp* round_warp_ = nullptr;  // lock step: the warp whose lanes take their turns
  uint32_t round_ = 0;          // those that have not had theirs
  std::vector<Nap> naps_;
  uint64_t picks_ = 0, next_wake_ = 0;
  uint64_t ready_threads_ = 0, idle_polls_ = 0;

  Thread* current_ = nullptr;
  Thread* before_ = nullptr;  // who ran until current_ took over
  Thread host_;
  unsigned char* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
  std::vector<unsigned char*> stacks_;  // free ones
  size_t threads_begun_ = 0;
  std::string failure_;
};

extern Machine machine;

const char* name_of(Primitive kind);
bool operator==(const Site& a, const Site& b);
std::string text(const Site& site);
std::string text(const uint3& index);

}  // namespace hired_emulator
