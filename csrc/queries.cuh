// SPDX-License-Identifier: Apache-2.0
//
// Many queries of an attention head on a thread block: their softmax rows over all N keys, added
// up, the last T columns. What hired::select_qk and hired::cls_attention average where Q > 1.
//
// A head's queries are cut into jobs, a block each in select_qk, so that one picture fills the
// device. A job goes through its queries in tiles of kTile. The keys come through shared memory in
// slices of 32 bytes: one sector of each key, whole and in neighbouring lanes. (A thread that reads
// its own keys instead touches 32 cache lines with each load of its warp, as many as the cycles
// that the products of that load take.) The logits of a tile never leave the registers: each thread
// has all of them for kKeys keys, threads apart, so that a query's element, one broadcast for four
// queries, is multiplied kKeys times, and an element of a key, widened once, kTile times. Maxima
// and sums go over the block; e^(x - max) / sum is added to the sum of its column, in a register.
//
// Chunks: a block holds the logits of 3 or 5 keys a thread. With 256 threads, up to 1280 keys are
// one chunk, and each product is taken once. More keys come in chunks of 768, twice: once for each
// query's maximum and sum, brought up to date chunk after chunk, and once for the columns.
//
// Order of additions: a dot product in the order of d, whatever the alignment; a column tile after
// tile, in each the queries in order; jobs in order; one division by Q. It hangs on Q, N and the
// block's size, on no device: heights of tiles and sizes of jobs are the same on all of them.
//
// Bytes: every key once a tile, out of the L2 after the first tile.
#pragma once

#include "heads.cuh"

