# SPDX-License-Identifier: Apache-2.0
"""The architectures that the plugin adds, one family a file: `Hired` before vLLM's own class.

A module here imports vLLM's code of its family when vLLM asks for the architecture, not before.
"""
