// SPDX-License-Identifier: Apache-2.0
//
// What cls_attention_cpu_kernel.cpp offers, once for each instruction set it is compiled for, in a
// namespace of that name.
#pragma once

#include "cls_attention.h"
#include "head_space.h"
#include "pool.h"

namespace hired {

#define HIRED_DECLARE_ISA(isa)                                                       \
  namespace isa {                                                                    \
  void cls_attention_kernel(const ClsAttentionCall&, const HeadSpace&, const Pool&); \
  }

HIRED_DECLARE_ISA(portable)
#ifdef HIRED_X86
HIRED_DECLARE_ISA(avx2)
HIRED_DECLARE_ISA(avx512)
#endif

#undef HIRED_DECLARE_ISA

}  // namespace hired
