# SPDX-License-Identifier: Apache-2.0
"""What more than one benchmark uses."""
