// SPDX-License-Identifier: Apache-2.0
//
// The logits of a tile of queries and a chunk of keys, in the registers of a block: how keys and
// queries come through shared memory, and their products. queries.cuh says what it is for, and why
// it is so.
#pragma once

#include "heads.cuh"

namespace hired {
inline namespace HIRED_ISA {

constexpr int kMostTile = 16;                   // queries whose logits a block holds at once
constexpr int kSliceBytes = 32;                 // of a key: a sector
constexpr int kSlicePieces = kSliceBytes / 16;  // of 16 bytes
constexpr int kFewKeys = 3, kManyKeys = 5;      // of a thread
constexpr int kQueryStride = kMostTile + 4;     // of an element of all queries of a tile, in floats
constexpr int kQueriesBlocksPerSm = 2;          // of a multiprocessor: 128 registers a thread
constexpr int kMaxQueries = 1 << 13, kJobQueries = 48, kMaxJobs = 16;
constexpr int kMostOfJob =
    (kMaxQueries + kMaxJobs * kJobQueries - 1) / (kMaxJobs * kJobQueries) * kJobQueries;

// Of each of the two numbers of keys a thread. All 80 logits of 16 queries and 5 keys spill.
template <int kKeys>
inline constexpr int kTile = kKeys == kFewKeys ? 16 : 12;
static_assert(kJobQueries % kTile<kFewKeys> == 0 && kJobQueries % kTile<kManyKeys> == 0);

// How a head's Q queries are cut into jobs, all but the last of the same number of whole tiles.
struct QuerySplit {
  int32_t jobs, each;  // queries of a job, but for the last
};

HIRED_FN QuerySplit split_queries(int64_t Q) {
  const auto queries = static_cast<int32_t>(Q);
  const int32_t each =
      (queries + kMaxJobs * kJobQueries - 1) / (kMaxJobs * kJobQueries) * kJobQueries;
  return {(queries + each - 1) / each, each};
}

HIRED_FN int32_t keys_of_thread(int32_t N, int32_t threads) {
  return N > kFewKeys * threads && N <= kManyKeys * threads ? kManyKeys : kFewKeys;
}

// What a block has to do: all keys of a head, one or several jobs of its queries. It stands in
// shared memory: a barrier makes the compiler forget it, so that the products have the registers.
template <class Scalar>
struct alignas(16) QueryRun {
  const Scalar *queries, *keys;  // the first query of the present job
  int64_t stride_q, stride_n;
  float* row;          // [T]
  int32_t left, each;  // queries from the present job on, and of a job
  int32_t tile;        // the first query of the present tile, of the job
  int32_t N, Dh, T;
  float scale, divisor;
  bool by_pieces;  // all keys begin at a multiple of 16 bytes
  bool more;       // there are jobs before, which stand in the row

  __device__ __forceinline__ int32_t count() const { return left < each ? left : each; }
  __device__ __forceinline__ void advance(int32_t queries) {  // after the last tile to the first
    tile = tile + queries < count() ? tile + queries : 0;
  }
};

template <class Scalar>
inline constexpr int kPieceOf = 16 / static_cast<int>(sizeof(Scalar));
template <class Scalar>
inline constexpr int kSliceOf = kSlicePieces * kPieceOf<Scalar>;

// Shared memory of attend_run(). Its places are constants, whatever the block's size.
template <class Scalar, int kKeys>
struct QuerySpace {
  QueryRun<Scalar> run;
  struct alignas(16) Piece {
    uint4 of_key[kKeys][kThreads];  // of the chunk: the keys of a thread have its place
    char pad[64];                   // so that stores of two pieces of some keys hit all banks
  } slice[kSlicePieces];
  float queries[2][kSliceOf<Scalar>][kQueryStride];  // those read last may still be read
  float folds[2][kThreads / kWarp][kMostTile];       // what warps tell each other
  struct {
    float max[kMostOfJob], sum[kMostOfJob];
  } survey;  // of a job's queries; only there where there is more than one chunk
};

inline int64_t queries_bytes(int64_t N, int32_t threads) {
  using Few = QuerySpace<Float16, kFewKeys>;
  using Many = QuerySpace<Float16, kManyKeys>;
  static_assert(sizeof(Few) <= 47 << 10 && sizeof(Many) - sizeof(Many::survey) <= 47 << 10,
                "with what else a block has, 48 KB");
  if (keys_of_thread(static_cast<int32_t>(N), threads) == kManyKeys) {
    return sizeof(Many) - sizeof(Many::survey);
  }
  return sizeof(Few) - (N > kFewKeys * threads ? 0 : sizeof(Few::survey));
}

// The same number, of which the compiler knows nothing: what is made of it is made here, each time,
// and not kept in registers from before the loop.
__device__ __forceinline__ int here(int number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// Elements [d, d + kSliceOf) of the tile's queries; zero beyond Dh.
template <int kTile, class Scalar>
__device__ __forceinline__ void stage_queries(const QueryRun<Scalar>& run, int32_t d,
                                              float (&queries)[kSliceOf<Scalar>][kQueryStride]) {
  constexpr int kSlice = kSliceOf<Scalar>;
#pragma unroll 1
  for (int i = here(static_cast<int>(threadIdx.x)); i < kTile * kSlice;
       i += static_cast<int>(blockDim.x)) {
    const int32_t q = run.tile + i / kSlice, element = d + i % kSlice;
    const Scalar* query = run.queries + (q < run.left ? q : run.left - 1) * run.stride_q;
    queries[i % kSlice][i / kSlice] = element < run.Dh ? load_float(query + element) : 0.0f;
  }
}

// The same elements of the chunk's keys, as they are in memory, and of the queries. Called by all
// threads, some of which may still be reading the slice before.
template <class Scalar, int kKeys>
__device__ __forceinline__ void stage_pieces(QuerySpace<Scalar, kKeys>& space, int32_t chunk,
                                             int32_t d) {
  const QueryRun<Scalar>& run = space.run;
  constexpr int kPiece = kPieceOf<Scalar>;
  constexpr int kTogether = kKeys == kFewKeys ? kKeys : 2;  // keys in flight
  const int rank = here(static_cast<int>(threadIdx.x)),
            threads = here(static_cast<int>(blockDim.x));
  const int piece = rank % kSlicePieces;
  const int32_t last = run.Dh - kPiece, wanted = d + piece * kPiece;
  const Scalar* keys = run.keys + (wanted < last ? wanted : last);
  // Lanes side by side have the pieces of a key, half a block all pieces of half as many keys.
  const int32_t key = rank / kSlicePieces, half = threads / kSlicePieces;
  int32_t n = chunk + key;
  int64_t next = n * run.stride_n;
  const int64_t step = half * run.stride_n, end = (run.N - 1) * run.stride_n;
  auto& slots = space.slice[piece].of_key;
#pragma unroll
  for (int round = 0; round < kKeys; round += kTogether) {
    uint4 held[kTogether][kSlicePieces];
#pragma unroll
    for (int i = round; i < round + kTogether && i < kKeys; ++i) {
#pragma unroll
      for (int j = 0; j < kSlicePieces; ++j) {
        held[i - round][j] = fetch_piece(keys + (n < run.N ? next : end));
        next += step;
        n += half;
      }
    }
    if (round == 0) {
      stage_queries<kTile<kKeys>>(run, d, space.queries[d / kSliceOf<Scalar> % 2]);
      __syncthreads();
    }
#pragma unroll
    for (int i = round; i < round + kTogether && i < kKeys; ++i) {
#pragma unroll
      for (int j = 0; j < kSlicePieces; ++j) {
        slots[i][key + j * half] = held[i - round][j];
      }
    }
  }
  __syncthreads();
}

// The same whatever the alignment and width; zero beyond Dh.
template <class Scalar, int kKeys>
__device__ __forceinline__ void stage_elements(QuerySpace<Scalar, kKeys>& space, int32_t chunk,
                                               int32_t d) {
  const QueryRun<Scalar>& run = space.run;
  constexpr int kSlice = kSliceOf<Scalar>, kPiece = kPieceOf<Scalar>, kInFlight = 4;
  const int rank = here(static_cast<int>(threadIdx.x)),
            threads = here(static_cast<int>(blockDim.x));
  stage_queries<kTile<kKeys>>(run, d, space.queries[d / kSliceOf<Scalar> % 2]);
  __syncthreads();
  // A round is the keys of so many threads.
  const int32_t together = threads / kSlice * kInFlight;
#pragma unroll 1
  for (int i = 0; i < kKeys; ++i) {
#pragma unroll 1
    for (int32_t base = rank / kSlice; base < threads; base += together) {
      RawScore<Scalar> held[kInFlight];
      const int32_t element = rank % kSlice, wanted = d + element;
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int32_t n = chunk + i * threads + base + j * (threads / kSlice);
        held[j] = {fetch_bits(run.keys + (n < run.N ? n : run.N - 1) * run.stride_n +
                              (wanted < run.Dh ? wanted : run.Dh - 1))};
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int32_t key = base + j * (threads / kSlice);
        uint4* slot = &space.slice[element / kPiece].of_key[i][key];
        if (wanted >= run.Dh) held[j] = {};
        reinterpret_cast<RawScore<Scalar>*>(slot)[element % kPiece] = held[j];
      }
    }
  }
  __syncthreads();
}

// Adds to the logits of the first kActive keys of each thread what `pieces` of a slice make. A
// piece is taken in halves, whose registers leave room for kManyKeys.
template <int kActive, class Scalar, int kKeys>
__device__ __forceinline__ void multiply(const QuerySpace<Scalar, kKeys>& space, int32_t d,
                                         float (&logits)[kTile<kKeys>][kKeys]) {
  constexpr int kHalf = kPieceOf<Scalar> / 2;
  const int rank = here(static_cast<int>(threadIdx.x));
  const auto& queries = space.queries[d / kSliceOf<Scalar> % 2];
  const int32_t left = space.run.Dh - d;
#pragma unroll 1
  for (int half = 0; half < 2 * kSlicePieces && half * kHalf < left; ++half) {
    const auto& keys = space.slice[half / 2].of_key;
    uint2 held[kActive];
#pragma unroll
    for (int i = 0; i < kActive; ++i) {
      held[i] = reinterpret_cast<const uint2*>(&keys[i][rank])[half % 2];
    }
#pragma unroll
    for (int k = 0; k < kHalf; ++k) {
#pragma unroll
      for (int q = 0; q < kTile<kKeys>; q += 4) {
        const float4 four = *reinterpret_cast<const float4*>(&queries[half * kHalf + k][q]);
#pragma unroll
        for (int i = 0; i < kActive; ++i) {
          const float key = piece_element<Scalar>(make_uint4(held[i].x, held[i].y, 0, 0), k);
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
__device__ __forceinline__ void fill_tile(QuerySpace<Scalar, kKeys>& space, int32_t chunk,
                                          float (&logits)[kTile<kKeys>][kKeys]) {
  const QueryRun<Scalar>& run = space.run;
  const int rank = here(static_cast<int>(threadIdx.x)),
            threads = here(static_cast<int>(blockDim.x));
#pragma unroll
  for (auto& of_query : logits) {
#pragma unroll
    for (float& logit : of_query) logit = 0.0f;
  }
  // Warps whose last keys are past N do without them.
  const bool all = chunk + (kKeys - 1) * threads + rank / kWarp * kWarp < run.N;
#pragma unroll 1
  for (int32_t d = 0; d < run.Dh; d += kSliceOf<Scalar>) {
    if (run.by_pieces) {
      stage_pieces(space, chunk, d);
    } else {
      stage_elements(space, chunk, d);
    }
    if (all) {
      multiply<kKeys>(space, d, logits);
    } else {
      multiply<kKeys - 1>(space, d, logits);
    }
  }
  const int32_t left = run.N - chunk - rank;
  const float scale = run.scale;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    const bool past = i * threads >= left;
#pragma unroll
    for (int q = 0; q < kTile<kKeys>; ++q) {
      logits[q][i] = past ? -INFINITY : logits[q][i] * scale;
    }
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
