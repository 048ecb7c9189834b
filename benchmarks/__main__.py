# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of a source checkout: `python benchmarks NAME [options]`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# By name: the module, and what `--help` says of it.
COMMANDS = {
    "operators": (
        "operators.bench",
        "the operators on a CPU, beside PyTorch and what must move",
    ),
    "gpu": ("gpu.bench", "the operators on a GPU, beside PyTorch and other people's kernels"),
    "gpu.first_times": ("gpu.first_times", "the first figures of a GPU, within a minute"),
    "gpu.publish": ("gpu.publish", "README's table and docs/gpu.svg, of a results file"),
    "judges": ("judges.bench", "scores by many queries, beside PyTorch and a matrix product"),
    "model": ("model.bench", "LLaVA-NeXT: stock, with the published method, with HiRED"),
    "load": ("load.bench", "what selection costs with 1 to 32 requests at a time"),
    "vllm": ("vllm.bench", "vLLM, stock and with the plugin, with 1 to 32 requests at a time"),
    "vllm.tables": ("vllm.tables", "Markdown, of a results file"),
    "evidence": ("evidence.evaluate", "accuracy against budget, with the trained model"),
    "evidence.decide": ("evidence.decide", "what the rule for the default makes of new pictures"),
    "evidence.train": ("evidence.train", "trains one of its models anew"),
    "evidence.places": ("evidence.places", "where something is, by the positions of kept tokens"),
    "accuracy": ("accuracy.table", "lmms-eval's results as a table, beside the paper's figures"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: python benchmarks NAME [options]      NAME --help has the options",
            "",
            *(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()),
        ]
    )


def find_modules() -> str | None:
    """Have `benchmarks` found, here and in child processes; returns what is in the way of it.

    Python begins `sys.path` with the folder that it runs, whose `vllm` is not the one to import.
    The checkout comes last: an installed hired_kernels, or a bundle's on PYTHONPATH, comes first.
    """
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]
    sys.path.append(str(HERE.parent))
    spec = importlib.util.find_spec("benchmarks")
    found = Path(spec.origin).resolve().parent if spec and spec.origin else None
    return None if found == HERE else f"expected {HERE}, got {found}: it comes first on sys.path"


def main() -> int | None:
    name, *rest = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"benchmarks: expected one of {', '.join(COMMANDS)}, got {name!r}", file=sys.stderr)
        return 2
    if problem := find_modules():
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{COMMANDS[name][0]}")
    sys.argv = [f"benchmarks {name}", *rest]
    return module.main()


if __name__ == "__main__":
    sys.exit(main())
