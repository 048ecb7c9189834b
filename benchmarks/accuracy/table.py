# SPDX-License-Identifier: Apache-2.0
"""lmms-eval's files of results as a table, beside the figures of HiRED's paper.

    python benchmarks accuracy RESULTS_FOLDER            # prints it
    python benchmarks accuracy RESULTS_FOLDER --write    # and puts it into docs/accuracy.md

RESULTS_FOLDER is what lmms-eval got as --output_path, or a folder of several of these. What was not
measured stays empty. Runs with --limit or --offset are left out, and named.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hired_kernels

from ..shared import command, report

PAGE = report.ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- accuracy -->", "<!-- end of accuracy -->"


@dataclass(frozen=True)
class Task:
    """A column: lmms-eval's metric, and what it is multiplied by to be on the paper's scale."""

    title: str
    metric: str
    scale: float = 100.0
    digits: int = 1

    def show(self, results: dict[str, Any]) -> str:
        """Of what a file has for this task. `none` is the name of lmms-eval's usual filter."""
        return f"{results[f'{self.metric},none'] * self.scale:.{self.digits}f}"


# By lmms-eval's names (0.7.3), in the paper's order. The paper says "the default metrics".
TASKS = {
    "vqav2_val": Task("VQA-v2", "exact_match"),
    "scienceqa_img": Task("ScienceQA", "exact_match"),
    "textvqa_val": Task("TextVQA", "exact_match"),
    "docvqa_val": Task("DocVQA", "anls"),
    "ocrbench": Task("OCRBench", "ocrbench_accuracy", 1000, 0),
    "mme": Task("MME", "mme_perception_score", 1, 0),
    "pope": Task("POPE", "pope_accuracy"),
    "chartqa": Task("ChartQA", "relaxed_overall"),
}
# Table 3 of arXiv 2408.10945v3, LLaVA-Next-7B, in the order of TASKS.
PAPER = {
    1.0: ("80.3", "73.2", "64.8", "73.4", "501", "1519", "87.6", "54.8"),
    0.4: ("78.8", "73.8", "63.6", "68.7", "488", "1474", "88.2", "46.5"),
    0.2: ("77.5", "73.4", "61.4", "60.8", "475", "1483", "87.0", "42.0"),
}
PAPERS_MODEL = "llava-v1.6-vicuna-7b-hf"
# What is to be measured at each of the paper's budgets: options besides the budget, and whether
# with --force_simple, whose prompts are those of the paper.
PLAN: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"policy": "published"}, True),
    ({"policy": "published"}, False),
    ({}, False),
    ({"policy": "pooled"}, False),
    ({"alpha": 0.25}, False),
    ({"judge": "patches"}, False),
    ({"judge": 144}, False),
)
DEFAULTS = {
    name: each.default
    for name, each in list(inspect.signature(hired_kernels.apply_hired).parameters.items())[2:]
}


@dataclass(frozen=True)
class Row:
    """What was run: a model and HiRED's options, all of them; none for the stock model.

    simple: with --force_simple.
    """

    model: str
    simple: bool
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, model: str, options: dict[str, Any] | None, simple: bool) -> Row:
        if options is None:
            return cls(model, simple)
        return cls(model, simple, tuple({**DEFAULTS, **options}.items()))

    @property
    def budget(self) -> float | int:
        return dict(self.options).get("budget", 1.0)

    @property
    def named(self) -> str:
        """Its policy, and the options that are not the defaults."""
        options = dict(self.options)
        others = [
            f"`{name}={value}`"
            for name, value in options.items()
            if name not in ("budget", "policy") and value != DEFAULTS[name]
        ]
        policy = f"`{options['policy']}`" if options else "stock"
        return " ".join([policy, *others, *(["`--force_simple`"] if self.simple else [])])


@dataclass
class Found:
    """Cells by row and task, what the files say of themselves, and which were left out."""

    cells: dict[Row, dict[str, str]]
    taken: list[str]
    left_out: list[str]


