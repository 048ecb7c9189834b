# SPDX-License-Identifier: Apache-2.0
"""The operators in Triton: one launch a call, the same integers as everywhere.

The phases are those of `csrc/phases/`, by the same names, a program being the group of threads:
score, choose, allocate, region, place; queries are many, pooled is a policy, gather copies tokens,
and rows are what scores come from. `select_kernel.py` strings them together, `select_triton.py`
launches it; `cls_attention` is the score phase's heads alone. Nothing imports this package, nor
Triton, before a call is served by it.
"""
