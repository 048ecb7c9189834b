// SPDX-License-Identifier: Apache-2.0
#include "select_cuda.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "cuda_stream.h"
#include "outputs.h"

namespace hired {
namespace {

template <class SomeCall>
Selected select_on_cuda(const char* op, const Tensor& features, SomeCall* call,
                        Status (*launch)(const SomeCall&, const CudaPlace&)) {
  const int32_t device = features.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Selected out = make_outputs(features, call);
  if (call->P == 0) return out;
  // Back in PyTorch's hands as soon as this returns: its allocator keeps the stream's order.
  const Tensor workspace = make_workspace(features, cuda_workspace_bytes(*call));
  void* stream = current_stream(op, "features", device);
  Counters* counters = nullptr;
  raise(op, find_counters(device, stream, &counters));
  raise(op, launch(*call, {device, stream, counters, workspace.mutable_data_ptr(), kThreads}));
  return out;
}

}  // namespace

Selected select_cuda(Tensor features, Tensor attn_init, Tensor attn_final,
                     std::vector<int64_t> grids, std::vector<int64_t> budgets, double alpha,
                     std::optional<std::vector<int64_t>> crops, std::string policy,
                     std::string order, int64_t merge) {
  Plan plan;
  SelectCall call{};
  check_select(features, attn_init, attn_final,
               {grids, budgets, alpha, crops, policy, order, merge}, kCudaLimits, &plan, &call);
  return select_on_cuda("select", features, &call, launch_select_cuda);
}

Selected select_qk_cuda(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final,
                        Tensor key_final, std::vector<int64_t> grids, std::vector<int64_t> budgets,
                        double alpha, std::optional<double> scale,
                        std::optional<std::vector<int64_t>> crops, std::string policy,
                        std::string order, int64_t merge) {
  Plan plan;
  SelectQkCall call{};
  check_select_qk(features, query_init, key_init, query_final, key_final,
                  {grids, budgets, alpha, crops, policy, order, merge}, scale, kCudaLimits, &plan,
                  &call);
  return select_on_cuda("select_qk", features, &call, launch_select_qk_cuda);
}

}  // namespace hired
