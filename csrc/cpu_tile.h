// SPDX-License-Identifier: Apache-2.0
//
// The softmax of a tile of queries over all keys of a head, added up over the queries. Logits come
// from a matrix product whose sums stay in registers; they go into a scratch that the first-level
// cache holds at the sizes of ViTs, become exponentials there, and are added up column by column.
//
// Figures: AVX-512, one core, 168 queries, 729 keys, a head of 72. The product takes 90 us, 195
// GFLOP/s (205 with keys from the first-level cache), all of it 117 to 124 us.
#pragma once

#include <cmath>
#include <cstdint>

#include "head_space.h"
#include "lanes.h"
#include "phases/score.h"

namespace hired {
inline namespace HIRED_ISA {

// Queries of a tile and vectors of keys of a panel, whose sums fill the registers; and exponentials
// computed side by side. What was predicted, and measured:
//
// 8 x 3 takes 28 of 32 registers. Predicted: what the multipliers can do. Measured: 195 GFLOP/s.
//
// 6 x 2 with AVX2. Predicted: slower than 4 x 3, for its loads. Measured: the product runs at 108
// GFLOP/s, with 4 x 3 at 82, which needs all 16 registers.
//
// Tiles of two or four times the queries, so that a panel is read once for more of them. Predicted:
// 5 % less time. Measured: the same at N = 729 and 1025. So with panels fetched ahead: 0 to 3 %.
//
// 4 exponentials. Predicted: a quarter less time for them. Measured: 30 us become 26. With 16
// registers 2 to 4 differ by less than the noise.
#if defined(__AVX512F__)
inline constexpr int kTileQueries = 8, kPanelVectors = 3, kChains = 4;
#elif defined(__AVX2__)
inline constexpr int kTileQueries = 6, kPanelVectors = 2, kChains = 2;
#else
inline constexpr int kTileQueries = 4, kPanelVectors = 2, kChains = 2;
#endif
static_assert(kTileQueries <= kMaxTileQueries && kLanes <= kMaxLanes);
static_assert(kQueryRun % kLanes == 0);
inline constexpr int kPanelKeys = kPanelVectors * kLanes;

// The keys of a head, widened, in panels [Dh, kPanelKeys]; the last panel has only the vectors that
// it takes. Behind the last key follow copies of it, so that all logits are those of keys.
struct PackedKeys {
  const float* data;
  int64_t N, Dh;
  float scale;  // of dot products with them
};

// y where one of them is NaN.
HIRED_FN Lanes larger(Lanes x, Lanes y) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, x, y);
#elif defined(__AVX2__)
  return _mm256_max_ps(x, y);
#else
  return x > y ? x : y;
#endif
}

// p * 2^n, rounded once, for n in [-152, 0]: the low bits of n_bits are an integer's, n + 2^22.
HIRED_FN Lanes times_power_of_two(Lanes p, [[maybe_unused]] Lanes n,
                                  [[maybe_unused]] LaneWords n_bits) {
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(0xffff, p, n);
#else
  // Two factors whose exponents are those of normal numbers. Unsigned: NaN brings anything.
  const LaneWords minus_n = 0x4b400000u - n_bits;
  const LaneWords half = minus_n >> 1;
  const LaneWords rest = minus_n - half;
  return p * bit_cast<Lanes>(LaneWords((127u - half) << 23)) *
         bit_cast<Lanes>(LaneWords((127u - rest) << 23));
#endif
}

// All lanes combined in a fixed tree: each with the one kHalf lanes away, then half as far, ...
template <int kHalf, class Combine>
HIRED_FN float combined(Lanes lanes, const Combine& combine) {
  LaneWords other{};
  for (int l = 0; l < kLanes; ++l) other[l] = static_cast<uint32_t>(l ^ kHalf);
  lanes = combine(lanes, __builtin_shuffle(lanes, other));
  if constexpr (kHalf > 1) {
    return combined<kHalf / 2>(lanes, combine);
  } else {
    return lanes[0];
  }
}

// x [kCount] becomes e^x for x <= 0 within 1 ulp or so, denormal results included; NaN for NaN. The
// steps of kCount chains stand side by side: one chain after the other fills the scheduler with
// instructions that wait.
template <int kCount>
HIRED_FN void exponentials(Lanes (&x)[kCount]) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer below
  // Of r^6 to r^0: the smallest relative error where |r| <= log(2) / 2. One degree less than
  // exp_nonpositive() has, and no square. Predicted: a tenth off; measured: 34 us become 30.
  constexpr float kFirst = 1.381454005e-3f;
  constexpr float kPowers[] = {
      8.368745110e-3f, 4.166839079e-2f, 1.666652040e-1f, 4.999999343e-1f, 1.0f, 1.0f};
  const Lanes least = Lanes{} - 105.0f;  // e^-105 rounds to zero
  Lanes shifted[kCount], n[kCount], p[kCount];
  const auto each = [](const auto& step) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) step(i);
  };
  each([&](int i) { x[i] = larger(least, x[i]); });  // NaN, if x is
  each([&](int i) { shifted[i] = x[i] * 1.44269504f + kRound; });
  each([&](int i) { n[i] = shifted[i] - kRound; });
  each([&](int i) { x[i] = x[i] - n[i] * 0.693359375f; });
  each([&](int i) { x[i] = x[i] - n[i] * -2.12194440e-4f; });
  each([&](int i) { p[i] = x[i] * kFirst + kPowers[0]; });
