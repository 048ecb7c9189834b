// SPDX-License-Identifier: Apache-2.0
#include "select_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "outputs.h"
#include "torch_pool.h"

namespace hired {
namespace {

template <class SomeCall>
Selected select_on_cpu(const Tensor& features, SomeCall* call,
                       void (*launch)(const SomeCall&, void*, const Pool&)) {
  const Selected out = make_outputs(features, call);
  if (call->P == 0) return out;
  const Pool pool = torch_pool();
  const Tensor workspace = make_workspace(features, workspace_bytes(*call, pool));
  launch(*call, workspace.mutable_data_ptr(), pool);
  return out;
}

}  // namespace

Selected select_cpu(Tensor features, Tensor attn_init, Tensor attn_final,
                    std::vector<int64_t> grids, std::vector<int64_t> budgets, double alpha,
                    std::optional<std::vector<int64_t>> crops, std::string policy,
                    std::string order, int64_t merge) {
  Plan plan;
  SelectCall call{};
  check_select(features, attn_init, attn_final,
               {grids, budgets, alpha, crops, policy, order, merge}, kCpuLimits, &plan, &call);
  return select_on_cpu(features, &call, launch_select_cpu);
}

Selected select_qk_cpu(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final,
                       Tensor key_final, std::vector<int64_t> grids, std::vector<int64_t> budgets,
                       double alpha, std::optional<double> scale,
                       std::optional<std::vector<int64_t>> crops, std::string policy,
                       std::string order, int64_t merge) {
  Plan plan;
  SelectQkCall call{};
  check_select_qk(features, query_init, key_init, query_final, key_final,
                  {grids, budgets, alpha, crops, policy, order, merge}, scale, kCpuLimits, &plan,
                  &call);
  return select_on_cpu(features, &call, launch_select_qk_cpu);
}

}  // namespace hired
