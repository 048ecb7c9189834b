// SPDX-License-Identifier: Apache-2.0
//
// The CPU launcher of hired::cls_attention: threads and workspace come from its caller.
#pragma once

#include <cstddef>

#include "cls_attention.h"
#include "pool.h"

namespace hired {

// Bytes of workspace that a call takes, any alignment, on the threads that it will run on.
size_t workspace_bytes(const ClsAttentionCall& call, const Pool& pool);

void launch_cls_attention_cpu(const ClsAttentionCall& call, void* workspace, const Pool& pool);

}  // namespace hired
