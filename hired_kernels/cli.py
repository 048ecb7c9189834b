# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m hired_kernels`, or `hired`.

    info     what was built, what this machine has, which backend serves it; what a model allows
    demo     one picture through the method, with a ledger and a drawing
    bench    the benchmarks of a source checkout

What a user can get wrong ends in one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_TOWERS = ("auto", "large", "small", "tiny")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Raises SystemExit as argparse does."""
    options, rest = _parser().parse_known_args(argv)
    if rest and options.command != "bench":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "info":
            return _info(options.model)
        if options.command == "demo":
            return _demo(options)
        return _bench(rest)
    except KeyboardInterrupt:
        return 130


def _parser() -> _Parser:
    parser = _Parser(prog="hired", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,demo,bench}")
    info = commands.add_parser("info", help="what was built, which backend serves this machine")
    info.add_argument(
        "--model",
        metavar="PATH",
        help="folder or hub name of a transformers model: what HiRED can do for it",
    )
    demo = commands.add_parser("demo", help="one picture through the method, counted and drawn")
    demo.add_argument("image", nargs="?", metavar="IMAGE", help="a photograph of your own")
    demo.add_argument(
        "--budget",
        type=_budget,
        default=0.2,
        help="tokens to keep: a share such as 0.2, or a count such as 500 (default: %(default)s)",
    )
    demo.add_argument(
        "--alpha",
        type=_share,
        default=0.5,
        help="share of the budget for the full image (default: %(default)s)",
    )
    demo.add_argument("--policy", choices=("exact", "published"), default="exact")
    demo.add_argument(
        "--model",
        metavar="PATH",
        help="folder or hub name of a LLaVA-NeXT or LLaVA model (default: a small one that comes "
        "along and knows one kind of picture; random weights for any other)",
    )
    demo.add_argument(
        "--tower",
        choices=_TOWERS,
        help="random weights in a tower of this size (auto: large, small on a slow machine); a "
        "photograph comes along",
    )
    demo.add_argument("--out", metavar="FILE", default="out/demo.png", help="where the PNG goes")
    bench = commands.add_parser("bench", help="the benchmarks of a source checkout", add_help=False)
    bench.description = "Its options are those of benchmarks/bench_select.py."
    return parser


def _info(model: str | None) -> int:
    from . import info

    try:
        print("\n".join(info.lines(model)))
    except ModuleNotFoundError as error:
        return _lacks("info", error)
    except ValueError as error:
        return _fail("info", str(error))
    return 0


def _demo(options: argparse.Namespace) -> int:
    try:
        from . import demo
    except ModuleNotFoundError as error:
        return _lacks("demo", error)
    try:
        demo.run(
            options.image,
            budget=options.budget,
            alpha=options.alpha,
            policy=options.policy,
            model=options.model,
            tower=options.tower,
            out=options.out,
        )
    except demo.DemoError as error:
        return _fail("demo", str(error))
    return 0


def _bench(arguments: Sequence[str]) -> int:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_select.py"
    if not script.is_file():
        return _fail("bench", f"expected a source checkout with benchmarks, got no {script}")
    return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode


def _lacks(command: str, error: ModuleNotFoundError) -> int:
    package = (error.name or "hired_kernels").partition(".")[0]
    if package == "hired_kernels":
        raise error
    return _fail(command, f"needs {package}: pip install 'hired-kernels[transformers]'")


def _fail(command: str, reason: str) -> int:
    print(f"hired {command}: {reason}", file=sys.stderr)
    return 2


def _budget(text: str) -> float | int:
    """A whole number is a count of tokens, as in Python: 1 is one token, 1.0 is all of them."""
    count, share = _number(int, text), _number(float, text)
    if count is not None and count >= 0:
        return count
    if count is None and share is not None and 0 < share <= 1:
        return share
    raise argparse.ArgumentTypeError(f"expected a share in (0, 1] or a count, got {text!r}")


def _share(text: str) -> float:
    share = _number(float, text)
    if share is not None and 0 <= share <= 1:
        return share
    raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text!r}")


def _number(kind: type, text: str) -> int | float | None:
    try:
        return kind(text)
    except ValueError:
        return None
