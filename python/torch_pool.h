// SPDX-License-Identifier: Apache-2.0
//
// PyTorch's own threads, as many as torch.set_num_threads says.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "pool.h"

namespace hired {

inline constexpr Pool kTorchPool = {
    [](int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* argument) {
      torch::stable::parallel_for(0, n, grain,
                                  [&](int64_t begin, int64_t end) { body(argument, begin, end); });
    }};

}  // namespace hired