namespace hired {
inline namespace HIRED_ISA {

constexpr int kTile = 16;                       // queries whose logits a block holds at once
constexpr int kSliceBytes = 32;                 // of a key: a sector
constexpr int kSlicePieces = kSliceBytes / 16;  // of 16 bytes
constexpr int kFewKeys = 3, kManyKeys = 5;      // of a thread
constexpr int kQueryStride = kTile + 4;         // of an element of all queries of a tile, in floats
constexpr int kPiecePad = 64;                   // between pieces: stores of two hit all banks
constexpr int kQueriesBlocksPerSm = 2;          // of a multiprocessor: 128 registers a thread
constexpr int kMaxQueries = 1 << 13, kJobQueries = 64, kMaxJobs = 16;

// How a head's Q queries are cut into jobs, all but the last of the same number of whole tiles.
struct QuerySplit {
  int32_t jobs, each;  // queries of a job, but for the last
};

HIRED_FN QuerySplit split_queries(int64_t Q) {
  const auto queries = static_cast<int32_t>(Q);
  const int32_t most = (queries + kJobQueries - 1) / kJobQueries;
  const int32_t jobs = most < kMaxJobs ? most : kMaxJobs;
  const int32_t tiles = ((queries + jobs - 1) / jobs + kTile - 1) / kTile;
  return {(queries + tiles * kTile - 1) / (tiles * kTile), tiles * kTile};
}

HIRED_FN int32_t keys_of_thread(int32_t N, int32_t threads) {
  return N > kFewKeys * threads && N <= kManyKeys * threads ? kManyKeys : kFewKeys;
}

HIRED_FN int32_t piece_bytes(int32_t keys, int32_t threads) {
  return keys * threads * 16 + kPiecePad;
}

// Shared memory of attend_queries(): slices of keys, two of queries, what warps tell each other,
// twice, and maxima and sums of a job's queries where there is more than one chunk.
inline int64_t queries_bytes(int64_t N, int64_t Q, int32_t threads) {
  const int32_t keys = keys_of_thread(static_cast<int32_t>(N), threads);
  const int64_t words = 2 * (kSliceBytes / 2) * kQueryStride + 2 * threads / kWarp * kTile +
                        (N > keys * threads ? 2 * split_queries(Q).each : 0);
  return kSlicePieces * int64_t{piece_bytes(keys, threads)} + words * sizeof(float);
}

// A run of queries and all keys of a head.
template <class Scalar>
struct QueryRun {
  const Scalar *queries, *keys;
  int64_t stride_q, stride_n;
  int32_t count, N, Dh;
  float scale;
  bool by_pieces;  // all keys begin at a multiple of 16 bytes
};

struct QuerySpace {
  char* slice;                    // [kSlicePieces, piece_bytes], keys of the chunk
  int32_t piece;                  // piece_bytes
  float *queries, *last_queries;  // [elements of a slice, kQueryStride]: this slice's, the last's
  float* folds;                   // [2, warps, kTile]
  float *max, *sum;               // of a job's queries
};

template <class Scalar>
inline constexpr int kPieceOf = 16 / static_cast<int>(sizeof(Scalar));
template <class Scalar>
inline constexpr int kSliceOf = kSlicePieces * kPieceOf<Scalar>;

// Elements [d, d + kSliceOf) of the tile's queries, times the scale; zero beyond Dh.
template <class Scalar>
__device__ __forceinline__ void stage_queries(const QueryRun<Scalar>& run, int32_t tile, int32_t d,
                                              float* queries) {
  constexpr int kSlice = kSliceOf<Scalar>;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kSlice;
       i += static_cast<int>(blockDim.x)) {
    const int32_t q = tile + i / kSlice, element = d + i % kSlice;
    const Scalar* query = run.queries + (q < run.count ? q : run.count - 1) * run.stride_q;
    queries[i % kSlice * kQueryStride + i / kSlice] =
        element < run.Dh ? load_float(query + element) * run.scale : 0.0f;
  }
}

// The same elements of the chunk's keys, as they are in memory, and of the queries. Called by all
// threads, some of which may still be reading the slice before.
template <int kKeys, class Scalar>
__device__ __forceinline__ void stage_pieces(const QueryRun<Scalar>& run, const QuerySpace& space,
                                             int32_t chunk, int32_t tile, int32_t d) {
  constexpr int kPiece = kPieceOf<Scalar>;
  constexpr int kAll = kSlicePieces * kKeys;  // of a thread
  constexpr int kInFlight = kKeys == kFewKeys ? kAll : kKeys;
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int piece = rank % kSlicePieces;
  const int32_t last = run.Dh - kPiece, wanted = d + piece * kPiece;
  const Scalar* keys = run.keys + (wanted < last ? wanted : last);
  char* slice = space.slice + piece * space.piece;
#pragma unroll
  for (int round = 0; round < kAll; round += kInFlight) {
    uint4 held[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int32_t n = chunk + ((round + j) * threads + rank) / kSlicePieces;
      held[j] = fetch_piece(keys + (n < run.N ? n : run.N - 1) * run.stride_n);
    }
    if (round == 0) {
      stage_queries(run, tile, d, space.queries);
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int key = ((round + j) * threads + rank) / kSlicePieces;
      *reinterpret_cast<uint4*>(slice + key * 16) = held[j];
    }
  }
  __syncthreads();
}

// The same whatever the alignment and width; zero beyond Dh.
template <int kKeys, class Scalar>
__device__ __forceinline__ void stage_elements(const QueryRun<Scalar>& run, const QuerySpace& space,
                                               int32_t chunk, int32_t tile, int32_t d) {
  constexpr int kSlice = kSliceOf<Scalar>, kPiece = kPieceOf<Scalar>, kInFlight = 8;
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  stage_queries(run, tile, d, space.queries);
  __syncthreads();
#pragma unroll 1
  for (int i = rank; i < kKeys * kSlice * threads; i += kInFlight * threads) {
    RawScore<Scalar> held[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int at = i + j * threads;
      const int32_t n = chunk + at / kSlice, element = d + at % kSlice;
      held[j] = {fetch_bits(run.keys + (n < run.N ? n : run.N - 1) * run.stride_n +
                            (element < run.Dh ? element : run.Dh - 1))};
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int at = i + j * threads, element = at % kSlice;
      char* key = space.slice + element / kPiece * space.piece + at / kSlice * 16;
      if (d + element >= run.Dh) held[j] = {};
      reinterpret_cast<RawScore<Scalar>*>(key)[element % kPiece] = held[j];
    }
  }
  __syncthreads();
}

// Adds to the logits of the first kActive keys of each thread what `pieces` of a slice make.
template <int kActive, class Scalar, int kKeys>
__device__ __forceinline__ void multiply(const QuerySpace& space, int pieces,
                                         float (&logits)[kTile][kKeys]) {
  constexpr int kPiece = kPieceOf<Scalar>;
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int piece = 0; piece < pieces; ++piece) {
    const char* keys = space.slice + piece * space.piece + rank * 16;
    const float* elements = space.queries + piece * kPiece * kQueryStride;
    uint4 held[kActive];
#pragma unroll
    for (int i = 0; i < kActive; ++i) {
      held[i] = *reinterpret_cast<const uint4*>(keys + i * threads * 16);
    }
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
#pragma unroll
      for (int q = 0; q < kTile; q += 4) {
        const float4 four = *reinterpret_cast<const float4*>(elements + k * kQueryStride + q);
#pragma unroll
        for (int i = 0; i < kActive; ++i) {
          const float key = piece_element<Scalar>(held[i], k);
          logits[q][i] += four.x * key;
          logits[q + 1][i] += four.y * key;
          logits[q + 2][i] += four.z * key;
          logits[q + 3][i] += four.w * key;
        }
      }
    }
  }
}

