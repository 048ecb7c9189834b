// SPDX-License-Identifier: Apache-2.0
//
// The CPU launchers of hired::select and hired::select_qk. They take their threads and their
// workspace from the caller, choose among the instruction sets that were built by what the
// processor has (cpu_isa.h), and neither allocate nor throw.
#pragma once

#include <cstddef>

#include "pool.h"
#include "select.h"

namespace hired {

// Bytes of workspace that a call takes, any alignment, on the threads that it will run on.
size_t workspace_bytes(const SelectCall& call, const Pool& pool);
size_t workspace_bytes(const SelectQkCall& call, const Pool& pool);

void launch_select_cpu(const SelectCall& call, void* workspace, const Pool& pool);
void launch_select_qk_cpu(const SelectQkCall& call, void* workspace, const Pool& pool);

}  // namespace hired
