# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path


def parser(doc: str) -> argparse.ArgumentParser:
    """With the first paragraph of a module's documentation for description."""
    return argparse.ArgumentParser(description=doc.partition("\n\n")[0])


def add_out(options: argparse.ArgumentParser, name: str) -> None:
    """--out, and what the file is called without it: see `report.default_path`."""
    text = f"default: $OUT or benchmarks/results, {name}"
    options.add_argument("--out", type=Path, help=text)


def progress(line: str) -> None:
    """To stderr, which may be full, or closed."""
    with contextlib.suppress(OSError, AttributeError):
        print(line, file=sys.stderr, flush=True)


def require(condition: object, otherwise: str) -> None:
    """Ends the run without a figure unless the condition holds."""
    if not condition:
        raise SystemExit(otherwise)
