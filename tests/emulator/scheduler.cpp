// SPDX-License-Identifier: Apache-2.0
//
// The scheduler of scheduler.h. Threads are fibers that switch from one to the next directly; the
// host's own stack is entered when a block has ended, nothing can run, or a check has failed. A
// failed run leaves its other fibers where they stand: kernels own nothing.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <mutex>

#include "machine.h"

namespace hired_emulator {

const Coordinates* running = nullptr;
Machine machine;

namespace {

// One pick in so many may take a warp that this run keeps slow.
constexpr uint64_t kSlowPicks = 32;
// Of the switches at atomics and fences, one in so many puts the thread to sleep for 2^0 to 2^19
// picks, or until nobody else gets on: long enough for whole blocks to pass by.
constexpr uint64_t kSwitchesPerNap = 4, kNapLengths = 20;

struct Unwind {};  // leaves a failed thread

// A set bit of a non-empty mask: the first one at or after a random place.
unsigned some_bit(uint32_t mask, uint64_t random) {
  const unsigned turn = random & 31;
  const uint32_t turned = mask >> turn | mask << (-turn & 31);
  return (static_cast<unsigned>(__builtin_ctz(turned)) + turn) & 31;
}

}  // namespace

// --- switching -----------------------------------------------------------------------------------

// makecontext gives a thread its stack; from then on the compiler's own setjmp and longjmp switch,
// without the two things that make the C library's slow: swapcontext is a system call, longjmp has
// AddressSanitizer clear the stack that is left, which also hides overruns of arrays there.
// A switch in ns, plain and under AddressSanitizer: these 24 and 42, swapcontext 174 and 183,
// _longjmp 29 and 260. A Xeon of two cores, GCC 12.2 -O1, 2026-11-26.
#define HIRED_UNWATCHED __attribute__((noinline, no_sanitize_address))

HIRED_UNWATCHED void Machine::begin(const Thread& thread) {
  // Tops at different places within a page, or all would share a few sets of the cache.
  const size_t colour = threads_begun_++ % 24 * 128;
  ucontext_t context;
  getcontext(&context);
  context.uc_link = nullptr;
  context.uc_stack.ss_sp = thread.stack + kPageBytes;
  context.uc_stack.ss_size = kStackBytes - kPageBytes - colour;
  makecontext(&context, &Machine::enter, 0);
  setcontext(&context);
  abort();
}

// Not in the function that the context returns into: the compiler asks for that.
[[noreturn]] HIRED_UNWATCHED static void go_on(void** context) {
  __builtin_longjmp(context, 1);
}

// Returns when somebody switches back.
HIRED_UNWATCHED void Machine::leave_for(Thread* next) {
  void* here[5];
  before_->context = here;
  if (__builtin_setjmp(here) != 0) return;
  if (next->context == nullptr) begin(*next);
  go_on(next->context);
}

void Machine::switch_to(Thread* next, bool for_good) {
  Thread* self = current_;
  if (next == self) return;
  before_ = self;
  current_ = next;
  running = next;
#if HIRED_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self->fake_stack,
                                 next == &host_ ? host_stack_ : next->stack,
                                 next == &host_ ? host_stack_bytes_ : kStackBytes);
#endif
  (void)for_good;
  leave_for(next);
#if HIRED_ASAN
  __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
#endif
}

void Machine::enter() {
#if HIRED_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (machine.before_ == &machine.host_) {
    machine.host_stack_ = static_cast<unsigned char*>(const_cast<void*>(bottom));
    machine.host_stack_bytes_ = bytes;
  }
#endif
  Block& block = *machine.current_->home;
  try {
    if (!block.started) machine.fill_shared(block);
    block.launch->thread();
    machine.exit_thread();
  } catch (const Unwind&) {
  } catch (const std::exception& exception) {
    machine.failure_ = exception.what();
  }
  const bool ended = !machine.failure_.empty() || block.barrier.exited == block.barrier.members;
  Thread* next = ended ? nullptr : machine.pick();
  machine.switch_to(next == nullptr ? &machine.host_ : next, true);
  abort();  // an exited thread does not run
}

