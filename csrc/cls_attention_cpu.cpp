// SPDX-License-Identifier: Apache-2.0
#include "cls_attention_cpu.h"

#include "arena.h"
#include "cpu_isa.h"
#include "head_space.h"

namespace hired {

size_t workspace_bytes(const ClsAttentionCall& call, const Pool& pool) {
  Arena arena(nullptr, Arena::Where::kHost);
  carve_heads(call.heads, call.P, {&call.layer}, pool, &arena);
  return arena.bytes();
}

void launch_cls_attention_cpu(const ClsAttentionCall& call, void* workspace, const Pool& pool) {
  Arena arena(workspace, Arena::Where::kHost);
  const HeadSpace space = carve_heads(call.heads, call.P, {&call.layer}, pool, &arena);
  isa_in_use().cls_attention(call, space, pool);
}

}  // namespace hired
