# SPDX-License-Identifier: Apache-2.0
"""Do the right tokens stay? A small model, trained for it, answers questions."""
