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
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import terminal

_TOWERS = ("auto", "large", "small", "tiny")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Raises SystemExit as argparse does."""
    return terminal.run("hired", lambda: _run(argv)) or 0


def _run(argv: Sequence[str] | None) -> int:
    options, rest = _parser().parse_known_args(argv)
    if rest and options.command != "bench":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "bench":
        return _bench(rest)
    with warnings.catch_warnings():
        # Of what libraries warn (odd EXIF data, 90 million pixels) nothing keeps us from going on.
        warnings.simplefilter("ignore")
        return _info(options.model) if options.command == "info" else _demo(options)


def _parser() -> terminal.Parser:
    parser = terminal.Parser(prog="hired", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,demo,bench}")
    info = commands.add_parser("info", help="what was built, which backend serves this machine")
    info.add_argument(
        "--model",
        type=_name,
        metavar="PATH",
        help="folder or hub name of a transformers model: what HiRED can do for it",
    )
    demo = commands.add_parser("demo", help="one picture through the method, counted and drawn")
    demo.add_argument(
        "image", nargs="?", type=_name, metavar="IMAGE", help="a photograph of your own"
    )
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
        type=_name,
        metavar="PATH",
        help="folder or hub name of a LLaVA model (default: a small one that comes along and knows "
        "one kind of picture)",
    )
    demo.add_argument(
        "--question", type=_name, metavar="TEXT", help="what to ask the model about the picture"
    )
    demo.add_argument(
        "--new-tokens",
        type=_count,
        default=20,
        metavar="N",
        help="tokens of an answer of --model at most (default: %(default)s); with 0 it is asked "
        "nothing, and only the part of it that sees is loaded",
    )
    demo.add_argument(
        "--tower",
        choices=_TOWERS,
        help="instead of a model, random weights in a tower of this size, for times and counts "
        "(auto: large, small on a slow machine); it is what IMAGE gets without --model",
    )
    demo.add_argument(
        "--out", type=_name, metavar="FILE", default="out/demo.png", help="where the PNG goes"
    )
    demo.add_argument(
        "--html",
        type=_name,
        metavar="FILE",
        help="where the page with a slider for the budget goes (default: beside the PNG)",
    )
    bench = commands.add_parser("bench", help="the benchmarks of a source checkout", add_help=False)
    bench.description = "Its options are those of `python benchmarks operators`."
    return parser


def _info(model: str | None) -> int:
    from . import info

    try:
        for line in info.lines(model):
            _say(line)
    except ModuleNotFoundError as error:
        return _lacks("info", error)
    except ValueError as error:
        return _fail("info", str(error))
    return 0


def _demo(options: argparse.Namespace) -> int:
    try:
        from . import demo, files
    except ModuleNotFoundError as error:
        return _lacks("demo", error)
    try:
        demo.run(
            options.image,
            budget=options.budget,
            alpha=options.alpha,
            policy=options.policy,
            model=options.model,
            ask=options.question,
            longest=options.new_tokens,
            tower=options.tower,
            out=options.out,
            html=options.html,
            say=_say,
        )
    except files.DemoError as error:
        return _fail("demo", str(error))
    return 0


def _bench(arguments: Sequence[str]) -> int:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    if not (folder / "operators").is_dir():  # site-packages may have another of that name
        return _fail("bench", f"expected a source checkout with benchmarks, got no {folder}")
    command = [sys.executable, str(folder), "operators", *arguments]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 130  # the benchmark has said so


def _lacks(command: str, error: ModuleNotFoundError) -> int:
    package = (error.name or "hired_kernels").partition(".")[0]
    if package == "hired_kernels":
        raise error
    return _fail(command, f"needs {package}: pip install 'hired-kernels[transformers]'")


def _fail(command: str, reason: str) -> int:
    terminal.complain(f"hired {command}", reason)
    return 2


def _say(line: str) -> None:
    print(terminal.one_line(line))


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got ''")
    return text


def _budget(text: str) -> float | int:
    """A whole number is a count of tokens, as in Python: 1 is one token, 1.0 is all of them."""
    count, share = _number(int, text), _number(float, text)
    if count is not None and count >= 0:
        return count
    if count is None and share is not None and 0 < share <= 1:
        return share
    raise argparse.ArgumentTypeError(f"expected a share in (0, 1] or a count, got {text!r}")


def _count(text: str) -> int:
    count = _number(int, text)
    if count is not None and count >= 0:
        return int(count)
    raise argparse.ArgumentTypeError(f"expected a count, got {text!r}")


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
