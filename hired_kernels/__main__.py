# SPDX-License-Identifier: Apache-2.0
"""`python -m hired_kernels`: see `hired_kernels.cli`."""

import sys

from .cli import main

sys.exit(main())
