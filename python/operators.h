// SPDX-License-Identifier: Apache-2.0
//
// The operators' implementations, one a device, with the schemas' arguments as the stable ABI hands
// them over.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace hired {

using torch::stable::Tensor;
using Selected = std::tuple<Tensor, Tensor, Tensor>;  // tokens, indices, counts

// In builds with CUDA (HIRED_CUDA) alone.
Selected select_cuda(Tensor features, Tensor attn_init, Tensor attn_final,
                     std::vector<int64_t> grids, std::vector<int64_t> budgets, double alpha,
                     std::optional<std::vector<int64_t>> crops, std::string policy,
                     std::string order, int64_t merge);

Selected select_qk_cuda(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final,
                        Tensor key_final, std::vector<int64_t> grids, std::vector<int64_t> budgets,
                        double alpha, std::optional<double> scale,
                        std::optional<std::vector<int64_t>> crops, std::string policy,
                        std::string order, int64_t merge);

Selected select_cpu(Tensor features, Tensor attn_init, Tensor attn_final,
                    std::vector<int64_t> grids, std::vector<int64_t> budgets, double alpha,
                    std::optional<std::vector<int64_t>> crops, std::string policy,
                    std::string order, int64_t merge);

Selected select_qk_cpu(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final,
                       Tensor key_final, std::vector<int64_t> grids, std::vector<int64_t> budgets,
                       double alpha, std::optional<double> scale,
                       std::optional<std::vector<int64_t>> crops, std::string policy,
                       std::string order, int64_t merge);

// In builds with CUDA alone.
Tensor cls_attention_cuda(Tensor query, Tensor key, int64_t tokens, std::optional<double> scale);

Tensor cls_attention_cpu(Tensor query, Tensor key, int64_t tokens, std::optional<double> scale);

}  // namespace hired
