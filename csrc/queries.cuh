// SPDX-License-Identifier: Apache-2.0
//
// Many queries of an attention head on a thread block: their softmax rows over all N keys, added
// up, the last T columns. What hired::select_qk and hired::cls_attention average where Q > 1.
//
// A head's queries are cut into jobs, a block each in select_qk, so that one picture fills the
// device. A job goes through its queries in tiles. The keys come through shared memory in slices of
// 32 bytes a key: a whole sector, by two neighbouring lanes. (A thread that fetched its own keys
// would touch 32 cache lines with each load of its warp, which may take as many cycles as the
// products of that load: 16 queries times 8 elements at four warps a cycle.) The logits of a tile
// never leave the registers: each thread has all of them for kKeys keys, threads apart, so that
// four queries, one broadcast of 16 bytes, are multiplied kKeys times, and an element of a key,
// widened once, as often as the tile has queries. Maxima and sums go over the block, and
// e^(x - max) / sum is added to the sum of its column, in a register.
//
// Up to 768 keys, with 256 threads, are three a thread, with 16 queries a tile; up to 1280 five,
// with 12 (16 spill, and reload logits within the products). More come in chunks of 768 and in two
// passes: one for each query's maximum and sum, brought up to date chunk after chunk, and one that
// takes the products again and adds to the columns.
//
// Order of additions: a dot product in the order of d, whatever the alignment; a column tile after
// tile, in each the queries in order; jobs in order; one division by Q. It hangs on Q, N and the
// block's size, on no device: heights of tiles and sizes of jobs are the same on all of them.
//
// Of 298 instructions that make 240 products (sm_61, five keys; 289 on sm_90), 12 fetch queries, 5
// fetch keys and 20 widen. e^x and what belongs to it are some 27 for each logit, a third of what
// 64 products take. docs/design.md has the times that this makes.
//
// Bytes: every key once a tile, out of the L2 after the first tile.
#pragma once

#include "query_tile.cuh"

