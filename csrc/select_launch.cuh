// SPDX-License-Identifier: Apache-2.0
//
// From a checked call to launches: shared by select_cuda.cu and select_cuda_large.cu, which differ
// in how many pictures the parameters of one launch hold.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "launch.cuh"
#include "select_kernel.cuh"

namespace hired {
inline namespace HIRED_ISA {

// Patches that a warp of a gather job copies, about: one after the other, so one where
// that leaves room for all blocks at once. Where it does not, blocks come in waves, and two rows a
// warp spare as many starts as they cost trips to memory. Predicted, not measured.
inline constexpr int32_t kRowsPerWarp = 2;

// Gather jobs of a partition.
inline int32_t blocks_for(int64_t rows, int32_t rows_per_warp, int32_t threads) {
  const int64_t each = int64_t{rows_per_warp} * threads / kWarp;
  return static_cast<int32_t>(std::max<int64_t>(1, (rows + each - 1) / each));
}

// Rows that partitions of a picture are expected to keep: an even share, where only the device
// knows how many it will be.
struct Rows {
  int64_t of_full, of_sub;
};

inline Rows rows_to_expect(const Picture& picture, bool pooled) {
  const int64_t sub_images = picture.sub_images();
  const auto even = [](int64_t rows, int64_t parts) { return (rows + parts - 1) / parts; };
  if (pooled) {
    const int64_t each = even(picture.output_rows, 1 + sub_images);
    return {each, sub_images > 0 ? each : 0};
  }
  return {picture.full_budget, even(picture.rest, std::max<int64_t>(1, sub_images))};
}

// partitions, columns: of the picture that has most of them.
inline size_t shared_bytes(const Call& call, int64_t heads, int32_t partitions, int32_t columns) {
  const Rules& rules = call.plan->rules;
  const int64_t M = rules.tokens, mask = mask_words(rules.tokens);
  const int64_t words = sizeof(uint32_t);
  const int64_t scored = M + (rules.merge > 1 ? rules.patches() : 0);
  int64_t keys = scored;
  if (rules.policy == Policy::kPooled) {
    const int64_t all = partitions * M;
    // Of pictures with fewer partitions there may be fewer keys.
    keys = std::max(keys, std::min(all, int64_t{kStagedKeys}));
  }
  const int64_t choice = sizeof(ChooseScratch) + keys * words;
  const int64_t weigh = sizeof(ChooseScratch) + (scored + 4 * kMaxSubImages + 1 + mask) * words;
  const int64_t gather = (std::max(1, columns) * mask + 1 + kMaxSubImages) * words;
  return (4 + BlockGroup::kScratch) * words + std::max({heads, choice, weigh, gather});
}

// Shared memory of the heads of a call.
inline int64_t heads_bytes(const SelectCall&, int32_t) {
  return 0;
}
inline int64_t heads_bytes(const SelectQkCall& call, int32_t threads) {
  int64_t most = 0;
  for (const QueriesKeys* layer : {&call.init, &call.final}) {
    most = std::max(most, layer->Q == 1 ? head_bytes(call.N) : queries_bytes(call.N, threads));
  }
  return most;
}

template <class Scalar, int kPictures>
void fill_scores(const SelectCall& call, LaunchParams<kPictures>* params) {
  params->attention_init = call.init;
  params->attention_final = call.final;
}

template <class Scalar, int kPictures>
void fill_scores(const SelectQkCall& call, LaunchParams<kPictures>* params) {
  params->keys_init = call.init;
  params->keys_final = call.final;
  params->init_runs = split_queries(call.init.Q).jobs;
  params->final_runs = split_queries(call.final.Q).jobs;
  params->N = static_cast<int32_t>(call.N);
  params->Dh = static_cast<int32_t>(call.Dh);
  params->scale = call.scale;
  params->key_lanes_init = key_lanes<Scalar>(call.init, call.Dh);
  params->key_lanes_final = key_lanes<Scalar>(call.final, call.Dh);
}

template <class Scalar>
Status check_aligned(const SelectCall& call) {
  Status status = check_aligned<Scalar>("attn_init", call.init.data);
  return status.ok() ? check_aligned<Scalar>("attn_final", call.final.data) : status;
}

template <class Scalar>
Status check_aligned(const SelectQkCall& call) {
  const std::pair<const char*, const void*> tensors[] = {{"query_init", call.init.query},
                                                         {"key_init", call.init.key},
                                                         {"query_final", call.final.query},
                                                         {"key_final", call.final.key}};
  for (const auto& [argument, data] : tensors) {
    if (Status status = check_aligned<Scalar>(argument, data); !status.ok()) return status;
  }
  return Status::Ok();
}

// Launches the pictures [first, first + count) of a call.
template <class Scalar, class Source, int kPictures, class SomeCall>
Status launch(const SomeCall& call, const DeviceWorkspace& workspace, const CudaPlace& place,
              int32_t first, int32_t count) {
  if (Status status = check_aligned<Scalar>(call); !status.ok()) return status;
  LaunchParams<kPictures> params{};
  params.rules = call.plan->rules;
  params.features = call.features;
  params.output = call.output;
  params.workspace = workspace;
  params.P = call.P;
  params.H = static_cast<int32_t>(call.H);
  fill_scores<Scalar>(call, &params);
  params.first_picture = first;
  params.count = count;
  const Picture* pictures = call.plan->pictures.data() + first;
  params.first_partition = pictures[0].first_partition;
  const bool pooled = params.rules.policy == Policy::kPooled;
  int64_t full_rows = 0, sub_rows = 0;
  int32_t partitions = 0, columns = 0;
  bool any_rest = false;
  for (int32_t b = 0; b < count; ++b) {
    const Picture& picture = pictures[b];
    params.pictures[b] = picture;
    const int32_t sub_images = picture.sub_images();
    params.partitions += 1 + sub_images;
    const Rows rows = rows_to_expect(picture, pooled);
    full_rows = std::max(full_rows, rows.of_full * params.rules.block());
    sub_rows = std::max(sub_rows, rows.of_sub * params.rules.block());
    partitions = std::max(partitions, 1 + sub_images);
    columns = std::max(columns, picture.cols);
    any_rest = any_rest || picture.rest > 0;
  }
  params.weigh_jobs = pooled ? params.partitions : count;
  params.init_jobs = Source::kKeys && any_rest ? count * params.H * params.init_runs : 0;
  const int64_t final_jobs = int64_t{params.partitions} * params.H * params.final_runs;
  const int64_t heads = Source::kKeys ? params.init_jobs + final_jobs : 0;
  int64_t resident = 0;
  constexpr int kPascal = Source::kQueries ? kQueriesBlocksPerSm : kPascalBlocksPerSm;
  constexpr int kLater = Source::kQueries ? kQueriesBlocksPerSm : kLaterBlocksPerSm;
  Status counted = resident_blocks(place.device, kPascal, kLater, &resident);
  if (!counted.ok()) return counted;
  int64_t jobs = 0;
  for (int32_t rows_per_warp = 1; rows_per_warp <= kRowsPerWarp; ++rows_per_warp) {
    params.full_blocks = blocks_for(full_rows, rows_per_warp, place.threads);
    params.sub_blocks = blocks_for(sub_rows, rows_per_warp, place.threads);
    jobs = heads + params.weigh_jobs + params.partitions + int64_t{count} * params.full_blocks +
           int64_t{params.partitions - count} * params.sub_blocks;
    if (jobs <= resident) break;
  }
  if (jobs > INT32_MAX) {
    return Status::Refused("features", "fewer tokens in one launch",
                           std::to_string(jobs) + " jobs");
  }
  void* arguments[] = {&params};
  return cuda_status(
      cudaLaunchKernel(select_kernel<Scalar, Source, kPictures>, dim3(static_cast<unsigned>(jobs)),
                       dim3(static_cast<unsigned>(place.threads)), arguments,
                       shared_bytes(call, heads_bytes(call, place.threads), partitions, columns),
                       static_cast<cudaStream_t>(place.stream)),
      "the kernel to start");
}

template <int kPictures, class Source>
Status load_from(const char* argument, int device) {
  return load_code(argument, device, select_kernel<float, Source, kPictures>,
                   select_kernel<Float16, Source, kPictures>,
                   select_kernel<BFloat16, Source, kPictures>);
}

template <int kPictures>
Status load_select(const char* argument, int device) {
  Status status = load_from<kPictures, FromRows>(argument, device);
  if (status.ok()) status = load_from<kPictures, FromMergedRows>(argument, device);
  if (status.ok()) status = load_from<kPictures, FromOneQuery>(argument, device);
  return status.ok() ? load_from<kPictures, FromQueries>(argument, device) : status;
}

template <class Source, int kPictures, class SomeCall>
Status launch_from(const SomeCall& call, const DeviceWorkspace& workspace, const CudaPlace& place,
                   int32_t first, int32_t count) {
  switch (call.dtype) {
    case Dtype::kFloat16:
      return launch<Float16, Source, kPictures>(call, workspace, place, first, count);
    case Dtype::kBFloat16:
      return launch<BFloat16, Source, kPictures>(call, workspace, place, first, count);
    default: return launch<float, Source, kPictures>(call, workspace, place, first, count);
  }
}

template <int kPictures>
Status launch_some(const SelectCall& call, const DeviceWorkspace& workspace, const CudaPlace& place,
                   int32_t first, int32_t count) {
  return call.plan->rules.merge == 1
             ? launch_from<FromRows, kPictures>(call, workspace, place, first, count)
             : launch_from<FromMergedRows, kPictures>(call, workspace, place, first, count);
}

template <int kPictures>
Status launch_some(const SelectQkCall& call, const DeviceWorkspace& workspace,
                   const CudaPlace& place, int32_t first, int32_t count) {
  return call.init.Q == 1 && call.final.Q == 1
             ? launch_from<FromOneQuery, kPictures>(call, workspace, place, first, count)
             : launch_from<FromQueries, kPictures>(call, workspace, place, first, count);
}

template <int kPictures, class SomeCall>
Status launch_all(const SomeCall& call, const DeviceWorkspace& workspace, const CudaPlace& place) {
  const auto B = static_cast<int32_t>(call.plan->pictures.size());
  for (int32_t first = 0; first < B; first += kPictures) {
    const int32_t count = std::min(kPictures, B - first);
    if (Status status = launch_some<kPictures>(call, workspace, place, first, count);
        !status.ok()) {
      return status;
    }
  }
  return Status::Ok();
}

}  // namespace HIRED_ISA

// select_cuda_large.cu.
Status launch_large(const SelectCall& call, const DeviceWorkspace& workspace,
                    const CudaPlace& place);
Status launch_large(const SelectQkCall& call, const DeviceWorkspace& workspace,
                    const CudaPlace& place);

}  // namespace hired
