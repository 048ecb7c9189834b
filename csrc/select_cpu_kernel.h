// SPDX-License-Identifier: Apache-2.0
//
// What select_cpu_kernel.cpp offers, once for each instruction set it is compiled for, in a
// namespace of that name.
#pragma once

#include "head_space.h"
#include "pool.h"
#include "select.h"

namespace hired {

struct Workspace {
  int64_t key_stride;  // T, padded to whole vectors: scores of patches become keys of tokens
  uint32_t* keys;      // [P + B, key_stride] ordered keys: final layer, then initial layer
  HeadSpace heads;     // of P + B rows, select_qk only
  uint32_t* kept;      // [P, mask_words(T)] kept patches of each partition, a bit each
  uint32_t* pooled;    // [P, M] keys of the final layer, under `pooled`
  uint32_t* cut_keys;  // [B] and where each picture's are cut
  int32_t* cut_lasts;
  int32_t* budgets;     // [P]
  int32_t* picture_of;  // [P]
  uint32_t* weights;    // [P], capacities and remainders too: a sub-image's at its partition
  int32_t* capacities;
  int64_t* remainders;
};

#define HIRED_DECLARE_ISA(isa)                                               \
  namespace isa {                                                            \
  void select_kernel(const SelectCall&, const Workspace&, const Pool&);      \
  void select_qk_kernel(const SelectQkCall&, const Workspace&, const Pool&); \
  }

HIRED_DECLARE_ISA(portable)
#ifdef HIRED_X86
HIRED_DECLARE_ISA(avx2)
HIRED_DECLARE_ISA(avx512)
#endif

#undef HIRED_DECLARE_ISA

}  // namespace hired
