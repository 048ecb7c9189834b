// SPDX-License-Identifier: Apache-2.0
#include "cls_attention_cuda.h"

#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda_stream.h"
#include "outputs.h"

namespace hired {

Tensor cls_attention_cuda(Tensor query, Tensor key, int64_t tokens, std::optional<double> scale) {
  constexpr char kOp[] = "cls_attention";
  ClsAttentionCall call{};
  check_cls_attention(query, key, tokens, scale, kCudaLimits, &call);
  const int32_t device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor attention = make_attention(query, &call);
  if (call.P == 0) return attention;
  void* stream = current_stream(kOp, "query", device);
  raise(kOp, launch_cls_attention_cuda(call, device, stream, kThreads));
  return attention;
}

}  // namespace hired
