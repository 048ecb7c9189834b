# SPDX-License-Identifier: Apache-2.0
"""The build backend: setuptools', and one line where that is not there to be asked.

A virtual environment of Python 3.12 or later has no setuptools, and under --no-build-isolation
nobody installs it. setup.py looks for the rest.
"""

import sys

try:
    from setuptools.build_meta import *  # noqa: F403
except ImportError:
    sys.exit(
        "hired_kernels: no build: setuptools is missing: pip install "
        '"setuptools>=77" cmake ninja pybind11, then try again'
    )
