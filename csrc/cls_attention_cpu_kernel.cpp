// SPDX-License-Identifier: Apache-2.0
//
// hired::cls_attention on a CPU. Sweeps over independent items on the caller's threads: a row's
// query, a run of its keys, a head's softmax; or, where a row has more queries, a job of a head's,
// then a head's mean. They are those of hired::select_qk (cpu_heads.h, cpu_means.h), so that the
// sum over heads has the bits that it has there.
//
// Bytes: every key once, every element of the output once; beside them N logits a head, which stay
// in the cache.
#include "cls_attention_cpu_kernel.h"

#include <cstring>

#include "cpu_heads.h"
#include "cpu_means.h"

namespace hired {
inline namespace HIRED_ISA {
namespace {

template <class Scalar>
void attend(const ClsAttentionCall& call, const HeadSpace& w, const Pool& pool) {
  const Heads& heads = call.heads;
  const auto row_of = [&](int64_t p) { return HeadRow{true, &call.layer, p}; };
  const int64_t Q = call.layer.Q;
  if (Q == 1) {
    fill_logits<Scalar>(heads, call.P, row_of, w.single, pool);
  } else {
    fill_sums<Scalar>(heads, call.T, call.P, row_of, w.mean, pool);
  }
  const int64_t row_bytes = heads.N * static_cast<int64_t>(sizeof(float));
  sweep(pool, call.P * heads.H, row_bytes, [&](int64_t item) {
    const int64_t p = item / heads.H, h = item % heads.H;
    // In whole vectors where logits or sums were, for rows of the output have no room behind them.
    float* attention = nullptr;
    if (Q == 1) {
      attention = w.single.logits + item * w.single.logit_stride;
      add_head(heads, w.single, p, h, static_cast<int32_t>(call.T), /*first=*/true, attention);
    } else {
      attention = w.mean.sums + item * w.mean.jobs * w.mean.sum_stride;
      add_mean(heads, w.mean, p, h, call.T, Q, /*first=*/true, attention);
    }
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
