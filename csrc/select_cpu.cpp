// SPDX-License-Identifier: Apache-2.0
#include "select_cpu.h"

#include "arena.h"
#include "cpu_isa.h"
#include "select_cpu_kernel.h"

namespace hired {
namespace {

Workspace carve(const Call& call, const Pool&, Arena* arena) {
  const Rules& rules = call.plan->rules;
  const int64_t P = call.P, B = static_cast<int64_t>(call.plan->pictures.size());
  Workspace w{};
  w.key_stride = padded(rules.patches());
  w.keys = arena->take<uint32_t>((P + B) * w.key_stride);
  const bool pooled = rules.policy == Policy::kPooled;
  w.pooled = arena->take<uint32_t>(pooled ? P * rules.tokens : 0);
  w.cut_keys = arena->take<uint32_t>(pooled ? B : 0);
  w.cut_lasts = arena->take<int32_t>(pooled ? B : 0);
  w.kept = arena->take<uint32_t>(P * mask_words(rules.tokens));
  w.budgets = arena->take<int32_t>(P);
  w.picture_of = arena->take<int32_t>(P);
  w.weights = arena->take<uint32_t>(P);
  w.capacities = arena->take<int32_t>(P);
  w.remainders = arena->take<int64_t>(P);
  return w;
}

Workspace carve(const SelectQkCall& call, const Pool& pool, Arena* arena) {
  Workspace w = carve(static_cast<const Call&>(call), pool, arena);
  const int64_t rows = call.P + static_cast<int64_t>(call.plan->pictures.size());
  w.heads = carve_heads({call.H, call.N, call.Dh, call.scale}, rows, {&call.init, &call.final},
                        pool, arena);
  return w;
}

}  // namespace

size_t workspace_bytes(const SelectCall& call, const Pool& pool) {
  Arena arena(nullptr, Arena::Where::kHost);
  carve(call, pool, &arena);
  return arena.bytes();
}

size_t workspace_bytes(const SelectQkCall& call, const Pool& pool) {
  Arena arena(nullptr, Arena::Where::kHost);
  carve(call, pool, &arena);
  return arena.bytes();
}

void launch_select_cpu(const SelectCall& call, void* workspace, const Pool& pool) {
  Arena arena(workspace, Arena::Where::kHost);
  isa_in_use().select(call, carve(call, pool, &arena), pool);
}

void launch_select_qk_cpu(const SelectQkCall& call, void* workspace, const Pool& pool) {
  Arena arena(workspace, Arena::Where::kHost);
  isa_in_use().select_qk(call, carve(call, pool, &arena), pool);
}

}  // namespace hired
