// SPDX-License-Identifier: Apache-2.0
//
// hired::cls_attention on a CPU. Three sweeps over independent items on the caller's threads: a
// row's queries, a run of its keys, a head's softmax. The first two and the arithmetic of the third
// are those of hired::select_qk (cpu_heads.h), so that the sum over heads has the bits that it has
// there.
//
// Bytes: every key once, every element of the output once; beside them N logits a head, which stay
// in the cache.
#include "cls_attention_cpu_kernel.h"

#include <cstring>

#include "cpu_heads.h"

namespace hired {
inline namespace HIRED_ISA {
namespace {

template <class Scalar>
void attend(const ClsAttentionCall& call, const HeadSpace& w, const Pool& pool) {
  const Heads& heads = call.heads;
  const auto row_of = [&](int64_t p) { return HeadRow{true, &call.layer, p}; };
  fill_logits<Scalar>(heads, call.P, row_of, w, pool);
  const int64_t logit_bytes = w.logit_stride * static_cast<int64_t>(sizeof(float));
  sweep(pool, call.P * heads.H, logit_bytes, [&](int64_t item) {
    // In whole vectors where the logits were, for rows of the output have no room behind them.
    float* attention = w.logits + item * w.logit_stride;
    add_head(heads, w, item / heads.H, item % heads.H, static_cast<int32_t>(call.T),
             /*first=*/true, attention);
    std::memcpy(call.attention + item * call.T, attention,
                static_cast<size_t>(call.T) * sizeof(float));
  });
}

}  // namespace

void cls_attention_kernel(const ClsAttentionCall& call, const HeadSpace& w, const Pool& pool) {
  switch (call.dtype) {
    case Dtype::kFloat32: attend<float>(call, w, pool); break;
    case Dtype::kFloat16: attend<Float16>(call, w, pool); break;
    case Dtype::kBFloat16: attend<BFloat16>(call, w, pool); break;
  }
}

}  // namespace HIRED_ISA
}  // namespace hired
