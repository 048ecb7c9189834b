# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT as a whole."""
