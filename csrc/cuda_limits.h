// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA kernels are compiled for, and the largest sizes they serve.
#pragma once

#include "plan.h"

namespace hired {

inline constexpr int kThreads = 256;                // of a block
inline constexpr uint32_t kOtherSet = 0x80000000u;  // in a ticket: of the second set of counters
inline constexpr int kMaxSubImages = 64;            // of a picture

inline constexpr Limits kCudaLimits = {
    "cuda", 1 << 24, 1 << 12, kMaxSubImages, 1 << 13, 1 << 13, 64, 256};

}  // namespace hired
