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
#include "groups.cuh"
#include "phases/score.h"
#include "queries_keys.h"

namespace hired {
inline namespace HIRED_ISA {

// 16 bytes of keys a thread in flight, this many times over, and blocks of a multiprocessor that
// registers are counted for: as many as leave no spill, on any architecture (docs/kernels.md). 19
// are all 577 keys of CLIP-L at 336 pixels in one round, 32 of them a time. Pascal's assembler
// makes three trips to memory of 19 anyway; 7, in three rounds, leave registers for a third block,
// so that the 96 heads of a picture of five partitions find 90 places on a P40 at once, not 60.
constexpr int kPascalBlocksPerSm = 3, kLaterBlocksPerSm = 2;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
constexpr int kKeysInFlight = 7;
constexpr int kBlocksPerSm = kPascalBlocksPerSm;
#else
constexpr int kKeysInFlight = 19;
constexpr int kBlocksPerSm = kLaterBlocksPerSm;
#endif

struct DeviceHeads {
  int32_t H, N, Dh;
  float scale;
};

// What the dot products of one head are made of, and where the logits [N] go: shared memory.
template <class Scalar>
struct Dots {
  const Scalar *query, *keys;
  int64_t stride_n;
  int32_t N, Dh;
  float scale;
  float* logits;
};

// kLanes lanes share a key in 16-byte pieces; each warp takes as many keys a round as are in
// flight, times 32 / kLanes. The query's pieces stay in registers, and are on their way together
// with the keys. Returns the largest logit that this thread has seen.
template <int kLanes, class Scalar>
__device__ __forceinline__ float dot_by_pieces(const Dots<Scalar>& dots) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(Scalar));
  constexpr int kMostPieces = static_cast<int>(kCudaLimits.head_width) / kPiece;
  constexpr int kPieces = kLanes < kWarp ? 1 : kMostPieces / kWarp;  // of a lane
  constexpr int kInFlight = kKeysInFlight / kPieces;
  constexpr int kTogether = kWarp / kLanes;  // keys of one load of a warp
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int step = static_cast<int>(blockDim.x) / kWarp * kTogether;
  const int piece = lane % kLanes;
  const int pieces = dots.Dh / kPiece;
  float largest = -INFINITY;
  for (int32_t base = warp * kTogether; base < dots.N; base += kInFlight * step) {
    const int32_t first = base + lane / kLanes;
    float sums[kInFlight];
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int d = piece + i * kWarp;
      if (d >= pieces) continue;
      // Load
      uint4 held[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int32_t n = first + j * step;
        held[j] =
            fetch_piece(dots.keys + (n < dots.N ? n : dots.N - 1) * dots.stride_n + d * kPiece);
      }
      RawScore<Scalar> query[kPiece];
#pragma unroll
      for (int k = 0; k < kPiece; ++k) query[k] = {fetch_bits(dots.query + d * kPiece + k)};
      // Multiply
      float q[kPiece];
#pragma unroll
      for (int k = 0; k < kPiece; ++k) q[k] = widen_score(query[k]);
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
#pragma unroll
        for (int k = 0; k < kPiece; ++k) sums[j] += q[k] * piece_element<Scalar>(held[j], k);
      }
    }
    // Reduce
#pragma unroll
    for (int other = kLanes / 2; other > 0; other /= 2) {
#pragma unroll
      for (float& sum : sums) sum += __shfl_xor_sync(kFullWarp, sum, other);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int32_t n = first + j * step;
      const float logit = n < dots.N ? sums[j] * dots.scale : -INFINITY;
      largest = logit > largest ? logit : largest;
      if (piece == 0 && n < dots.N) dots.logits[n] = logit;
    }
  }
  return largest;
}

// The same whatever the alignment and width: a key a warp, an element a lane.
template <class Scalar>
__device__ __forceinline__ float dot_by_elements(const Dots<Scalar>& dots) {
  constexpr int kElements = static_cast<int>(kCudaLimits.head_width) / kWarp;  // of a lane
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  float query[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int d = lane + i * kWarp;
    query[i] = d < dots.Dh ? load_float(dots.query + d) : 0.0f;
  }
  float largest = -INFINITY;
  for (int32_t n = static_cast<int>(threadIdx.x) / kWarp; n < dots.N; n += warps) {
    const Scalar* key = dots.keys + n * dots.stride_n;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int d = lane + i * kWarp;
      if (d < dots.Dh) sum += query[i] * load_float(key + d);
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    const float logit = sum * dots.scale;
    largest = logit > largest ? logit : largest;
    if (lane == 0) dots.logits[n] = logit;
  }
  return largest;
}

// attention [T]: the softmax of head h of row `index`, its last T columns. key_lanes: lanes that
// share a key in 16-byte pieces; 0 where its alignment allows none. Shared memory: logits [N].
template <class Scalar>
__device__ __forceinline__ void attend(const DeviceHeads& heads, const QueriesKeys& layer,
                                       int32_t key_lanes, int64_t index, int32_t h, int32_t T,
                                       float* logits, const BlockGroup& group, float* attention) {
  const Dots<Scalar> dots = {
      static_cast<const Scalar*>(layer.query) + index * layer.query_stride_row +
          h * layer.query_stride_h,
      static_cast<const Scalar*>(layer.key) + index * layer.key_stride_row + h * layer.key_stride_h,
      layer.key_stride_n,
      heads.N,
      heads.Dh,
      heads.scale,
      logits};
  float largest;
  switch (key_lanes) {
    case 8: largest = dot_by_pieces<8>(dots); break;
    case 16: largest = dot_by_pieces<16>(dots); break;
    case 32: largest = dot_by_pieces<32>(dots); break;
    default: largest = dot_by_elements(dots); break;
  }
  add_softmax(group, largest, logits, heads.N, T, /*first=*/true, attention);
}

}  // namespace HIRED_ISA
}  // namespace hired
