# SPDX-License-Identifier: Apache-2.0
"""`python benchmarks accuracy`: files that lmms-eval wrote, as a table."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import asked as asking
import lmms_eval.tasks
import pytest
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config

from benchmarks.accuracy import table

Change = Callable[[dict], None]


def put(folder: Path, run: asking.Run, date: str, *changes: Change) -> None:
    """A run's file, for a task and a model of the table, changed where `changes` say so."""
    contents = json.loads(run.file.read_text())
    results = contents["results"]
    contents["results"] = {"textvqa_val": results.pop("signs")}
    contents["date"] = date
    for change in changes:
        change(contents)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{date}_results.json").write_text(json.dumps(contents))


def named(model: str, options: str) -> Change:
    def change(contents: dict) -> None:
        contents["config"]["model_args"] = f"pretrained=llava-hf/{model},dtype=float16{options}"

    return change


def row(text: str, begin: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(begin)]
    return [cell.strip() for cell in line.split("|")[3:-1]]


def test_a_file_as_lmms_eval_wrote_it(run: Callable[[str], asking.Run], tmp_path: Path) -> None:
    for name in ("stock", "simple"):
        put(tmp_path, run(name), f"20261127_12000{len(name)}")
    found = table.read(tmp_path)
    assert found.left_out == []
    assert len(found.taken) == 2
    text = table.table(found)
    for name, begin in {
        "stock": "| 100 % | stock |  |",
        "simple": "| 16 tokens | `pooled` `positions=original` `--force_simple` |",
    }.items():
        right = run(name).results["results"]["signs"]["exact_match,none"]
        lines = [line for line in text.splitlines() if line.startswith(begin)]
        assert [line for line in lines if f"| {right * 100:.1f} |" in line]
    assert "**signs**" in text


def test_rows_of_the_plan_are_filled(run: Callable[[str], asking.Run], tmp_path: Path) -> None:
    """And of two files for a cell the later one counts, wherever it lies."""
    hired = run("simple")

    def score(value: float) -> Change:
        return lambda contents: contents["results"]["textvqa_val"].update(
            {"exact_match,none": value}
        )

    def chat(contents: dict) -> None:
        contents["config"]["model_backend"] = "hired_kernels.lmms_eval.models.X (chat)"

    model = table.PAPERS_MODEL
    put(tmp_path / "b", hired, "20261127_1", named(model, ",budget=0.2"), chat, score(0.1))
    put(tmp_path / "a", hired, "20261127_2", named(model, ",budget=0.20"), chat, score(0.614))
    put(tmp_path / "c", hired, "20261127_3", named(model, ",policy=published"), score(0.5))
    text = table.table(table.read(tmp_path))
    empty = [""] * len(table.TASKS)
    at = list(table.TASKS).index("textvqa_val")
    expected = [*empty[:at], "61.4", *empty[at + 1 :]]
    assert row(text, "| 20 % | `exact` | ") == expected
    assert row(text, "| 20 % | `published` `--force_simple` | ")[at] == "50.0"
    assert row(text, "| 20 % | `published` | ") == empty
    assert row(text, "| 40 % | `exact` | ") == empty
    assert row(text, "| 20 % | *paper, HiRED* | ")[at] == "*61.4*"


def test_runs_of_some_questions_are_left_out(
    run: Callable[[str], asking.Run], tmp_path: Path
) -> None:
    for date, name, value in (("1", "limit", 100.0), ("2", "offset", 4)):
        put(tmp_path, run("simple"), date, lambda c, n=name, v=value: c["config"].update({n: v}))
    found = table.read(tmp_path)
    assert found.cells == {}
    assert [line.rpartition(": ")[2] for line in found.left_out] == [
        "not all questions were asked"
    ] * 2
    shutil.copy(run("simple").file, tmp_path / "z_results.json")  # "signs" is none of the tasks
    assert len(table.read(tmp_path).left_out) == 3


def test_the_commands_of_the_page_fill_the_plan() -> None:
    page = table.PAGE.read_text()
    (loop,) = re.findall(r"for options in (.*); do", page)
    planned = [table.Row.of("", options, simple) for options, simple in table.PLAN]
    asked = [table.Row.of("", table.parse(options), False) for options in loop.split()]
    assert "--force_simple \\\n    --model_args" in page
    assert [*asked, table.Row.of("", {"policy": "published"}, True)] == planned[1:] + planned[:1]
    (budgets,) = re.findall(r"for budget in (.*); do", page)
    assert [float(each) for each in budgets.split()] == [each for each in table.PAPER if each < 1]
    for tasks in re.findall(r"--tasks (\S+)", page):
        assert set(tasks.split(",")) <= set(table.TASKS)


def test_lmms_eval_has_the_tasks_and_their_metrics() -> None:
    folder = Path(lmms_eval.tasks.__file__).parent
    folders = [str(folder / name.partition("_")[0]) for name in table.TASKS]  # all take seconds
    manager = TaskManager("WARNING", include_path=folders, include_defaults=False)
    for name, task in table.TASKS.items():
        (found,) = manager.match_tasks([name])
        config = load_yaml_config(manager.task_index[found]["yaml_path"], mode="simple")
        assert task.metric in [each["metric"] for each in config["metric_list"]]
        assert config["output_type"] == "generate_until"


def test_the_page_takes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --write alone, between its marks, and nothing else of the page changes."""
    original = table.PAGE.read_text()
    page, results = tmp_path / "accuracy.md", tmp_path / "results"
    page.write_text(original)
    results.mkdir()
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["benchmarks accuracy", str(results)])
    table.main()
    printed = capsys.readouterr().out.strip()
    assert page.read_text() == original
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--write"])
    table.main()
    before, after = original.partition(table.BEGIN)[0], original.partition(table.END)[2]
    assert page.read_text() == f"{before}{table.BEGIN}\n{printed}\n{table.END}{after}"
    theirs = [line for line in printed.splitlines() if "*paper" in line]
    assert len(theirs) == len(table.PAPER)
    assert set(theirs) <= set(original.splitlines())
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="expected <!-- accuracy -->"):
        table.main()
