// SPDX-License-Identifier: Apache-2.0
//
// The tensors that every implementation of an operator returns.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "cls_attention.h"
#include "operators.h"
#include "select.h"

namespace hired {

// Uninitialised (tokens, indices, counts) on the features' device; `call` then points to them.
inline Selected make_outputs(const Tensor& features, Call* call) {
  using torch::headeronly::ScalarType;
  const int64_t K = call->plan->output_rows;
  Selected out{
      torch::stable::new_empty(features, {K, call->plan->rules.block() * features.size(2)}),
      torch::stable::new_empty(features, {K}, ScalarType::Long),
      torch::stable::new_empty(features, {call->P}, ScalarType::Long)};
  auto& [tokens, indices, counts] = out;
  call->output = {tokens.mutable_data_ptr(), static_cast<int64_t*>(indices.mutable_data_ptr()),
                  static_cast<int64_t*>(counts.mutable_data_ptr())};
  return out;
}

// Uninitialised attention (P, H, T) on the query's device; `call` then points to it.
inline Tensor make_attention(const Tensor& query, ClsAttentionCall* call) {
  using torch::headeronly::ScalarType;
  const Tensor attention =
      torch::stable::new_empty(query, {call->P, call->heads.H, call->T}, ScalarType::Float);
  call->attention = static_cast<float*>(attention.mutable_data_ptr());
  return attention;
}

inline Tensor make_workspace(const Tensor& like, size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(bytes)},
                                  torch::headeronly::ScalarType::Byte);
}

}  // namespace hired
