// SPDX-License-Identifier: Apache-2.0
//
// The CUDA launchers: exactly one kernel a call (one for each kLargeBatch pictures, or kSmallBatch
// on sm_61), nothing else enqueued, no synchronisation. They take the stream, a workspace of
// uninitialised memory and counters from their caller.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_limits.h"
#include "select.h"

namespace hired {

// Pictures of a launch within so many bytes of parameters, which are sent along with it.
inline constexpr int kTinyBatch = 4;     // 0.7 KB
inline constexpr int kSmallBatch = 64;   // 4 KB
inline constexpr int kLargeBatch = 512;  // 32 KB, which sm_70 and later have

// What is counted of one picture. The full image, whose budget is known beforehand, counts by
// itself: its tokens are on their way while sub-images are still scored and weighed.
struct alignas(16) PictureCounters {
  uint32_t heads_init, heads_full, heads_sub;  // head jobs done
  uint32_t weighed;                            // 1 once the budgets of sub-images are known; under
                                               // `pooled` partitions whose scores are known
  uint32_t chosen_full;                        // 1 once it is known what the full image keeps
  uint32_t chosen_sub;                         // sub-images of which it is known what they keep
};

// What launches count: each finds its set at zero, and leaves the other at zero for the next one.
// Nobody has to be the last to leave.
struct Counters {
  // Tickets drawn of this launch; in the highest bit, which of the sets is its own. The next launch
  // finds the other bit alone.
  uint32_t tickets;
  uint32_t unused[31];  // what others wait for lies in other sectors
  PictureCounters sets[2][kLargeBatch];
};

struct DeviceWorkspace {
  Counters* counters;
  float* probabilities;  // select_qk: [P, H, jobs, T] of the final, [B, H, jobs, T] of the initial
                         // layer, one job a head where there is one query
  uint32_t* keys;        // [P, M], `pooled` only
  uint32_t* kept;        // [P, mask_words(M)], a bit a token
  int32_t* budgets;      // [P]
};

struct CudaPlace {
  int device;          // that of the stream and of all memory
  void* stream;        // cudaStream_t
  Counters* counters;  // of this stream, or of this node of a graph, alone
  void* workspace;     // cuda_workspace_bytes(call), any alignment
  int32_t threads;     // of a block, a multiple of 32: kThreads
};

size_t cuda_workspace_bytes(const SelectCall& call);
size_t cuda_workspace_bytes(const SelectQkCall& call);

Status launch_select_cuda(const SelectCall& call, const CudaPlace& place);
Status launch_select_qk_cuda(const SelectQkCall& call, const CudaPlace& place);

// Counters for launches on a stream: always the same for a stream, and no other stream's, also
// where CUDA gives a new one the handle of one that was destroyed; new ones for each launch that a
// graph captures, since a graph may run beside its stream. They live as long as the process, 32 KB
// each.
Status find_counters(int device, void* stream, Counters** counters);

}  // namespace hired
