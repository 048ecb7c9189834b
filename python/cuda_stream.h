// SPDX-License-Identifier: Apache-2.0
//
// What glue on a GPU has in common: PyTorch's stream, and how a launcher's refusal is raised.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

#include "status.h"

// libtorch_cuda has it; a CPU build of PyTorch has not, and never gets as far as to call it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace hired {

inline void raise(const char* op, const Status& status) {
  if (status.ok()) return;
  throw std::runtime_error(std::string("hired::") + op + ": " + status.message());
}

// `argument` is the operator's first.
inline void* current_stream(const char* op, const char* argument, int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS) {
    raise(op, Status::Refused(argument, "a PyTorch with CUDA", "one that has no CUDA streams"));
  }
  return stream;
}

}  // namespace hired
