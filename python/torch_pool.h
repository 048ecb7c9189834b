// SPDX-License-Identifier: Apache-2.0
//
// PyTorch's own threads, as many as torch.set_num_threads says.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "pool.h"

namespace hired {

// Taken once a call: the workspace and what fills it must agree on the number of threads.
inline Pool torch_pool() {
  return {torch::stable::get_num_threads(),
          [](int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* argument) {
            torch::stable::parallel_for(
                0, n, grain, [&](int64_t begin, int64_t end) { body(argument, begin, end); });
          }};
}

}  // namespace hired