#pragma GCC unroll 5
  for (int k = 1; k < 6; ++k) each([&](int i) { p[i] = p[i] * x[i] + kPowers[k]; });
  each([&](int i) { x[i] = times_power_of_two(p[i], n[i], bit_cast<LaneWords>(shifted[i])); });
}

// logits [kQueries, stride]: those of a panel, or of its first vectors; largest [kQueries]: lane by
// lane, so far. NaN is passed over: it shows in the sum.
template <int kQueries, int kVectors>
HIRED_FN void panel_logits(const float* queries, const float* keys, int64_t Dh, float scale,
                           float* logits, int64_t stride, Lanes* largest) {
  Lanes sums[kQueries][kVectors] = {};
  for (int64_t first = 0; first < Dh; first += kQueryRun) {
    const int64_t count = Dh - first < kQueryRun ? Dh - first : kQueryRun;
    for (int64_t i = 0; i < count; ++i) {
      Lanes key[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) key[v] = load_lanes(keys + v * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[q][v] += key[v] * queries[q * kQueryRun + i];
      }
      keys += kVectors * kLanes;
    }
    queries += kTileQueries * kQueryRun;
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Lanes logit = sums[q][v] * scale;
      store_lanes(logits + q * stride + v * kLanes, logit);
      largest[q] = larger(logit, largest[q]);
    }
  }
}

// logits [kQueries, stride] become e^(x - max); shares [kQueries] are 1 / (their sums).
template <int kQueries>
HIRED_FN void exponentiate(float* logits, int64_t stride, int64_t N, const Lanes* largest,
                           float* shares) {
  if constexpr (kQueries > kChains) {
    constexpr int kHalf = (kQueries + 1) / 2;
    exponentiate<kHalf>(logits, stride, N, largest, shares);
    exponentiate<kQueries - kHalf>(logits + kHalf * stride, stride, N, largest + kHalf,
                                   shares + kHalf);
  } else {
    float max[kQueries];
    Lanes sum[kQueries], e[kQueries];
    for (int q = 0; q < kQueries; ++q) {
      max[q] = combined<kLanes / 2>(largest[q], larger);
      sum[q] = Lanes{};
    }
    const auto vectors_at = [&](int64_t n, const LaneWords* real) {
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) e[q] = load_lanes(logits + q * stride + n) - max[q];
      exponentials(e);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        if (real != nullptr) e[q] = bit_cast<Lanes>(LaneWords(bit_cast<LaneWords>(e[q]) & *real));
        store_lanes(logits + q * stride + n, e[q]);
        sum[q] += e[q];
      }
    };
    int64_t n = 0;
    for (; n + kLanes <= N; n += kLanes) vectors_at(n, nullptr);
    if (n < N) {
      LaneWords real{};
      for (int l = 0; l < N - n; ++l) real[l] = 0xffffffffu;
      vectors_at(n, &real);
    }
    for (int q = 0; q < kQueries; ++q) {
      shares[q] = 1.0f / combined<kLanes / 2>(sum[q], [](Lanes x, Lanes y) { return x + y; });
    }
  }
}

// sums [N], padded to whole vectors, from `column` on, a multiple of kLanes: adds the softmax of
// each query. Queries are packed as pack_queries() leaves them; logits [kQueries, stride] is
// scratch.
template <int kQueries>
void add_tile(const float* queries, const PackedKeys& keys, int64_t column, float* logits,
              int64_t stride, float* sums) {
  const int64_t N = keys.N, Dh = keys.Dh;
  Lanes largest[kQueries];
  for (Lanes& lanes : largest) lanes = Lanes{} - INFINITY;
  int64_t n = 0;
  for (; n + kPanelKeys - kLanes < N; n += kPanelKeys) {
    panel_logits<kQueries, kPanelVectors>(queries, keys.data + n * Dh, Dh, keys.scale, logits + n,
                                          stride, largest);
  }
  if (n < N) {
    if (kPanelVectors > 2 && n + kLanes < N) {
      panel_logits<kQueries, 2>(queries, keys.data + n * Dh, Dh, keys.scale, logits + n, stride,
                                largest);
    } else {
      panel_logits<kQueries, 1>(queries, keys.data + n * Dh, Dh, keys.scale, logits + n, stride,
                                largest);
    }
  }

  float shares[kQueries];
  exponentiate<kQueries>(logits, stride, N, largest, shares);

  for (int64_t i = column; i < N; i += kLanes) {
    Lanes sum = load_lanes(sums + i);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) sum += load_lanes(logits + q * stride + i) * shares[q];
    store_lanes(sums + i, sum);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
