# SPDX-License-Identifier: Apache-2.0
"""The operators on a CPU."""