// The logits of a tile of queries and a chunk of keys; -inf past the last key.
template <class Scalar, int kKeys>
__device__ __forceinline__ void fill_tile(const QueryRun<Scalar>& run, QuerySpace& space,
                                          int32_t chunk, int32_t tile,
                                          float (&logits)[kTile][kKeys]) {
  constexpr int kPiece = kPieceOf<Scalar>, kSlice = kSliceOf<Scalar>;
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll
  for (auto& of_query : logits) {
#pragma unroll
    for (float& logit : of_query) logit = 0.0f;
  }
  // Warps whose last keys are past N do without them.
  const bool all = chunk + (kKeys - 1) * threads + rank / kWarp * kWarp < run.N;
#pragma unroll 1
  for (int32_t d = 0; d < run.Dh; d += kSlice) {
    if (run.by_pieces) {
      stage_pieces<kKeys>(run, space, chunk, tile, d);
    } else {
      stage_elements<kKeys>(run, space, chunk, tile, d);
    }
    const int32_t left = (run.Dh - d + kPiece - 1) / kPiece;
    const int pieces = left < kSlicePieces ? left : kSlicePieces;
    if (all) {
      multiply<kKeys, Scalar>(space, pieces, logits);
    } else {
      multiply<kKeys - 1, Scalar>(space, pieces, logits);
    }
    // Some threads may still be reading these when others write the next.
    float* read = space.queries;
    space.queries = space.last_queries;
    space.last_queries = read;
  }
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    const bool past = chunk + i * threads + rank >= run.N;
#pragma unroll
    for (int q = 0; q < kTile; ++q) logits[q][i] = past ? -INFINITY : logits[q][i];
  }
}

