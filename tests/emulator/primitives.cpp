// SPDX-License-Identifier: Apache-2.0
//
// Barriers and warp primitives: who has arrived, who must, what comes out, and every way of getting
// it wrong that is seen on arrival rather than as a deadlock.
#include "machine.h"

namespace hired_emulator {

const char* name_of(Primitive kind) {
  static const char* const names[] = {
      "__shfl_sync",   "__shfl_up_sync",   "__shfl_down_sync",  "__shfl_xor_sync",
      "__ballot_sync", "__any_sync",       "__all_sync",        "__syncwarp",
      "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count",
      "cluster_sync",
  };
  return names[static_cast<int>(kind)];
}

bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

std::string text(const Site& site) {
  const char* slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ")";
}

namespace {

std::string text_of_mask(uint32_t mask) {
  char digits[16];
  snprintf(digits, sizeof digits, "0x%08x", mask);
  return digits;
}

std::string text(Primitive kind, const Site& site) {
  return name_of(kind) + (" (" + text(site) + ")");
}

}  // namespace

// --- warp primitives -----------------------------------------------------------------------------

uint64_t Machine::warp_primitive(Primitive kind, uint32_t mask, uint64_t value, unsigned argument,
                                 int width, Site site) {
  Thread& thread = me();
  Warp& warp = *thread.warp;
  const uint32_t bit = thread.bit();
  progress();
  const auto refuse = [&](const std::string& what) {
    fail(where(name_of(kind), site) + ": mask " + text_of_mask(mask) + " " + what);
  };
  if ((mask & bit) == 0) refuse("does not name the calling lane");
  if ((mask & ~warp.exists) != 0) refuse("names lanes that the block does not have");
  if ((mask & warp.exited) != 0) {
    refuse("names lanes that have exited: " + text_of_mask(mask & warp.exited));
  }
  if ((mask & warp.at_barrier) != 0) {
    refuse("names lanes that wait at a barrier and do not come: " +
           text_of_mask(mask & warp.at_barrier));
  }
  if (options_.warps == Warps::kLockStep && mask != warp.exists) {
    refuse("is not full: sm_61 takes only the warp's converged lanes");
  }
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    refuse("with width " + std::to_string(width) + ", not a power of 2 up to 32");
  }

  Meeting* meeting = nullptr;
  for (Meeting& other : warp.meetings) {
    if (other.mask == mask) {
      meeting = &other;
    } else if ((other.mask & bit) != 0 && (other.arrived & mask) != 0) {
      refuse("names lanes " + text_of_mask(other.arrived & mask) +
             ", which wait for this lane at " + text(other.kind, other.site) + " with mask " +
             text_of_mask(other.mask));
    }
  }
  if (meeting == nullptr) {
    warp.meetings.push_back({mask, 0, kind, site});
    meeting = &warp.meetings.back();
  } else if (meeting->kind != kind ||
             (options_.warps == Warps::kLockStep && !(meeting->site == site))) {
    refuse("meets lanes " + text_of_mask(meeting->arrived) + " at another primitive, " +
           text(meeting->kind, meeting->site));
  }
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  meeting->arrived |= bit;
  if (meeting->arrived != mask) {
    wait(name_of(kind), site);
  } else {
    const Meeting complete = *meeting;
    warp.meetings.erase(warp.meetings.begin() + (meeting - warp.meetings.data()));
    meet(warp, complete);
    make_ready(warp, mask);
    switch_by_chance(50);
  }
  return thread.value;
}

