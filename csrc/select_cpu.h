// SPDX-License-Identifier: Apache-2.0
//
// The CPU launchers. They take their threads and their workspace from the caller, choose among the
// instruction sets that were built by what the processor has, and neither allocate nor throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "select.h"

namespace hired {

// Runs body(argument, begin, end) over ranges that cover [0, n), at least `grain` long, on the
// caller's threads.
struct Pool {
  void (*run)(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* argument);
};

// Bytes of workspace that a call takes, any alignment.
size_t workspace_bytes(const SelectCall& call);
size_t workspace_bytes(const SelectQkCall& call);

void launch_select_cpu(const SelectCall& call, void* workspace, const Pool& pool);
void launch_select_qk_cpu(const SelectQkCall& call, void* workspace, const Pool& pool);

// Instruction sets built into this library that this processor has, the widest last; and the one in
// use: the widest, unless the environment variable HIRED_CPU_ISA names another.
std::vector<std::string> cpu_isas();
std::string cpu_isa();

}  // namespace hired