struct Larger {  // passes over NaN
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Plus {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// Folds what each thread has of kTile queries over the block: lane q has that of query q, and so
// has lane kTile + q. Each round halves the queries of a lane as it halves the lanes of a query.
template <class Fold>
__device__ __forceinline__ float fold_block(float (&values)[kTile], const Fold& fold,
                                            float* folds) {
  static_assert(kTile * 2 == kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
  for (int half = kTile / 2; half > 0; half /= 2) {
    const bool upper = (lane & 2 * half) != 0;
#pragma unroll
    for (int q = 0; q < half; ++q) {
      const float kept = upper ? values[q + half] : values[q];
      const float given = upper ? values[q] : values[q + half];
      values[q] = fold(kept, __shfl_xor_sync(kFullWarp, given, 2 * half));
    }
  }
  const float of_warp = fold(values[0], __shfl_xor_sync(kFullWarp, values[0], 1));
  if (lane % 2 == 0) folds[warp * kTile + lane / 2] = of_warp;
  __syncthreads();
  float of_block = folds[lane % kTile];
  for (int i = 1; i < warps; ++i) of_block = fold(of_block, folds[i * kTile + lane % kTile]);
  return of_block;
}

// The largest logit of each query, as fold_block() has it, NaN passed over: it shows in the sum.
template <int kKeys>
__device__ __forceinline__ float largest_of_tile(const float (&logits)[kTile][kKeys],
                                                 float* folds) {
  float largest[kTile];
#pragma unroll
  for (int q = 0; q < kTile; ++q) {
    largest[q] = -INFINITY;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) largest[q] = Larger()(largest[q], logits[q][i]);
  }
  return fold_block(largest, Larger(), folds);
}

// Makes e^(x - max) of the logits; `max` is as fold_block() has it. Where all logits are -inf,
// every e^ is 0: a row of NaN if there are no others, once it is divided by its sum.
template <int kKeys>
__device__ __forceinline__ void exponentiate(float max, float (&logits)[kTile][kKeys]) {
  const float base = max == -INFINITY ? 0.0f : max;
#pragma unroll
  for (int q = 0; q < kTile; ++q) {
    const float of_query = __shfl_sync(kFullWarp, base, q);
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      logits[q][i] = exp_nonpositive<float, uint32_t>(logits[q][i] - of_query);
    }
  }
}

template <int kKeys>
__device__ __forceinline__ float sum_of_tile(const float (&exponentials)[kTile][kKeys],
                                             float* folds) {
  float sums[kTile];
#pragma unroll
  for (int q = 0; q < kTile; ++q) {
    sums[q] = exponentials[q][0];
#pragma unroll
    for (int i = 1; i < kKeys; ++i) sums[q] += exponentials[q][i];
  }
  return fold_block(sums, Plus(), folds);
}

// One chunk more: brings the maximum and the sum of a query up to date. They are read by lanes that
// have seen fold_block()'s barrier before the last, and written after it.
template <int kKeys>
__device__ __forceinline__ void survey_tile(const QuerySpace& space, int32_t chunk, int32_t tile,
                                            float* sum_folds, float (&logits)[kTile][kKeys]) {
  const int rank = static_cast<int>(threadIdx.x), q = tile + rank % kTile;
  const float before = chunk == 0 ? -INFINITY : space.max[q];
  const float max = Larger()(before, largest_of_tile(logits, space.folds));
  exponentiate(max, logits);
  const float sum = sum_of_tile(logits, sum_folds);
  if (rank >= kTile) return;
  const float base = max == -INFINITY ? 0.0f : max;
  const float shrunk =
      chunk == 0 ? 0.0f : space.sum[q] * exp_nonpositive<float, uint32_t>(before - base);
  space.max[q] = max;
  space.sum[q] = shrunk + sum;
}

// The sum of the run's softmax rows, its last T columns, goes to row [T]: added to what stands
// there (`more`), which the same threads wrote, and divided by `divisor`.
template <int kKeys, class Scalar>
__device__ __forceinline__ void add_rows(const QueryRun<Scalar>& run, QuerySpace& space, int32_t T,
                                         bool more, float divisor, float* row) {
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  float* sum_folds = space.folds + threads / kWarp * kTile;
  const bool chunks = kKeys == kFewKeys && run.N > kKeys * threads;
#pragma unroll 1
  for (int pass = chunks ? 0 : 1; pass < 2; ++pass) {
#pragma unroll 1
    for (int32_t chunk = 0; chunk < run.N; chunk += kKeys * threads) {
      float columns[kKeys];
#pragma unroll
      for (float& column : columns) column = 0.0f;
#pragma unroll 1
      for (int32_t tile = 0; tile < run.count; tile += kTile) {
        float logits[kTile][kKeys];
        fill_tile<Scalar>(run, space, chunk, tile, logits);
        if (kKeys == kFewKeys && pass == 0) {
          survey_tile(space, chunk, tile, sum_folds, logits);
          continue;
        }
        float sum;
        if (chunks) {
          exponentiate(space.max[tile + rank % kTile], logits);
          sum = space.sum[tile + rank % kTile];
        } else {
          exponentiate(largest_of_tile(logits, space.folds), logits);
          sum = sum_of_tile(logits, sum_folds);
        }
        const float share = 1.0f / sum;
        float of_tile[kKeys];
#pragma unroll
        for (float& column : of_tile) column = 0.0f;
#pragma unroll
        for (int q = 0; q < kTile; ++q) {
          const float of_query = __shfl_sync(kFullWarp, share, q);
#pragma unroll
          for (int i = 0; i < kKeys; ++i) {
            if (tile + q < run.count) of_tile[i] += logits[q][i] * of_query;
          }
        }
#pragma unroll
        for (int i = 0; i < kKeys; ++i) columns[i] += of_tile[i];
      }
      if (pass == 0) continue;
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        const int32_t n = chunk + i * threads + rank, t = n - (run.N - T);
        if (n < run.N && t >= 0) row[t] = (more ? row[t] + columns[i] : columns[i]) / divisor;
      }
    }
  }
}

