// SPDX-License-Identifier: Apache-2.0
//
// The operators' schemas. hired_kernels/backends.py says the same for where this library is absent;
// a test compares them.
#pragma once

namespace hired {

inline constexpr char kSelectSchema[] =
    "select(Tensor features, Tensor attn_init, Tensor attn_final, SymInt[] grids, "
    "SymInt[] budgets, float alpha=0.5, *, SymInt[]? crops=None, str policy=\"exact\", "
    "str order=\"raster\", int merge=1) -> (Tensor tokens, Tensor indices, Tensor counts)";

inline constexpr char kSelectQkSchema[] =
    "select_qk(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final, "
    "Tensor key_final, SymInt[] grids, SymInt[] budgets, float alpha=0.5, *, "
    "float? scale=None, SymInt[]? crops=None, str policy=\"exact\", str order=\"raster\", "
    "int merge=1) -> (Tensor tokens, Tensor indices, Tensor counts)";

inline constexpr char kClsAttentionSchema[] =
    "cls_attention(Tensor query, Tensor key, SymInt tokens, *, float? scale=None) -> Tensor";

}  // namespace hired
