# SPDX-License-Identifier: Apache-2.0
"""The command line, `python -m hired_kernels` or `hired`, and what it draws, compares and prints.

The product does not import it. Without its commands, nothing here is needed.
"""

from .commands import main

__all__ = ["main"]