// row [T]: the softmax rows of one job of head h of row `index`, added up, then divided; with
// `more`, onto what the jobs before have left there. by_pieces: as key_lanes() allows it.
template <class Scalar>
__device__ __forceinline__ void attend_queries(const DeviceHeads& heads, const QueriesKeys& layer,
                                               bool by_pieces, int64_t index, int32_t h,
                                               int32_t job, int32_t T, char* shared, bool more,
                                               float divisor, float* row) {
  const auto Q = static_cast<int32_t>(layer.Q);
  const int32_t each = split_queries(Q).each, first = job * each;
  const QueryRun<Scalar> run = {
      static_cast<const Scalar*>(layer.query) + index * layer.query_stride_row +
          h * layer.query_stride_h + first * layer.query_stride_q,
      static_cast<const Scalar*>(layer.key) + index * layer.key_stride_row + h * layer.key_stride_h,
      layer.query_stride_q,
      layer.key_stride_n,
      Q - first < each ? Q - first : each,
      heads.N,
      heads.Dh,
      heads.scale,
      by_pieces};
  const int threads = static_cast<int>(blockDim.x);
  const int32_t keys = keys_of_thread(heads.N, threads);
  QuerySpace space;
  space.slice = shared;
  space.piece = piece_bytes(keys, threads);
  space.queries = reinterpret_cast<float*>(shared + kSlicePieces * space.piece);
  space.last_queries = space.queries + kSliceOf<Scalar> * kQueryStride;
  space.folds = space.last_queries + kSliceOf<Scalar> * kQueryStride;
  space.max = space.folds + 2 * threads / kWarp * kTile;
  space.sum = space.max + each;
  if (keys == kFewKeys) {
    add_rows<kFewKeys>(run, space, T, more, divisor, row);
  } else {
    add_rows<kManyKeys>(run, space, T, more, divisor, row);
  }
}

// keys [T] of partial rows [H, jobs, T], which other blocks may have written: of each head the
// jobs' rows added up and divided by Q, heads added up, all in ascending order. As many rows are
// fetched together as score_attention() fetches heads.
__device__ __forceinline__ void score_queries(const BlockGroup& group, const float* rows, int32_t H,
                                              int32_t jobs, float Q, int32_t T, uint32_t* keys) {
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
        if (first + i >= H * jobs) break;
        const float of_job = __uint_as_float(ahead[i]);
        head = job == 0 ? of_job : head + of_job;
        if (++job == jobs) {
          score += head / Q;
          job = 0;
        }
      }
    }
    keys[t] = ordered_key(score);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
