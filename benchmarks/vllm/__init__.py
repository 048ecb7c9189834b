# SPDX-License-Identifier: Apache-2.0
"""vLLM, stock and with the plugin."""
