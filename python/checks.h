// SPDX-License-Identifier: Apache-2.0
//
// From the operators' arguments to a checked call of csrc: tensors are looked at here, integers in
// csrc/plan.cpp. Messages are those of hired_kernels/arguments.py, to the letter.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cls_attention.h"
#include "select.h"

namespace hired {

using torch::stable::Tensor;

// Fill `call` but for its output, and `plan`, to which the call then points; throw
// std::runtime_error("hired::<op>: <argument>: expected ..., got ...") on a bad argument.
void check_select(const Tensor& features, const Tensor& attn_init, const Tensor& attn_final,
                  const Integers& integers, const Limits& limits, Plan* plan, SelectCall* call);
void check_select_qk(const Tensor& features, const Tensor& query_init, const Tensor& key_init,
                     const Tensor& query_final, const Tensor& key_final, const Integers& integers,
                     std::optional<double> scale, const Limits& limits, Plan* plan,
                     SelectQkCall* call);
void check_cls_attention(const Tensor& query, const Tensor& key, int64_t tokens,
                         std::optional<double> scale, const Limits& limits, ClsAttentionCall* call);

}  // namespace hired
