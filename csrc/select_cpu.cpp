// SPDX-License-Identifier: Apache-2.0
#include "select_cpu.h"

#include <cstdlib>

#include "arena.h"
#include "select_cpu_kernel.h"

namespace hired {
namespace {

struct Isa {
  const char* name;
  bool (*here)();
  void (*select)(const SelectCall&, const Workspace&, const Pool&);
  void (*select_qk)(const SelectQkCall&, const Workspace&, const Pool&);
};

constexpr Isa kIsas[] = {
    {"portable", [] { return true; }, portable::select_kernel, portable::select_qk_kernel},
#ifdef HIRED_X86
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     avx2::select_kernel, avx2::select_qk_kernel},
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     avx512::select_kernel, avx512::select_qk_kernel},
#endif
};

const Isa& choose_isa() {
  const char* wanted = std::getenv("HIRED_CPU_ISA");
  const Isa* best = &kIsas[0];
  for (const Isa& isa : kIsas) {
    if (!isa.here()) continue;
    best = &isa;
    if (wanted != nullptr && std::string(wanted) == isa.name) break;
  }
  return *best;
}

const Isa& isa_in_use() {
  static const Isa& isa = choose_isa();
  return isa;
}

int64_t padded(int64_t count) {
  return (count + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}

Workspace carve(const Call& call, Arena* arena) {
  const Rules& rules = call.plan->rules;
  const int64_t P = call.P, B = static_cast<int64_t>(call.plan->pictures.size());
  Workspace w{};
  w.key_stride = padded(rules.tokens);
  w.keys = arena->take<uint32_t>((P + B) * w.key_stride);
  w.kept = arena->take<int32_t>(P * rules.tokens);
  w.row_counts = arena->take<uint32_t>(P * rules.side);
  w.shifts = arena->take<int32_t>(P * rules.side);
  w.budgets = arena->take<int32_t>(P);
  w.picture_of = arena->take<int32_t>(P);
  w.weights = arena->take<uint32_t>(P);
  w.capacities = arena->take<int32_t>(P);
  w.remainders = arena->take<int64_t>(P);
  return w;
}

Workspace carve(const SelectQkCall& call, Arena* arena) {
  Workspace w = carve(static_cast<const Call&>(call), arena);
  // Lanes are read from any of the last T logits on, up to one lane's width past the end.
  w.logit_stride = padded(call.N) + kMaxLanes;
  const int64_t rows = call.P + static_cast<int64_t>(call.plan->pictures.size());
  w.logits = arena->take<float>(rows * call.H * w.logit_stride);
  w.query_stride = padded(call.Dh);
  w.queries = arena->take<float>(rows * call.H * w.query_stride);
  return w;
}

}  // namespace

size_t workspace_bytes(const SelectCall& call) {
  Arena arena(nullptr, Arena::Where::kHost);
  carve(call, &arena);
  return arena.bytes();
}

size_t workspace_bytes(const SelectQkCall& call) {
  Arena arena(nullptr, Arena::Where::kHost);
  carve(call, &arena);
  return arena.bytes();
}

void launch_select_cpu(const SelectCall& call, void* workspace, const Pool& pool) {
  Arena arena(workspace, Arena::Where::kHost);
  isa_in_use().select(call, carve(call, &arena), pool);
}

void launch_select_qk_cpu(const SelectQkCall& call, void* workspace, const Pool& pool) {
  Arena arena(workspace, Arena::Where::kHost);
  isa_in_use().select_qk(call, carve(call, &arena), pool);
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.here()) names.emplace_back(isa.name);
  }
  return names;
}

std::string cpu_isa() {
  return isa_in_use().name;
}

}  // namespace hired
