// SPDX-License-Identifier: Apache-2.0
#include "cls_attention_cpu.h"

#include "checks.h"
#include "outputs.h"
#include "torch_pool.h"

namespace hired {

Tensor cls_attention_cpu(Tensor query, Tensor key, int64_t tokens, std::optional<double> scale) {
  ClsAttentionCall call{};
  check_cls_attention(query, key, tokens, scale, kCpuLimits, &call);
  const Tensor attention = make_attention(query, &call);
  if (call.P == 0) return attention;
  const Pool pool = torch_pool();
  const Tensor workspace = make_workspace(query, workspace_bytes(call, pool));
  launch_cls_attention_cpu(call, workspace.mutable_data_ptr(), pool);
  return attention;
}

}  // namespace hired
