// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA kernels are compiled for, and the largest sizes they serve.
#pragma once

#include "plan.h"

namespace hired {

inline constexpr int kThreads = 256;                // of a block
inline constexpr uint32_t kOtherSet = 0x80000000u;  // in a ticket: of the second set of counters
inline constexpr int kMaxSubImages = 64;            // of a picture
// Keys of all partitions of a picture that a block brings into its shared memory under `pooled`:
// 30 KB, of which three blocks fit on a multiprocessor of a P40. Ten partitions of 729 patches have
// 7,290, thirteen of 256 tokens 3,328; of more, passes read what the L2 has. Predicted, not
// measured.
inline constexpr int kStagedKeys = 7680;

inline constexpr Limits kCudaLimits = {"cuda",  1 << 24, 1 << 12, kMaxSubImages,
                                       1 << 13, 1 << 13, 64,      256};

}  // namespace hired
