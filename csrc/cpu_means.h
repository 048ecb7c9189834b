// SPDX-License-Identifier: Apache-2.0
//
// Rows of attention that are means over many queries, on a CPU. A head's queries are cut into jobs;
// an item of the sweep is one of them. Its worker packs the head's keys, unless it has just done so
// for the job before, and adds up the softmax of the job's queries tile after tile (cpu_tile.h).
//
// The order in which queries add up depends on Q, N, Dh and the instruction set, never on the
// number of threads, nor on what other rows and heads there are.
//
// Bytes: every key is read once a worker that shares its head, once as a rule, and packed into a
// scratch that the second-level cache holds at the sizes of ViTs. (Fetching the next head's keys
// ahead. Predicted: 0.1 ms less of 1.3 for 16 heads of 729 keys; measured: nothing.)
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu_heads.h"
#include "cpu_tile.h"

namespace hired {
inline namespace HIRED_ISA {

// Products of a matrix product that take as long as a byte of a sweep over memory: about 50 a
// nanosecond against 12.
inline constexpr int64_t kProductsPerByte = 4;

// Swaps the two off-diagonal blocks of every square of 2 * kHalf lanes of as many vectors, and so
// on down to single lanes: lane i of vector j becomes lane j of vector i.
template <int kHalf>
HIRED_FN void transpose(Lanes* vectors) {
  LaneWords low{}, high{};
  for (int l = 0; l < kLanes; ++l) {
    const bool second = (l & kHalf) != 0;
    low[l] = static_cast<uint32_t>(second ? l - kHalf + kLanes : l);
    high[l] = static_cast<uint32_t>(second ? l + kLanes : l + kHalf);
  }
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kHalf) != 0) continue;
    const Lanes a = vectors[i], b = vectors[i + kHalf];
    vectors[i] = __builtin_shuffle(a, b, low);
    vectors[i + kHalf] = __builtin_shuffle(a, b, high);
  }
  if constexpr (kHalf > 1) transpose<kHalf / 2>(vectors);
}

// The keys of a head in panels, as PackedKeys has them.
template <class Scalar>
void pack_keys(const Scalar* keys, int64_t stride_n, int64_t N, int64_t Dh, float* packed) {
  for (int64_t panel = 0; panel < N; panel += kPanelKeys) {
    const int64_t left = (N - panel + kLanes - 1) / kLanes * kLanes;
    const int64_t width = left < kPanelKeys ? left : kPanelKeys;
    float* to = packed + panel * Dh;
    for (int64_t n = 0; n < width; n += kLanes) {
      const Scalar* from[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        const int64_t key = panel + n + l;
        from[l] = keys + (key < N ? key : N - 1) * stride_n;
      }
      if (Dh < kLanes) {
        for (int64_t d = 0; d < Dh; ++d) {
          for (int l = 0; l < kLanes; ++l) to[d * width + n + l] = load_float(from[l] + d);
        }
        continue;
      }
      for (int64_t next = 0; next < Dh; next += kLanes) {
        // The last vectors of a width that is no multiple of theirs begin where they fit.
        const int64_t d = next + kLanes <= Dh ? next : Dh - kLanes;
        Lanes vectors[kLanes];
        for (int l = 0; l < kLanes; ++l) vectors[l] = load_lanes(from[l] + d);
        transpose<kLanes / 2>(vectors);
        for (int i = 0; i < kLanes; ++i) store_lanes(to + (d + i) * width + n, vectors[i]);
      }
    }
  }
}

// A tile's queries: runs of kQueryRun elements, each of kTileQueries queries.
template <class Scalar>
void pack_queries(const Scalar* queries, int64_t stride_q, int64_t count, int64_t Dh,
                  float* packed) {
  for (int64_t q = 0; q < count; ++q) {
    const Scalar* query = queries + q * stride_q;
    for (int64_t first = 0; first < Dh; first += kQueryRun) {
      const int64_t end = Dh - first < kQueryRun ? Dh - first : kQueryRun;
      float* to = packed + (first * kTileQueries + q * kQueryRun);
      int64_t d = 0;
      for (; d + kLanes <= end; d += kLanes) {
        store_lanes(to + d, load_lanes(query + first + d));
      }
      for (; d < end; ++d) to[d] = load_float(query + first + d);
    }
  }
}

