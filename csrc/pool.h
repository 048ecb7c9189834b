// SPDX-License-Identifier: Apache-2.0
//
// Threads of the caller's, for the CPU launchers.
#pragma once

#include <cstdint>

namespace hired {

// run() runs body(argument, begin, end) over ranges that cover [0, n), at least `grain` long, on
// the caller's threads. There are about `threads` of them: workspace is cut for so many, and no
// result depends on it.
struct Pool {
  int64_t threads;
  void (*run)(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* argument);
};

}  // namespace hired
