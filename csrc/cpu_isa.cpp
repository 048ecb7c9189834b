// SPDX-License-Identifier: Apache-2.0
#include "cpu_isa.h"

#include <cstdlib>

namespace hired {
namespace {

constexpr Isa kIsas[] = {
    {"portable", [] { return true; }, portable::select_kernel, portable::select_qk_kernel,
     portable::cls_attention_kernel},
#ifdef HIRED_X86
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     avx2::select_kernel, avx2::select_qk_kernel, avx2::cls_attention_kernel},
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     avx512::select_kernel, avx512::select_qk_kernel, avx512::cls_attention_kernel},
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

}  // namespace

const Isa& isa_in_use() {
  static const Isa& isa = choose_isa();
  return isa;
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