void Machine::fail(const std::string& what) {
  failure_ = what;
  throw Unwind();
}

std::string Machine::where(const char* what, Site site) const {
  return "block " + text(current_->block) + " thread " + text(current_->thread) + ": " + what +
         " (" + text(site) + ")";
}

// --- who runs next -------------------------------------------------------------------------------

void Machine::make_ready(Warp& warp, uint32_t lanes) {
  Block& block = *warp.home;
  ready_threads_ += static_cast<unsigned>(__builtin_popcount(lanes & ~warp.ready));
  warp.ready |= lanes;
  if (block.ready_warps == 0) {
    block.place_in_active = active_.size();
    active_.push_back(&block);
  }
  block.ready_warps |= 1u << warp.index;
}

void Machine::make_waiting(Thread& thread) {
  Warp& warp = *thread.warp;
  Block& block = *warp.home;
  warp.ready &= ~thread.bit();
  --ready_threads_;
  if (warp.ready != 0) return;
  block.ready_warps &= ~(1u << warp.index);
  if (block.ready_warps != 0) return;
  active_.back()->place_in_active = block.place_in_active;
  active_[block.place_in_active] = active_.back();
  active_.pop_back();
}

uint32_t Machine::eligible(const Warp& warp) const {
  const uint32_t spinning = warp.ready & warp.polling;
  return options_.warps == Warps::kLockStep && spinning != 0 ? spinning : warp.ready;
}

Thread* Machine::take_lane(uint64_t random) {
  const unsigned lane = some_bit(round_, random);
  round_ &= ~(1u << lane);
  Thread* thread = round_warp_->threads + lane;
  if ((round_warp_->polling & thread->bit()) == 0) idle_polls_ = 0;
  return thread;
}

// Null when no thread can run.
Thread* Machine::pick() {
  ++picks_;
  if (!naps_.empty() && (picks_ >= next_wake_ || active_.empty())) wake();
  if (active_.empty()) return nullptr;
  const uint64_t random = random_.next();
  if (options_.warps == Warps::kLockStep && round_ != 0) {
    round_ &= eligible(*round_warp_);
    if (round_ != 0) return take_lane(random);
  }
  Block* block = last_block_;
  if (block == nullptr || block->ready_warps == 0 || (random & 63) >= burst_) {
    block = active_[(random >> 32) * active_.size() >> 32];
  }
  last_block_ = block;
  uint32_t warps = block->ready_warps;
  if ((warps & ~block->slow_warps) != 0 && (random >> 6) % kSlowPicks != 0) {
    warps &= ~block->slow_warps;
  }
  round_warp_ = &block->warps[some_bit(warps, random >> 12)];
  round_ = eligible(*round_warp_);
  return take_lane(random >> 17);
}

void Machine::wait(const char* place, Site site) {
  current_->place = place;
  current_->site = site;
  make_waiting(*current_);
  Thread* next = pick();
  switch_to(next == nullptr ? &host_ : next);
}

void Machine::switch_by_chance(unsigned percent) {
  if (random_.below(100) < percent) switch_to(pick());  // the caller itself can run
}

void Machine::switch_point() {
  if (random_.below(100) >= options_.switch_percent) return;
  const bool spins = (current_->warp->polling & current_->bit()) != 0;
  if (spins || random_.below(kSwitchesPerNap) != 0) return switch_to(pick());
  const uint64_t until = picks_ + (uint64_t{1} << random_.below(kNapLengths));
  next_wake_ = naps_.empty() ? until : std::min(next_wake_, until);
  naps_.push_back({current_, until});
  current_->place = "an atomic or a fence";
  make_waiting(*current_);
  switch_to(pick());  // there is one: pick() wakes a sleeper before it gives up
}

