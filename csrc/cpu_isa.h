// SPDX-License-Identifier: Apache-2.0
//
// The instruction sets that the CPU kernels were compiled for, and the one in use: the widest that
// this processor has, unless the environment variable HIRED_CPU_ISA names another.
#pragma once

#include <string>
#include <vector>

#include "cls_attention_cpu_kernel.h"
#include "select_cpu_kernel.h"

namespace hired {

struct Isa {
  const char* name;
  bool (*here)();
  void (*select)(const SelectCall&, const Workspace&, const Pool&);
  void (*select_qk)(const SelectQkCall&, const Workspace&, const Pool&);
  void (*cls_attention)(const ClsAttentionCall&, const HeadSpace&, const Pool&);
};

const Isa& isa_in_use();

// Names: of those that this processor has, the widest last; of the one in use.
std::vector<std::string> cpu_isas();
std::string cpu_isa();

}  // namespace hired