// The same for `count` queries, 1 to kQueries.
template <int kQueries>
void add_tile(int64_t count, const float* queries, const PackedKeys& keys, int64_t column,
              float* logits, int64_t stride, float* sums) {
  if (count == kQueries) {
    add_tile<kQueries>(queries, keys, column, logits, stride, sums);
  } else if constexpr (kQueries > 1) {
    add_tile<kQueries - 1>(count, queries, keys, column, logits, stride, sums);
  }
}

// sums [N, padded to whole vectors]: the softmax of queries [begin, end) of a head, added up over
// them, from `column` on.
template <class Scalar>
void add_queries(const Scalar* queries, int64_t stride_q, int64_t begin, int64_t end,
                 const PackedKeys& keys, int64_t column, float* packed, float* logits,
                 int64_t stride, float* sums) {
  const int64_t count = end - begin, tiles = (count + kTileQueries - 1) / kTileQueries;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    // Of nearly the same size, for a tile of few queries takes longer for each.
    const int64_t from = begin + count * tile / tiles, to = begin + count * (tile + 1) / tiles;
    pack_queries(queries + from * stride_q, stride_q, to - from, keys.Dh, packed);
    add_tile<kTileQueries>(to - from, packed, keys, column, logits, stride, sums);
  }
}

// For each job of those of `rows` rows that have more than one query, what add_mean() wants of it,
// for the last T columns; row_of(item) says which HeadRow each is.
template <class Scalar, class RowOf>
void fill_sums(const Heads& heads, int64_t T, int64_t rows, const RowOf& row_of, const MeanSpace& w,
               const Pool& pool) {
  if (w.jobs == 0) return;
  const int64_t N = heads.N, H = heads.H, Dh = heads.Dh;
  int64_t items = 0, queries = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const HeadRow row = row_of(i);
    w.first_item[i] = items;
    if (!row.needed || row.layer->Q == 1) continue;
    items += H * query_jobs(row.layer->Q);
    queries += H * row.layer->Q;
  }
  w.first_item[rows] = items;
  if (items == 0) return;

  const int64_t workers = w.workers < items ? w.workers : items;
  const int64_t column = (N - T) / kLanes * kLanes;
  sweep(pool, workers, queries * N / workers * Dh / kProductsPerByte, [&](int64_t worker) {
    float* packed = w.keys + worker * w.key_space;
    const int64_t end = items * (worker + 1) / workers;
    int64_t i = 0, packed_row = -1, packed_head = -1;
    for (int64_t item = items * worker / workers; item < end; ++item) {
      while (w.first_item[i + 1] <= item) ++i;
      const HeadRow row = row_of(i);
      const QueriesKeys& layer = *row.layer;
      const int64_t jobs = query_jobs(layer.Q);
      const int64_t h = (item - w.first_item[i]) / jobs, job = (item - w.first_item[i]) % jobs;
      if (i != packed_row || h != packed_head) {
        const auto* keys = static_cast<const Scalar*>(layer.key);
        pack_keys(keys + row.index * layer.key_stride_row + h * layer.key_stride_h,
                  layer.key_stride_n, N, Dh, packed);
        packed_row = i, packed_head = h;
      }
      const auto* query = static_cast<const Scalar*>(layer.query) +
                          row.index * layer.query_stride_row + h * layer.query_stride_h;
      float* sums = w.sums + ((i * H + h) * w.jobs + job) * w.sum_stride;
      std::memset(sums, 0, static_cast<size_t>(w.sum_stride) * sizeof(float));
      add_queries(query, layer.query_stride_q, layer.Q * job / jobs, layer.Q * (job + 1) / jobs,
                  {packed, N, Dh, heads.scale}, column, w.queries + worker * w.query_space,
                  w.logits + worker * kMaxTileQueries * w.logit_stride, w.logit_stride, sums);
    }
  });
}

// scores [T], padded to whole lanes: adds the mean over Q queries of a row's head, whose sums are
// used up. `scores` may be where those begin.
inline void add_mean(const Heads& heads, const MeanSpace& w, int64_t row, int64_t h, int64_t T,
                     int64_t Q, bool first, float* scores) {
  const float* sums = w.sums + (row * heads.H + h) * w.jobs * w.sum_stride + (heads.N - T);
  const int64_t jobs = query_jobs(Q);
  for (int64_t t = 0; t < T; t += kLanes) {
    Lanes sum = load_lanes(sums + t);
    for (int64_t job = 1; job < jobs; ++job) sum += load_lanes(sums + job * w.sum_stride + t);
    const Lanes mean = sum / static_cast<float>(Q);
    store_lanes(scores + t, first ? mean : Lanes(load_lanes(scores + t) + mean));
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