// The results of a primitive that all its lanes have reached.
void Machine::meet(Warp& warp, const Meeting& meeting) {
  const uint32_t mask = meeting.mask;
  uint64_t values[32];
  uint32_t votes = 0;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(__builtin_ctz(rest));
    values[lane] = warp.threads[lane].value;
    votes |= static_cast<uint32_t>(values[lane] & 1) << lane;
  }
  if (meeting.kind >= Primitive::kBallot) {
    const uint64_t result = meeting.kind == Primitive::kBallot ? votes
                            : meeting.kind == Primitive::kAny  ? votes != 0
                                                               : votes == mask;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      warp.threads[__builtin_ctz(rest)].value = result;
    }
    return;
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Thread& thread = warp.threads[lane];
    const int first = lane & ~(thread.width - 1), end = first + thread.width;
    const auto argument = static_cast<int64_t>(thread.argument);
    int64_t source = lane;
    switch (meeting.kind) {
      case Primitive::kShuffle: source = first + (argument & (thread.width - 1)); break;
      case Primitive::kShuffleUp: source = lane - argument < first ? lane : lane - argument; break;
      case Primitive::kShuffleDown: source = lane + argument >= end ? lane : lane + argument; break;
      default: source = (lane ^ argument) >= end ? lane : lane ^ argument; break;
    }
    if ((mask >> source & 1) == 0) {
      fail(where(name_of(meeting.kind), meeting.site) + ": lane " + std::to_string(lane) +
           " reads lane " + std::to_string(source) + ", which mask " + text_of_mask(mask) +
           " does not name");
    }
    thread.value = values[source];
  }
}

// --- barriers ------------------------------------------------------------------------------------

void Machine::release(Block& block) {
  for (Warp& warp : block.warps) {
    if (warp.at_barrier != 0) make_ready(warp, warp.at_barrier);
    warp.at_barrier = 0;
  }
}

int Machine::barrier(Primitive kind, int predicate, Site site) {
  Thread& thread = me();
  Block& block = *thread.home;
  const bool whole_cluster = kind == Primitive::kClusterSync;
  Barrier& barrier = whole_cluster ? block.cluster->barrier : block.barrier;
  progress();
  const auto refuse = [&](const std::string& what) {
    fail(where(name_of(kind), site) + ": divergent barrier: " + what);
  };
  if (barrier.exited != 0) refuse(std::to_string(barrier.exited) + " threads have exited");
  for (const Meeting& meeting : thread.warp->meetings) {
    if ((meeting.mask & thread.bit()) == 0) continue;
    refuse("lanes " + text_of_mask(meeting.arrived) + " wait for this lane at " +
           text(meeting.kind, meeting.site));
  }
  if (barrier.arrived == 0) {
    barrier.kind = kind;
    barrier.site = site;
    barrier.first = &thread;
    barrier.yes = 0;
  } else if (barrier.kind != kind || !(barrier.site == site)) {
    refuse("block " + text(barrier.first->block) + " thread " + text(barrier.first->thread) +
           " waits at another, " + text(barrier.kind, barrier.site));
  }
  barrier.yes += predicate != 0;
  if (++barrier.arrived < barrier.members) {
    thread.warp->at_barrier |= thread.bit();
    wait(name_of(kind), site);
    return barrier.result;
  }
  const auto yes = static_cast<int>(barrier.yes);
  barrier.result = kind == Primitive::kSyncThreadsOr    ? yes != 0
                   : kind == Primitive::kSyncThreadsAnd ? barrier.yes == barrier.members
                                                        : yes;
  barrier.arrived = 0;
  if (whole_cluster) {
    for (auto& each : block.cluster->blocks) release(*each);
  } else {
    release(block);
  }
  switch_by_chance(50);
  return barrier.result;
}

// A thread ends: nobody may wait for it.
void Machine::check_exit(Thread& thread) {
  for (const Barrier* barrier : {&thread.home->barrier, &thread.home->cluster->barrier}) {
    if (barrier->arrived == 0) continue;
    fail(where(name_of(barrier->kind), barrier->site) +
         ": divergent barrier: this thread exits, thread " + text(barrier->first->thread) +
         " of block " + text(barrier->first->block) + " waits");
  }
  for (const Meeting& meeting : thread.warp->meetings) {
    if ((meeting.mask & thread.bit()) == 0) continue;
    fail(where(name_of(meeting.kind), meeting.site) + ": this lane exits, lanes " +
         text_of_mask(meeting.arrived) + " wait for it");
  }
}

}  // namespace hired_emulator