// Those whose time has come; the next one early where nobody else can run.
void Machine::wake() {
  const uint64_t now = active_.empty() ? next_wake_ : picks_;
  next_wake_ = UINT64_MAX;
  size_t kept = 0;
  for (const Nap& nap : naps_) {
    if (nap.until <= now) {
      make_ready(*nap.thread->warp, nap.thread->bit());
    } else {
      naps_[kept++] = nap;
      next_wake_ = std::min(next_wake_, nap.until);
    }
  }
  naps_.resize(kept);
}

void Machine::progress() {
  idle_polls_ = 0;
  current_->warp->polling &= ~current_->bit();
}

void Machine::poll(Site site) {
  Thread& thread = me();
  thread.warp->polling |= thread.bit();
  thread.place = "a wait loop";
  thread.site = site;
  if (++idle_polls_ > 2 * ready_threads_ && !naps_.empty()) {
    picks_ = std::max(picks_, next_wake_);  // time flies
    idle_polls_ = 0;
  } else if (idle_polls_ > options_.poll_limit * ready_threads_) {
    fail("livelock: every thread that can run polls, in vain" + stuck());
  }
  switch_to(pick());
}

// --- the interface -------------------------------------------------------------------------------

namespace {

std::mutex one_run_at_a_time;
bool queueing = false;
std::vector<Launch> queued;
std::string failure_text;

}  // namespace

Options& options() {
  static Options options;
  return options;
}

void run(const std::vector<Launch>& launches) {
  for (const Launch& launch : launches) {
    const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
    if (threads == 0 || threads > 1024) throw std::invalid_argument("threads of a block");
    if (launch.cluster_size == 0 || launch.grid.x % launch.cluster_size != 0) {
      throw std::invalid_argument("a grid is not a whole number of clusters");
    }
  }
  const std::lock_guard<std::mutex> lock(one_run_at_a_time);
  machine.run(launches);
}

void together(const std::function<void()>& launches) {
  {
    const struct Queueing {
      Queueing() { queueing = true; }
      ~Queueing() { queueing = false; }
    } until_here;
    launches();
  }
  const std::vector<Launch> all = std::move(queued);
  queued.clear();
  run(all);
}

bool submit(Launch launch) {
  if (queueing) {
    queued.push_back(std::move(launch));
    return true;
  }
  try {
    run({launch});
    return true;
  } catch (const Failure& failure) {
    failure_text = failure.what();
  }
  if (options().abort_on_failure) {
    fprintf(stderr, "%s\n", failure_text.c_str());
    abort();
  }
  return false;
}

const std::string& last_failure() {
  return failure_text;
}

void* shared_memory() {
  return machine.me().home->shared;
}

unsigned cluster_rank() {
  return machine.me().home->rank;
}

unsigned cluster_size() {
  return static_cast<unsigned>(machine.me().home->cluster->blocks.size());
}

void* map_shared_address(const void* p, unsigned rank, Site site) {
  const Block& block = *machine.me().home;
  const auto offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(block.shared);
  if (offset > block.launch->shared_bytes) fail("map_shared of an address outside", site);
  if (rank >= block.cluster->blocks.size()) fail("map_shared of a rank outside", site);
  const Block& other = *block.cluster->blocks[rank];
  if (other.barrier.exited == other.barrier.members) fail("map_shared of a block that ended", site);
  return other.shared + offset;
}

uint64_t warp_primitive(Primitive kind, unsigned mask, uint64_t value, unsigned argument, int width,
                        Site site) {
  return machine.warp_primitive(kind, mask, value, argument, width, site);
}

int barrier(Primitive kind, int predicate, Site site) {
  return machine.barrier(kind, predicate, site);
}

void poll(Site site) {
  machine.poll(site);
}

void switch_point() {
  machine.switch_point();
}

void progress() {
  machine.progress();
}

void fail(const std::string& what, Site site) {
  machine.fail(machine.where(what.c_str(), site));
}

}  // namespace hired_emulator
