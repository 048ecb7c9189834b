// SPDX-License-Identifier: Apache-2.0
#include "cls_attention_cuda.h"

#include "cls_attention_kernel.cuh"
#include "kernel_code.h"
#include "launch.cuh"

namespace hired {
namespace {

static_assert(kCudaLimits.partitions * kCudaLimits.heads <= INT32_MAX, "blocks of a launch");

template <class Scalar, bool kQueries>
Status launch(const ClsAttentionCall& call, void* stream, int32_t threads) {
  const Heads& heads = call.heads;
  if (Status status = check_aligned<Scalar>("query", call.layer.query); !status.ok()) return status;
  if (Status status = check_aligned<Scalar>("key", call.layer.key); !status.ok()) return status;
  const int64_t blocks = call.P * heads.H;
  ClsAttentionParams params{};
  params.heads = {static_cast<int32_t>(heads.H), static_cast<int32_t>(heads.N),
                  static_cast<int32_t>(heads.Dh), heads.scale};
  params.layer = call.layer;
  params.key_lanes = key_lanes<Scalar>(call.layer, heads.Dh);
  params.T = static_cast<int32_t>(call.T);
  params.attention = call.attention;
  const size_t shared = BlockGroup::kScratch * sizeof(uint32_t) +
                        (kQueries ? queries_bytes(heads.N, threads) : head_bytes(heads.N));
  void* arguments[] = {&params};
  return cuda_status(
      cudaLaunchKernel(cls_attention_kernel<Scalar, kQueries>, dim3(static_cast<unsigned>(blocks)),
                       dim3(static_cast<unsigned>(threads)), arguments, shared,
                       static_cast<cudaStream_t>(stream)),
      "the kernel to start");
}

template <class Scalar>
Status launch_any(const ClsAttentionCall& call, void* stream, int32_t threads) {
  return call.layer.Q == 1 ? launch<Scalar, false>(call, stream, threads)
                           : launch<Scalar, true>(call, stream, threads);
}

}  // namespace

Status load_cls_attention_kernels(const char* argument, int device) {
  return load_code(argument, device, cls_attention_kernel<float, false>,
                   cls_attention_kernel<Float16, false>, cls_attention_kernel<BFloat16, false>,
                   cls_attention_kernel<float, true>, cls_attention_kernel<Float16, true>,
                   cls_attention_kernel<BFloat16, true>);
}

Status launch_cls_attention_cuda(const ClsAttentionCall& call, int device, void* stream,
                                 int32_t threads) {
  if (Status status = set_device(device); !status.ok()) return status;
  if (Status status = load_kernels("query", device); !status.ok()) return status;
  switch (call.dtype) {
    case Dtype::kFloat16: return launch_any<Float16>(call, stream, threads);
    case Dtype::kBFloat16: return launch_any<BFloat16>(call, stream, threads);
    default: return launch_any<float>(call, stream, threads);
  }
}

}  // namespace hired
