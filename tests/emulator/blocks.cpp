// SPDX-License-Identifier: Apache-2.0
//
// The life of a run: clusters start in a shuffled order while there is room, their blocks get
// stacks and a shared memory of garbage, and when all are done, or a check has failed, all is given
// back. The report of who stands where is made here too.
#include <sys/mman.h>

#include <algorithm>

#include "machine.h"

namespace hired_emulator {
namespace {

constexpr size_t kOuterFrames = 16 << 10;  // at the top of a stack
// Bytes after a shared buffer that must stay as they are; AddressSanitizer watches them better.
constexpr size_t kCanaryBytes = HIRED_ASAN ? 0 : 64;
constexpr unsigned char kCanary = 0xc5;
constexpr size_t kReportLines = 24;

}  // namespace

// When the first thread of the block runs, so that what a cluster's other blocks have written
// before that is lost, as it may be on a device.
void Machine::fill_shared(Block& block) {
  block.started = true;
  // All ones: NaN, -1. Otherwise words that look like anything.
  const bool ones = random_.below(4) == 0;
  const size_t bytes = block.launch->shared_bytes;
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    const uint64_t word = ones ? ~uint64_t{0} : random_.next();
    memcpy(block.shared + i, &word, std::min(sizeof word, bytes - i));
  }
}

void Machine::exit_thread() {
  Thread& thread = me();
  Block& block = *thread.home;
  progress();
  check_exit(thread);
  thread.warp->exited |= thread.bit();
  make_waiting(thread);
  ++block.barrier.exited;
  ++block.cluster->barrier.exited;
  if (block.barrier.exited == block.barrier.members) end_block(block);
}

void Machine::end_block(Block& block) {
  const size_t bytes = block.launch->shared_bytes;
  for (size_t i = 0; i < kCanaryBytes; ++i) {
    if (block.shared[bytes + i] == kCanary) continue;
    fail("block " + text(block.threads[0].block) + ": shared memory of " + std::to_string(bytes) +
         " bytes was overrun, at byte " + std::to_string(bytes + i));
  }
  // For the cluster's other blocks it is gone.
  memset(block.shared, 0x5a, bytes);
#if HIRED_ASAN
  __asan_poison_memory_region(block.shared, bytes);
#endif
}

unsigned char* Machine::take_stack() {
  if (stacks_.empty()) {
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    // The guard page is an extra: the system allows only so many of them.
    (void)mprotect(stack, kPageBytes, PROT_NONE);
    stacks_.push_back(static_cast<unsigned char*>(stack));
  }
  unsigned char* stack = stacks_.back();
  stacks_.pop_back();
#if HIRED_ASAN
  // Where a thread ends, its outermost frames still stand.
  __asan_unpoison_memory_region(stack + kStackBytes - kOuterFrames, kOuterFrames);
#endif
  return stack;
}

void Machine::prepare(Block& block, uint64_t block_index) {
  const Launch& launch = *block.launch;
  const dim3 size = launch.block;
  const unsigned count = size.x * size.y * size.z;
  const uint3 index = {static_cast<unsigned>(block_index % launch.grid.x),
                       static_cast<unsigned>(block_index / launch.grid.x % launch.grid.y),
                       static_cast<unsigned>(block_index / launch.grid.x / launch.grid.y)};
  block.barrier.members = count;
  void* shared = nullptr;
  if (posix_memalign(&shared, 16, launch.shared_bytes + kCanaryBytes) != 0) throw std::bad_alloc();
  block.shared = static_cast<unsigned char*>(shared);
  memset(block.shared + launch.shared_bytes, kCanary, kCanaryBytes);
  block.threads.resize(count);
  block.warps.resize((count + 31) / 32);
  for (unsigned rank = 0; rank < count; ++rank) {
    Thread& thread = block.threads[rank];
    Warp& warp = block.warps[rank / 32];
    thread.thread = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
    thread.block = index;
    thread.block_size = size;
    thread.grid_size = launch.grid;
    thread.home = &block;
    thread.warp = &warp;
    thread.lane = rank % 32;
    thread.stack = take_stack();
    warp.exists |= thread.bit();
  }
  for (Warp& warp : block.warps) {
    warp.home = &block;
    warp.index = static_cast<unsigned>(&warp - block.warps.data());
    warp.threads = &block.threads[warp.index * 32];
    make_ready(warp, warp.exists);
  }
  block.slow_warps = static_cast<uint32_t>(random_.next() & random_.next());
}

