// SPDX-License-Identifier: Apache-2.0
//
// An attention head of one row on a thread block: N dot products, softmax, the last T
// probabilities. What hired::select_qk sums over heads, hired::cls_attention returns: both come
// from attend(), and for the same keys and the same block have the same bits.
//
// Bytes: every key once, in 16-byte pieces where all of a layer's keys begin at a multiple of 16.
#pragma once

#include "cuda_limits.h"
#include "device.cuh"
#include "phases/score.h"
#include "queries_keys.h"

namespace hired {
inline namespace HIRED_ISA {

// 16 bytes of keys a thread in flight, this many times over. Predicted, not measured: 256 threads
// * 8 * 16 bytes = 32 KB a block covers the 22 KB an SM of an H200 needs in flight (4.8 TB/s at
// 0.6 us over 132 SMs) with one block, and a P40's 7 KB (346 GB/s at 0.6 us over 30) many times.
constexpr int kKeysInFlight = 8;

// What registers are counted for: enough that nothing spills, on every architecture
// (docs/kernels.md).
constexpr int kBlocksPerSm = 2;

struct DeviceHeads {
  int32_t H, N, Dh;
  float scale;
};

// Dot products of one head, as logits [N] in shared memory. Each warp takes kKeysInFlight times
// 32 / lanes keys a round; `lanes` lanes share a key in 16-byte pieces.
template <class Scalar>
__device__ __forceinline__ void dot_by_pieces(const float* query, const Scalar* keys,
                                              int64_t stride_n, int32_t N, int32_t Dh,
                                              int32_t lanes, float scale, float* logits) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(Scalar));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int together = kWarp / lanes;  // keys of one load of a warp
  const int piece = lane % lanes;
  const int pieces = Dh / kPiece;
  for (int32_t base = warp * together; base < N; base += kKeysInFlight * warps * together) {
    float sums[kKeysInFlight];
#pragma unroll
    for (int j = 0; j < kKeysInFlight; ++j) sums[j] = 0.0f;
    for (int d = piece; d - piece < pieces; d += lanes) {
      // Load
      uint4 held[kKeysInFlight];
#pragma unroll
      for (int j = 0; j < kKeysInFlight; ++j) {
        const int32_t n = base + j * warps * together + lane / lanes;
        held[j] = n < N && d < pieces
                      ? __ldg(reinterpret_cast<const uint4*>(keys + n * stride_n) + d)
                      : make_uint4(0, 0, 0, 0);
      }
      // Multiply
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        const float q = d < pieces ? query[d * kPiece + i] : 0.0f;
#pragma unroll
        for (int j = 0; j < kKeysInFlight; ++j) sums[j] += q * piece_element<Scalar>(held[j], i);
      }
    }
    // Reduce
#pragma unroll
    for (int j = 0; j < kKeysInFlight; ++j) {
      for (int step = lanes / 2; step > 0; step /= 2) {
        sums[j] += __shfl_xor_sync(kFullWarp, sums[j], step);
      }
      const int32_t n = base + j * warps * together + lane / lanes;
      if (piece == 0 && n < N) logits[n] = sums[j] * scale;
    }
  }
}

// The same whatever the alignment and width: a key a warp, an element a lane.
template <class Scalar>
__device__ __forceinline__ void dot_by_elements(const float* query, const Scalar* keys,
                                                int64_t stride_n, int32_t N, int32_t Dh,
                                                float scale, float* logits) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int32_t n = static_cast<int>(threadIdx.x) / kWarp; n < N; n += warps) {
    float sum = 0.0f;
    for (int d = lane; d < Dh; d += kWarp) sum += query[d] * load_float(keys + n * stride_n + d);
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    if (lane == 0) logits[n] = sum * scale;
  }
}

// Words of shared memory that a query takes before the logits.
HIRED_FN int64_t query_words(int64_t Dh) {
  return (Dh + 3) / 4 * 4;
}

// attention [T]: the softmax of head h of row `index`, its last T columns. key_lanes: lanes that
// share a key in 16-byte pieces; 0 where its alignment allows none. Shared memory: query [Dh],
// logits [N].
template <class Scalar>
__device__ __forceinline__ void attend(const DeviceHeads& heads, const QueriesKeys& layer,
                                       int32_t key_lanes, int64_t index, int32_t h, int32_t T,
                                       char* shared, const BlockGroup& group, float* attention) {
  const auto* query = static_cast<const Scalar*>(layer.query) + index * layer.query_stride_row +
                      h * layer.query_stride_h;
  const auto* keys =
      static_cast<const Scalar*>(layer.key) + index * layer.key_stride_row + h * layer.key_stride_h;
  auto* shared_query = reinterpret_cast<float*>(shared);
  float* logits = shared_query + query_words(heads.Dh);
  for (int d = group.rank(); d < heads.Dh; d += group.size()) {
    shared_query[d] = load_float(query + d);
  }
  group.sync();
  if (key_lanes > 0) {
    dot_by_pieces(shared_query, keys, layer.key_stride_n, heads.N, heads.Dh, key_lanes, heads.scale,
                  logits);
  } else {
    dot_by_elements(shared_query, keys, layer.key_stride_n, heads.N, heads.Dh, heads.scale, logits);
  }
  group.sync();
  add_softmax(group, logits, heads.N, T, /*first=*/true, attention);
}

}  // namespace HIRED_ISA
}  // namespace hired
