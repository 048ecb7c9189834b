# SPDX-License-Identifier: Apache-2.0
"""What a command line owes its user: any text can be printed, and what goes wrong is one line.

A reader that has seen enough (`| head -1`) ends nothing: what is left to say goes nowhere. A full
disk behind standard output is one line on stderr and exit code 2, Ctrl-C one line and 130.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        complain(self.prog, message)
        self.exit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, rest = super().parse_known_args(args, namespace)
        for name, value in vars(options).items():
            if value == []:  # what Python 3.11 makes of `--out=--`
                self.error(f"argument --{name}: expected one argument")
        return options, rest


class OutputError(Exception):
    """Standard output takes no more: no OSError, since argparse would swallow that."""


def run(name: str, work: Callable[[], int | None]) -> int | None:
    """The exit code of `work`, which prints to standard output. SystemExit passes through."""
    output = sys.stdout and _Output(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            try:
                return work()
            finally:
                if output:
                    output.flush()
    except OutputError as error:
        complain(name, f"standard output: {error}")
        return 2
    except KeyboardInterrupt:
        complain(name, "interrupted")
        return 130


def complain(name: str, reason: str) -> None:
    """One line on stderr."""
    if sys.stderr is None:
        return
    try:
        print(f"{name}: {one_line(reason)}", file=sys.stderr, flush=True)
    except OSError:
        _let_go(sys.stderr)


def one_line(text: str) -> str:
    """The text with escapes for what a terminal would obey, or cannot print, in file names say."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class _Output:
    """A stream that escapes what its encoding lacks, and outlives its reader."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        known = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._stream.write(known))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            _let_go(self._stream)
            if not isinstance(error, BrokenPipeError):
                raise OutputError(error.strerror or str(error)) from None


def _let_go(stream: TextIO) -> None:
    """What is written from now on, and what is still buffered, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