bool Machine::start_cluster() {
  // A launch may start once those before it on its stream have ended.
  std::vector<size_t> open;
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (queues_[i].clusters.empty()) continue;
    bool first = true;
    for (size_t j = 0; j < i; ++j) {
      first &= queues_[j].unfinished == 0 || (*launches_)[j].stream != (*launches_)[i].stream;
    }
    if (first) open.push_back(i);
  }
  if (open.empty()) return false;
  const size_t chosen = open[random_.below(open.size())];
  const Launch& launch = (*launches_)[chosen];
  if (resident_blocks_ != 0 && resident_blocks_ + launch.cluster_size > options_.resident_blocks) {
    return false;
  }
  const uint64_t first_block = queues_[chosen].clusters.back() * launch.cluster_size;
  queues_[chosen].clusters.pop_back();
  auto cluster = std::make_unique<Cluster>();
  cluster->launch = chosen;
  for (unsigned rank = 0; rank < launch.cluster_size; ++rank) {
    auto block = std::make_unique<Block>();
    block->launch = &launch;
    block->cluster = cluster.get();
    block->rank = rank;
    prepare(*block, first_block + rank);
    cluster->barrier.members += block->barrier.members;
    cluster->blocks.push_back(std::move(block));
  }
  resident_blocks_ += launch.cluster_size;
  resident_.push_back(std::move(cluster));
  return true;
}

static void free_shared(const Block& block) {
#if HIRED_ASAN
  __asan_unpoison_memory_region(block.shared, block.launch->shared_bytes);
#endif
  free(block.shared);
}

void Machine::retire_clusters() {
  for (size_t i = resident_.size(); i-- > 0;) {
    Cluster& cluster = *resident_[i];
    if (cluster.barrier.exited < cluster.barrier.members) continue;
    for (auto& block : cluster.blocks) {
      for (Thread& thread : block->threads) stacks_.push_back(thread.stack);
      free_shared(*block);
    }
    resident_blocks_ -= cluster.blocks.size();
    --queues_[cluster.launch].unfinished;
    resident_.erase(resident_.begin() + static_cast<ptrdiff_t>(i));
  }
  last_block_ = nullptr;
  round_ = 0;
}

// Where everyone stands.
std::string Machine::stuck() const {
  uint64_t waiting = 0;
  for (const Queue& queue : queues_) waiting += queue.clusters.size();
  std::string report = "; " + std::to_string(resident_blocks_) + " blocks resident, " +
                       std::to_string(waiting) + " clusters not started";
  const auto state = [this](const Thread& thread) -> std::string {
    const Warp& warp = *thread.warp;
    if ((warp.exited & thread.bit()) != 0) return "exited";
    if ((warp.ready & ~warp.polling & thread.bit()) == 0) {
      return std::string("at ") + thread.place + " (" + text(thread.site) + ")";
    }
    return (eligible(warp) & thread.bit()) != 0 ? "can run" : "held up by lanes that spin";
  };
  size_t lines = 0;
  for (const auto& cluster : resident_) {
    for (const auto& block : cluster->blocks) {
      const std::vector<Thread>& threads = block->threads;
      for (size_t first = 0, end; first < threads.size(); first = end) {
        const std::string same = state(threads[first]);
        for (end = first + 1; end < threads.size() && state(threads[end]) == same;) ++end;
        if (++lines > kReportLines) continue;
        report += "\n  block " + text(threads[first].block) + " threads " + std::to_string(first) +
                  "-" + std::to_string(end - 1) + ": " + same;
      }
    }
  }
  if (lines > kReportLines) {
    report += "\n  ... and " + std::to_string(lines - kReportLines) + " more lines";
  }
  return report;
}

// What a failed run leaves behind.
void Machine::abandon() {
  for (auto& cluster : resident_) {
    for (auto& block : cluster->blocks) {
      for (Thread& thread : block->threads) {
#if HIRED_ASAN
        __asan_unpoison_memory_region(thread.stack + kPageBytes, kStackBytes - kPageBytes);
#endif
        stacks_.push_back(thread.stack);
      }
      free_shared(*block);
    }
  }
  resident_.clear();
  active_.clear();
  naps_.clear();
  last_block_ = nullptr;
  round_ = 0;
}

void Machine::run(const std::vector<Launch>& launches) {
  options_ = options();
  random_.state = options_.seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  constexpr uint64_t kBursts[] = {0, 32, 56, 63};
  burst_ = kBursts[random_.below(4)];
  launches_ = &launches;
  queues_.assign(launches.size(), {});
  for (size_t i = 0; i < launches.size(); ++i) {
    const dim3 grid = launches[i].grid;
    Queue& queue = queues_[i];
    queue.unfinished = uint64_t{grid.x} * grid.y * grid.z / launches[i].cluster_size;
    queue.clusters.resize(queue.unfinished);
    for (uint64_t c = 0; c < queue.unfinished; ++c) {
      const uint64_t other = random_.below(c + 1);
      queue.clusters[c] = queue.clusters[other];
      queue.clusters[other] = c;
    }
  }
  resident_blocks_ = ready_threads_ = idle_polls_ = picks_ = 0;
  failure_.clear();
  abandon();  // what an exception left behind
  current_ = &host_;
  while (true) {
    while (start_cluster()) {
    }
    if (resident_.empty()) break;
    Thread* next = pick();
    if (next == nullptr) {
      failure_ = "deadlock: no thread can run" + stuck();
    } else {
      switch_to(next);
    }
    if (!failure_.empty()) break;
    retire_clusters();
  }
  const bool failed = !failure_.empty();
  abandon();
  current_ = nullptr;
  running = nullptr;
  if (failed) throw Failure(failure_ + "\n  [seed " + std::to_string(options_.seed) + "]");
}

}  // namespace hired_emulator
