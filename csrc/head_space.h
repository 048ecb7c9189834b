// SPDX-License-Identifier: Apache-2.0
//
// Workspace of attention heads on a CPU: where queries are widened and logits become attention.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "arena.h"
#include "group.h"
#include "pool.h"
#include "queries_keys.h"

namespace hired {

inline constexpr int64_t kMaxLanes = 16;       // floats of the widest vector of any instruction set
inline constexpr int64_t kMaxTileQueries = 8;  // of any instruction set (cpu_tile.h)
// Elements of one query that lie together in a tile's, so that the distance between queries is a
// constant. Runs of a vector's width: no difference that could be measured.
inline constexpr int64_t kQueryRun = 64;

// Of rows with one query.
struct SingleSpace {
  int64_t logit_stride;  // N, padded to whole vectors and one more
  float* logits;         // [rows, H, logit_stride]
  int64_t query_stride;  // Dh, padded to whole vectors
  float* queries;        // [rows, H, query_stride]
};

// Of rows with more than one: scratch of each worker, and what jobs of a head add up to.
struct MeanSpace {
  int64_t workers;
  int64_t key_space;  // N, padded to whole vectors, * Dh
  float* keys;        // [workers, key_space] a head's, packed
  int64_t query_space;
  float* queries;        // [workers, query_space] a tile's
  int64_t logit_stride;  // N, padded to an odd number of the widest vectors
  float* logits;         // [workers, kMaxTileQueries, logit_stride]
  int64_t* first_item;   // [rows + 1] of each row among the jobs of all rows
  int64_t jobs;          // of a head, the most there are
  int64_t sum_stride;    // N, padded to whole vectors and one more
  float* sums;           // [rows, H, jobs, sum_stride]
};

struct HeadSpace {
  SingleSpace single;
  MeanSpace mean;
};

inline int64_t padded(int64_t count, int64_t to = kMaxLanes) {
  return (count + to - 1) / to * to;
}

inline namespace HIRED_ISA {  // kernels call it, too

// Jobs that a head's queries are cut into, for threads of their own. They add up in order, so that
// nothing but Q may count here.
inline int64_t query_jobs(int64_t Q) {
  constexpr int64_t kJobQueries = 128, kMaxJobs = 16;
  const int64_t jobs = (Q + kJobQueries - 1) / kJobQueries;
  return jobs < kMaxJobs ? jobs : kMaxJobs;
}

}  // namespace HIRED_ISA

inline SingleSpace carve_single(const Heads& heads, int64_t rows, Arena* arena) {
  SingleSpace space{};
  // Lanes are read from any of the last T logits on, up to one lane's width past the end.
  space.logit_stride = padded(heads.N) + kMaxLanes;
  space.logits = arena->take<float>(rows * heads.H * space.logit_stride);
  space.query_stride = padded(heads.Dh);
  space.queries = arena->take<float>(rows * heads.H * space.query_stride);
  return space;
}

inline MeanSpace carve_mean(const Heads& heads, int64_t rows, int64_t jobs, const Pool& pool,
                            Arena* arena) {
  MeanSpace space{};
  space.workers = std::max<int64_t>(1, std::min(pool.threads, rows * heads.H * jobs));
  space.key_space = padded(heads.N) * heads.Dh;
  space.keys = arena->take<float>(space.workers * space.key_space);
  space.query_space = kMaxTileQueries * padded(heads.Dh, kQueryRun);
  space.queries = arena->take<float>(space.workers * space.query_space);
  // Odd: rows of a tile do not fall on the same sets of the cache.
  space.logit_stride = padded(heads.N) | kMaxLanes;
  space.logits = arena->take<float>(space.workers * kMaxTileQueries * space.logit_stride);
  space.first_item = arena->take<int64_t>(rows + 1);
  space.jobs = jobs;
  space.sum_stride = padded(heads.N) + kMaxLanes;  // read as logits are
  space.sums = arena->take<float>(rows * heads.H * jobs * space.sum_stride);
  return space;
}

// For `rows` rows of these layers, which may differ in Q.
inline HeadSpace carve_heads(const Heads& heads, int64_t rows,
                             std::initializer_list<const QueriesKeys*> layers, const Pool& pool,
                             Arena* arena) {
  HeadSpace space{};
  bool single = false;
  int64_t jobs = 0;
  for (const QueriesKeys* layer : layers) {
    single = single || layer->Q == 1;
    if (layer->Q > 1) jobs = std::max(jobs, query_jobs(layer->Q));
  }
  if (single) space.single = carve_single(heads, rows, arena);
  if (jobs > 0) space.mean = carve_mean(heads, rows, jobs, pool, arena);
  return space;
}

}  // namespace hired
