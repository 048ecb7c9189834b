// SPDX-License-Identifier: Apache-2.0
#include "kernel_code.h"

#include <map>
#include <mutex>

namespace hired {
namespace {

std::mutex mutex;
std::map<int, bool> loaded;  // by device: whether the large kernels are there, too

}  // namespace

Status load_kernels(const char* argument, int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (loaded.count(device) != 0) return Status::Ok();
  if (Status status = load_select_kernels(argument, device); !status.ok()) return status;
  if (Status status = load_cls_attention_kernels(argument, device); !status.ok()) return status;
#ifdef HIRED_CUDA_LARGE  // some of the code is for sm_70 or later
  loaded[device] = load_large_kernels(device);
#else
  loaded[device] = false;
#endif
  return Status::Ok();
}

bool has_large_kernels(int device) {
#if defined(HIRED_EMULATE) && defined(HIRED_CUDA_LARGE)  // its device changes under the test
  return load_large_kernels(device);
#endif
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = loaded.find(device);
  return found != loaded.end() && found->second;
}

}  // namespace hired