namespace hired {
inline namespace HIRED_ISA {

struct Larger {  // passes over NaN
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Plus {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// One value of each of 2 * kHalf queries in each lane becomes one of kHalf, until the lane of a
// pair has what a sixteenth of the warp has of query lane / 2: half the queries with half the
// lanes.
template <int kHalf, class Fold>
__device__ __forceinline__ void fold_lanes(float (&values)[kMostTile], const Fold& fold) {
  const bool upper = (here(static_cast<int>(threadIdx.x)) & (2 * kHalf)) != 0;
#pragma unroll
  for (int q = 0; q < kHalf; ++q) {
    const float low = values[q], high = values[q + kHalf];
    const float kept = upper ? high : low, given = upper ? low : high;
    values[q] = fold(kept, __shfl_xor_sync(kFullWarp, given, 2 * kHalf));
  }
  if constexpr (kHalf > 1) fold_lanes<kHalf / 2>(values, fold);
}

// What each thread has of kMostTile queries, folded over the block: lane q has that of query q, and
// so has lane kMostTile + q.
template <class Fold>
__device__ __forceinline__ float fold_block(float (&values)[kMostTile], const Fold& fold,
                                            float (&folds)[kThreads / kWarp][kMostTile]) {
  static_assert(kMostTile * 2 == kWarp);
  const int rank = here(static_cast<int>(threadIdx.x));
  const int lane = rank % kWarp, warp = rank / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  fold_lanes<kMostTile / 2>(values, fold);
  const float of_warp = fold(values[0], __shfl_xor_sync(kFullWarp, values[0], 1));
  if (lane % 2 == 0) folds[warp][lane / 2] = of_warp;
  __syncthreads();
  float of_block = folds[0][lane % kMostTile];
#pragma unroll 1
  for (int i = 1; i < warps; ++i) of_block = fold(of_block, folds[i][lane % kMostTile]);
  return of_block;
}

// The largest logit of each query, as fold_block() has it, NaN passed over: it shows in the sum.
template <int kKeys>
__device__ __forceinline__ float largest_of_tile(const float (&logits)[kTile<kKeys>][kKeys],
                                                 float (&folds)[kThreads / kWarp][kMostTile]) {
  float largest[kMostTile];
#pragma unroll
  for (int q = 0; q < kMostTile; ++q) {
    largest[q] = -INFINITY;
#pragma unroll
    for (int i = 0; i < kKeys && q < kTile<kKeys>; ++i)
      largest[q] = Larger()(largest[q], logits[q][i]);
  }
  return fold_block(largest, Larger(), folds);
}

// Makes e^(x - max) of the logits; `max` is as fold_block() has it. Where all logits are -inf,
// every e^ is 0: a row of NaN if there are no others, once it is divided by its sum.
template <int kKeys>
__device__ __forceinline__ void exponentiate(float max, float (&logits)[kTile<kKeys>][kKeys]) {
  const float base = max == -INFINITY ? 0.0f : max;
#pragma unroll
  for (int q = 0; q < kTile<kKeys>; ++q) {
    float of_query = __shfl_sync(kFullWarp, base, q);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
    // sm_61's assembler fetches all of them beforehand, and spills: so each hangs on what was made
    // of the last but one, by a zero that only we know.
    if (q > 1) {
      const uint32_t zero = __float_as_uint(logits[q - 2][0]) & threadIdx.y;
      of_query = __uint_as_float(__float_as_uint(of_query) | zero);
    }
#endif
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      logits[q][i] = exp_nonpositive<float, uint32_t>(logits[q][i] - of_query);
    }
  }
}

template <int kKeys>
__device__ __forceinline__ float sum_of_tile(const float (&exponentials)[kTile<kKeys>][kKeys],
                                             float (&folds)[kThreads / kWarp][kMostTile]) {
  float sums[kMostTile];
#pragma unroll
  for (int q = 0; q < kMostTile; ++q) {
    sums[q] = 0.0f;
#pragma unroll
    for (int i = 0; i < kKeys && q < kTile<kKeys>; ++i) sums[q] += exponentials[q][i];
  }
  return fold_block(sums, Plus(), folds);
}

// One chunk more: brings the maximum and the sum of a query up to date. They are read by lanes that
// have seen fold_block()'s barrier before the last, and written after it.
template <class Scalar, int kKeys>
__device__ __forceinline__ void survey_tile(QuerySpace<Scalar, kKeys>& space, int32_t chunk,
                                            float (&logits)[kTile<kKeys>][kKeys]) {
  const int rank = static_cast<int>(threadIdx.x), q = space.run.tile + rank % kMostTile;
  const float before = chunk == 0 ? -INFINITY : space.survey.max[q];
  const float max = Larger()(before, largest_of_tile(logits, space.folds[0]));
  exponentiate(max, logits);
  const float sum = sum_of_tile(logits, space.folds[1]);
  if (rank >= kTile<kKeys>) return;
  const float base = max == -INFINITY ? 0.0f : max;
  const float shrunk =
      chunk == 0 ? 0.0f : space.survey.sum[q] * exp_nonpositive<float, uint32_t>(before - base);
  space.survey.max[q] = max;
  space.survey.sum[q] = shrunk + sum;
}

// Adds a tile's softmax rows to the columns of each thread's keys.
template <class Scalar, int kKeys>
__device__ __forceinline__ void add_tile(QuerySpace<Scalar, kKeys>& space, bool surveyed,
                                         float (&logits)[kTile<kKeys>][kKeys],
                                         float (&columns)[kKeys]) {
  const QueryRun<Scalar>& run = space.run;
  float sum;
  if (surveyed) {
    const int32_t q = run.tile + static_cast<int>(threadIdx.x) % kMostTile;
    exponentiate(space.survey.max[q], logits);
    sum = space.survey.sum[q];
  } else {
    exponentiate(largest_of_tile(logits, space.folds[0]), logits);
    sum = sum_of_tile(logits, space.folds[1]);
  }
  const float share = 1.0f / sum;
  const int32_t filled = run.count() - run.tile;
  float of_tile[kKeys];
#pragma unroll
  for (float& column : of_tile) column = 0.0f;
#pragma unroll
  for (int q = 0; q < kTile<kKeys>; ++q) {
    const float of_query = __shfl_sync(kFullWarp, share, q);
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      if (q < filled) of_tile[i] += logits[q][i] * of_query;
    }
  }
#pragma unroll
  for (int i = 0; i < kKeys; ++i) columns[i] += of_tile[i];
}

// The sum of a job's softmax rows, its last T columns, goes to the row: added to what the same
// threads have left there of the jobs before, and divided after the last.
template <class Scalar, int kKeys>
__device__ __forceinline__ void add_job(QuerySpace<Scalar, kKeys>& space) {
  QueryRun<Scalar>& run = space.run;
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bool chunks = kKeys == kFewKeys && run.N > kKeys * threads;
  const int32_t end = kKeys == kFewKeys ? run.N : 1;
#pragma unroll 1
  for (int pass = chunks ? 0 : 1; pass < 2; ++pass) {
#pragma unroll 1
    for (int32_t chunk = 0; chunk < end; chunk += kKeys * threads) {
      float columns[kKeys];
#pragma unroll
      for (float& column : columns) column = 0.0f;
#pragma unroll 1
      do {
        float logits[kTile<kKeys>][kKeys];
        fill_tile(space, chunk, logits);
        if (kKeys == kFewKeys && pass == 0) {
          survey_tile(space, chunk, logits);
        } else {
          add_tile(space, chunks, logits, columns);
        }
        // Threads have done with the tile, and none has begun the next.
        __syncthreads();
        if (here(rank) == 0) run.advance(kTile<kKeys>);
        __syncthreads();
      } while (run.tile > 0);
      if (pass == 0) continue;
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        const int32_t n = chunk + i * threads + here(rank), t = n - (run.N - run.T);
        if (n >= run.N || t < 0) continue;
        const float all = run.more ? run.row[t] + columns[i] : columns[i];
        run.row[t] = run.left <= run.each ? all / run.divisor : all;
      }
    }
  }
}

template <class Scalar, int kKeys>
__device__ __forceinline__ void add_jobs(QuerySpace<Scalar, kKeys>& space) {
  QueryRun<Scalar>& run = space.run;
#pragma unroll 1
  for (;;) {
    add_job(space);
    if (run.left <= run.each) return;
    __syncthreads();
    if (here(static_cast<int>(threadIdx.x)) == 0) {
      run.queries += run.each * run.stride_q;
      run.left -= run.each;
      run.more = true;
    }
    __syncthreads();
  }
}

// `a` if so, else `b`, number by number: Pascal's compiler keeps parameters of which it has to
// choose an address in local memory.
__device__ __forceinline__ QueriesKeys one_of(bool so, const QueriesKeys& a, const QueriesKeys& b) {
  const auto pick = [so](auto x, auto y) { return so ? x : y; };
  return {pick(a.query, b.query),
          pick(a.key, b.key),
          pick(a.rows, b.rows),
          pick(a.Q, b.Q),
          pick(a.query_stride_row, b.query_stride_row),
          pick(a.query_stride_q, b.query_stride_q),
          pick(a.query_stride_h, b.query_stride_h),
          pick(a.key_stride_row, b.key_stride_row),
          pick(a.key_stride_n, b.key_stride_n),
          pick(a.key_stride_h, b.key_stride_h)};
}

// What attend_run() is to do: row [T] will be, of head h of row `index`, the softmax rows of the
// queries from job `first` on, so many jobs, added up and divided. by_pieces: as key_lanes() allows
// it. By one thread.
template <class Scalar>
__device__ __forceinline__ void set_run(const DeviceHeads& heads, const QueriesKeys& layer,
                                        bool by_pieces, int64_t index, int32_t h, int32_t first,
                                        int32_t jobs, int32_t T, char* shared, float divisor,
                                        float* row) {
  if (threadIdx.x == 0) {
    const int32_t each = split_queries(layer.Q).each;
    const auto left = static_cast<int32_t>(layer.Q) - first * each;
    *reinterpret_cast<QueryRun<Scalar>*>(shared) = {
        static_cast<const Scalar*>(layer.query) + index * layer.query_stride_row +
            h * layer.query_stride_h + first * each * layer.query_stride_q,
        static_cast<const Scalar*>(layer.key) + index * layer.key_stride_row +
            h * layer.key_stride_h,
        layer.query_stride_q,
        layer.key_stride_n,
        row,
        left < jobs * each ? left : jobs * each,
        each,
        /*tile=*/0,
        heads.N,
        heads.Dh,
        T,
        heads.scale,
        divisor,
        by_pieces,
        /*more=*/false};
  }
}

// Shared memory: a QuerySpace, of which the run is set.
template <class Scalar>
__device__ __forceinline__ void attend_run(int32_t N, char* shared) {
  __syncthreads();
  if (keys_of_thread(N, static_cast<int>(blockDim.x)) == kFewKeys) {
    add_jobs(*reinterpret_cast<QuerySpace<Scalar, kFewKeys>*>(shared));
  } else {
    add_jobs(*reinterpret_cast<QuerySpace<Scalar, kManyKeys>*>(shared));
  }
}

// keys [T] of partial rows [H, jobs, T], which other blocks may have written: of each head the
// jobs' rows added up and divided by Q, heads added up, all in ascending order. As many rows are
// fetched together as score_attention() fetches heads. Where patches are to be merged, the bits of
// the scores themselves.
__device__ __forceinline__ void score_queries(const BlockGroup& group, const float* rows, int32_t H,
                                              int32_t jobs, float Q, int32_t T, bool merged,
                                              uint32_t* keys) {
  constexpr int kAhead = 16;
  for (int32_t t = group.rank(); t < T; t += group.size()) {
    float score = 0.0f, head = 0.0f;
    int32_t job = 0;
#pragma unroll 1
    for (int32_t first = 0; first < H * jobs; first += kAhead) {
      uint32_t ahead[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int32_t at = first + i < H * jobs ? first + i : H * jobs - 1;
        ahead[i] = fetch_bits(rows + int64_t{at} * T + t);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= H * jobs) continue;
        const float of_job = __uint_as_float(ahead[i]);
        head = job == 0 ? of_job : head + of_job;
        if (++job == jobs) {
          score += head / Q;
          job = 0;
        }
      }
    }
    keys[t] = merged ? bit_cast<uint32_t>(score) : ordered_key(score);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
