// SPDX-License-Identifier: Apache-2.0
//
// Every kernel of the library is loaded onto a device before the first of them runs there. CUDA
// loads code lazily, at a kernel's first launch; drivers before CUDA 12.3, which a Pascal card may
// well have, refuse that while a stream is being captured. So whoever made any call before a
// capture can capture all of them.
#pragma once

#include "status.h"

namespace hired {

// Once a device, which is the current one. `argument` is what a refusal names: it says in words
// what would else be "no kernel image".
Status load_kernels(const char* argument, int device);

// What is loaded, file by file.
Status load_select_kernels(const char* argument, int device);         // select_cuda.cu
Status load_cls_attention_kernels(const char* argument, int device);  // cls_attention_cuda.cu
// select_cuda_large.cu. Whether it has code for the device, and its driver takes it.
bool load_large_kernels(int device);

// What load_large_kernels() found.
bool has_large_kernels(int device);

}  // namespace hired