def read(folder: Path) -> Found:
    """All files of results below a folder; of two for one cell the later one counts."""
    found = Found({}, [], [])
    files = [(json.loads(path.read_text()), path) for path in folder.rglob("*_results.json")]
    for contents, path in sorted(files, key=lambda each: each[0]["date"]):
        config = contents["config"]
        arguments = parse(config["model_args"])
        tasks = [name for name in TASKS if name in contents["results"]]
        if config.get("limit") not in (None, -1) or config.get("offset"):
            found.left_out.append(f"{path}: not all questions were asked")
        elif not tasks:
            found.left_out.append(f"{path}: none of {', '.join(TASKS)}")
        else:
            switched = config["model"].startswith("hired_")
            options = {name: arguments[name] for name in DEFAULTS if name in arguments}
            model = str(arguments["pretrained"]).rstrip("/").rpartition("/")[2]
            simple = config["model_backend"].endswith("(simple)")
            row = Row.of(model, options if switched else None, simple)
            cells = found.cells.setdefault(row, {})
            for name in tasks:
                cells[name] = TASKS[name].show(contents["results"][name])
            found.taken.append(f"lmms-eval {contents['lmms_eval_version']}, {contents['date'][:8]}")
    return found


def parse(arguments: str) -> dict[str, Any]:
    """`a=1,b=0.2` as lmms-eval reads it; no value of ours has a comma."""
    pairs = (pair.split("=", 1) for pair in arguments.split(",") if pair.strip())
    return {name.strip(): _value(value.strip()) for name, value in pairs}


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def table(found: Found) -> str:
    """The paper's model with the paper's figures and the plan, then all other rows."""
    head = ("tokens", "", *(task.title for task in TASKS.values()))
    rows: list[Sequence[str]] = [head]
    shown: set[Row] = set()

    def add(row: Row) -> None:
        shown.add(row)
        cells = found.cells.get(row, {})
        rows.append((_share(row.budget), row.named, *(cells.get(name, "") for name in TASKS)))

    for budget, figures in PAPER.items():
        theirs = "*paper, all tokens*" if budget == 1 else "*paper, HiRED*"
        rows.append((_share(budget), theirs, *(f"*{figure}*" for figure in figures)))
        if budget == 1:
            add(Row.of(PAPERS_MODEL, None, True))
            add(Row.of(PAPERS_MODEL, None, False))
        for options, simple in PLAN if budget < 1 else ():
            add(Row.of(PAPERS_MODEL, {"budget": budget, **options}, simple))
    tables = [f"**{PAPERS_MODEL}**", _markdown(_with(rows, found, shown, PAPERS_MODEL))]
    for model in sorted({row.model for row in found.cells} - {PAPERS_MODEL}):
        tables += [f"**{model}**", _markdown(_with([head], found, shown, model))]
    return "\n\n".join([*tables, _sources(found.taken)])


def _with(
    rows: list[Sequence[str]], found: Found, shown: Iterable[Row], model: str
) -> list[Sequence[str]]:
    """`rows`, and those of a model that are not among them yet, largest shares first."""
    others = [row for row in found.cells if row.model == model and row not in shown]
    others.sort(key=lambda row: (isinstance(row.budget, int), -row.budget, row.named))
    return rows + [
        (_share(row.budget), row.named, *(found.cells[row].get(name, "") for name in TASKS))
        for row in others
    ]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return report.markdown(rows, left=(0, 1))


def _share(budget: float | int) -> str:
    return f"{budget} tokens" if isinstance(budget, int) else f"{budget * 100:g} %"


def _sources(taken: list[str]) -> str:
    if not taken:
        return "Nothing of this has been measured here yet: only the paper's figures are filled in."
    return f"Files of results: {len(taken)} ({'; '.join(dict.fromkeys(taken))})."


def main() -> None:
    """Print the table, and write it where that is asked for."""
    parser = command.parser(__doc__ or "")
    parser.add_argument("results", type=Path, help="the folder that lmms-eval wrote to")
    parser.add_argument("--write", action="store_true", help=f"and write {PAGE.name}")
    options = parser.parse_args()
    command.require(options.results.is_dir(), f"expected a folder, got {options.results}")
    found = read(options.results)
    for line in found.left_out:
        command.progress(f"left out: {line}")
    text = table(found)
    print(text)
    if options.write:
        write(PAGE, text)


def write(page: Path, text: str) -> None:
    """Puts the table between the page's two marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    command.require(begin and end, f"expected {BEGIN} and {END} in {page}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
