// SPDX-License-Identifier: Apache-2.0
//
// The CUDA launcher of hired::cls_attention: one kernel, nothing else enqueued, no synchronisation.
#pragma once

#include "cls_attention.h"
#include "cuda_limits.h"
#include "status.h"

namespace hired {

// On `stream`, a cudaStream_t of `device`, in blocks of so many threads: kThreads.
Status launch_cls_attention_cuda(const ClsAttentionCall& call, int device, void* stream,
                                 int32_t threads);

}  // namespace hired
