# SPDX-License-Identifier: Apache-2.0
"""Public benchmarks, by what lmms-eval measured."""
