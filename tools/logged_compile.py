#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a compiler, and keeps what ptxas said for tools/kernel_report.py.

python tools/logged_compile.py LOG COMMAND...

LOG gets the seconds it took and ptxas's account of each kernel; everything else is passed on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ACCOUNT = re.compile(r"ptxas info|^\s+\d+ bytes stack frame")


def main() -> int:
    log, command = Path(sys.argv[1]), sys.argv[2:]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    lines = (result.stdout + result.stderr).splitlines()
    account = [line for line in lines if ACCOUNT.search(line)]
    log.write_text("\n".join([f"seconds {seconds:.1f}", *account]) + "\n")
    for line in lines:
        if not ACCOUNT.search(line):
            print(line, file=sys.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
