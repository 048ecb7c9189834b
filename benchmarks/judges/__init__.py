# SPDX-License-Identifier: Apache-2.0
"""Selection with many requests at a time."""
