# SPDX-License-Identifier: Apache-2.0
"""What the project measures of itself; `python benchmarks --help` lists it."""
