// SPDX-License-Identifier: Apache-2.0
//
// Jobs of heads, and a score row of what they leave: where the scores of hired::select_qk come
// from, or those of hired::select.
#pragma once

#include "groups.cuh"
#include "heads.cuh"
#include "phases/score.h"
#include "queries.cuh"
#include "select_params.cuh"

namespace hired {
inline namespace HIRED_ISA {

// Shared memory: attend()'s.
template <class Scalar, int kPictures>
__device__ __forceinline__ void heads_job(const LaunchParams<kPictures>& params, int32_t job,
                                          PictureCounters* counters, char* shared,
                                          const BlockGroup& group) {
  const bool init = job < params.init_jobs;
  if (!init) job -= params.init_jobs;
  const int32_t row = job / params.H, h = job % params.H;
  const int32_t p = params.first_partition + row;  // final layer
  const int32_t b = init ? row : picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  if (init && picture.rest == 0) return;  // nobody will ask

  const QueriesKeys& layer = init ? params.keys_init : params.keys_final;
  const int64_t call_picture = params.first_picture + b;
  const int64_t init_index = layer.rows == params.P ? picture.first_partition : call_picture;
  const int64_t index = init ? init_index : p;
  const int64_t score_row = init ? params.P + picture.init_row : p;
  const int32_t T = params.rules.patches();
  attend<Scalar>({params.H, params.N, params.Dh, params.scale}, layer,
                 init ? params.key_lanes_init : params.key_lanes_final, index, h, T,
                 reinterpret_cast<float*>(shared), group,
                 params.workspace.probabilities + (score_row * params.H + h) * T);
  PictureCounters& counted = counters[b];
  arrive(init                           ? &counted.heads_init
         : p == picture.first_partition ? &counted.heads_full
                                        : &counted.heads_sub);
}

// The same of a run of a head's queries, where there are many; jobs of a head follow each other.
// Shared memory: attend()'s or attend_run()'s.
template <class Scalar, int kPictures>
__device__ __forceinline__ void queries_job(const LaunchParams<kPictures>& params, int32_t job,
                                            PictureCounters* counters, char* shared,
                                            const BlockGroup& group) {
  const bool init = job < params.init_jobs;
  if (!init) job -= params.init_jobs;
  const int32_t runs = init ? params.init_runs : params.final_runs, T = params.rules.patches();
  const int32_t head = job / runs, row = head / params.H, h = head % params.H;
  const int32_t p = params.first_partition + row;  // final layer
  const int32_t b = init ? row : picture_of_partition(params, p);
  const Picture& picture = params.pictures[b];
  if (init && picture.rest == 0) return;  // nobody will ask

  const QueriesKeys layer = one_of(init, params.keys_init, params.keys_final);
  const int64_t call_picture = params.first_picture + b;
  const int64_t init_index = layer.rows == params.P ? picture.first_partition : call_picture;
  const int64_t index = init ? init_index : p;
  const DeviceHeads heads = {params.H, params.N, params.Dh, params.scale};
  const int32_t key_lanes = init ? params.key_lanes_init : params.key_lanes_final;
  float* sums =
      head_rows(params, init, init ? picture.init_row : p) + int64_t{h * runs + job % runs} * T;
  PictureCounters& counted = counters[b];
  uint32_t* arrived = init                           ? &counted.heads_init
                      : p == picture.first_partition ? &counted.heads_full
                                                     : &counted.heads_sub;
  if (layer.Q == 1) {
    attend<Scalar>(heads, layer, key_lanes, index, h, T, reinterpret_cast<float*>(shared), group,
                   sums);
  } else {
    set_run<Scalar>(heads, layer, key_lanes != 0, index, h, job % runs, /*jobs=*/1, T, shared, 1.0f,
                    sums);
    attend_run<Scalar>(params.N, shared);
  }
  arrive(arrived);
}

// keys [M] in shared memory of one score row, each thread its own, waiting for its heads if they
// are being computed. Where patches are merged, their scores [T] come to stand behind the keys.
template <class Scalar, class Source, int kPictures>
__device__ __forceinline__ void score_row(const LaunchParams<kPictures>& params, int32_t b,
                                          bool init, int64_t p,
                                          [[maybe_unused]] PictureCounters* counters,
                                          const BlockGroup& group, uint32_t* keys) {
  const Rules rules = rules_of<Source>(params);
  const int32_t H = params.H, T = rules.patches();
  const bool merged = rules.merge > 1;
  uint32_t* scores = merged ? keys + rules.tokens : keys;
  const Picture& picture = params.pictures[b];
  const int64_t call_picture = params.first_picture + b;
  if constexpr (Source::kKeys) {
    auto heads = static_cast<uint32_t>(H);
    if constexpr (Source::kQueries) heads *= init ? params.init_runs : params.final_runs;
    if (init) {
      wait_for(&counters[b].heads_init, heads, "heads_init", b);
    } else if (p == picture.first_partition) {
      wait_for(&counters[b].heads_full, heads, "heads_full", b);
    } else {
      const uint32_t all = heads * static_cast<uint32_t>(picture.sub_images());
      wait_for(&counters[b].heads_sub, all, "heads_sub", b);
    }
    if constexpr (Source::kQueries) {
      const QueriesKeys& layer = init ? params.keys_init : params.keys_final;
      score_queries(group, head_rows(params, init, init ? picture.init_row : p), H,
                    init ? params.init_runs : params.final_runs, static_cast<float>(layer.Q), T,
                    merged, scores);
    } else {
      const int64_t row = init ? params.P + picture.init_row : p;
      score_attention(group, params.workspace.probabilities + row * H * T, T, 1, H, T, merged,
                      scores);
    }
  } else {
    const Attention& layer = init ? params.attention_init : params.attention_final;
    const int64_t init_row = layer.rows == params.P ? picture.first_partition : call_picture;
    const auto* attention =
        static_cast<const Scalar*>(layer.data) + (init ? init_row : p) * layer.stride_row;
    score_attention(group, attention, layer.stride_h, layer.stride_t, H, T, merged, scores);
  }
  if (merged) {
    group.sync();
    merge_scores(group, rules, scores, keys);
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
