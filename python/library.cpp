// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.hired: the schemas and who implements them. Nothing but PyTorch's stable ABI is used,
// so one build serves PyTorch 2.10 and later, and a C++ program may load this library without
// Python.
#include <torch/csrc/stable/library.h>

#include "operators.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(hired, m) {
  m.def(hired::kSelectSchema);
  m.def(hired::kSelectQkSchema);
  m.def(hired::kClsAttentionSchema);
}

STABLE_TORCH_LIBRARY_IMPL(hired, CPU, m) {
  m.impl("select", TORCH_BOX(&hired::select_cpu));
  m.impl("select_qk", TORCH_BOX(&hired::select_qk_cpu));
  m.impl("cls_attention", TORCH_BOX(&hired::cls_attention_cpu));
}

#ifdef HIRED_CUDA
STABLE_TORCH_LIBRARY_IMPL(hired, CUDA, m) {
  m.impl("select", TORCH_BOX(&hired::select_cuda));
  m.impl("select_qk", TORCH_BOX(&hired::select_qk_cuda));
  m.impl("cls_attention", TORCH_BOX(&hired::cls_attention_cuda));
}
#endif
