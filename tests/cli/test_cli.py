# SPDX-License-Identifier: Apache-2.0
"""The command line, as a user meets it: `info`, `demo` and `bench`.

The demo runs on the picture and the model that come along, and on the photograph with the smallest
random tower; what it draws is held to what it counts. Whatever a user can get wrong ends in one
line on stderr and exit code 2.
"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from saved_models import save

from hired_kernels import backends, cli
from hired_kernels.cli import (
    card,
    commands,
    demo,
    files,
    info,
    loading,
    picture,
    question,
    subjects,
)
from hired_kernels.geometry import layout

ROOT = Path(__file__).parents[2]


def python(*arguments):
    """Python in a process of its own."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def ledger_counts(text):
    """The numbers of each line of the ledger: patches, padding, budget, kept, selected, lost."""
    rows = re.findall(r"^(?:full image|sub-image \d, \d|the picture) +(.*)$", text, re.MULTILINE)
    return [[int(re.sub("[,%]", "", word)) for word in row.split()] for row in rows]


def test_info_names_every_backend(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("hired_kernels")
    for row in backends.table():
        assert re.search(rf"^  {row.name} ", said, re.MULTILINE)
        assert row.available or f"not available because: {row.why}" in said
    assert re.search(rf"^  {backends.active('cpu')} +serves cpu", said, re.MULTILINE)
    assert str(torch.get_num_threads()) in said


def test_info_says_what_is_not_there(monkeypatch, capsys):
    def absent():
        raise ImportError("no module of that name")

    rows = backends.table()
    gone = dataclasses.replace(rows[0], name="other", available=False, why="it was never written")
    monkeypatch.setattr(info, "_native_module", absent)
    monkeypatch.setattr(backends, "table", lambda: [*rows, gone])
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert "not loaded: no module of that name" in said
    assert re.search(r"^  other +not available because: it was never written$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llava-next", {}, "early exit +inside layer 2 of 4, counted from 0"),
        (
            "llava",
            {"vision_feature_select_strategy": "full"},
            'early exit +not possible because vision_feature_select_strategy is "full"',
        ),
        (
            "llava-next",
            {"vision_feature_select_strategy": "full"},
            "HiRED +not available because: hired: vision_feature_select_strategy",
        ),
    ],
)
def test_info_says_what_a_model_allows(kind, changes, expected, tmp_path, capsys):
    save(kind, tmp_path, **changes)
    capsys.readouterr()
    assert cli.main(["info", "--model", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^  model +{kind.replace('-', '_')} with clip_vision_model$", said, re.M)
    assert re.search(rf"^  {expected}", said, re.M)


def test_info_about_no_model(tmp_path, capsys):
    assert cli.main(["info", "--model", str(tmp_path / "none")]) == 2
    assert "neither a folder nor a hub name" in only_line(capsys)


def test_info_about_a_model_of_which_nothing_can_be_said(tmp_path, monkeypatch, capsys):
    save("llava-next", tmp_path)
    monkeypatch.setattr("hired_kernels.models.support.describe", lambda config: {}["tower"])
    capsys.readouterr()
    assert cli.main(["info", "--model", str(tmp_path)]) == 2
    assert only_line(capsys).endswith(f"model {str(tmp_path)!r}: KeyError('tower')\n")


@pytest.mark.parametrize("policy", ["exact", "published"])
def test_demo_draws_what_it_counts(policy, tmp_path):
    lines = []
    out = tmp_path / "new folder" / "demo.png"
    outcome = demo.run(tower="tiny", policy=policy, out=str(out), say=lines.append)
    with Image.open(files.PHOTOGRAPH) as photograph:
        assert outcome.layout == layout(photograph.height, photograph.width)
    counts = outcome.kept.sum(dim=1).tolist()
    *partitions, total = ledger_counts("\n".join(lines))
    assert [row[3] for row in partitions] == counts
    assert total[3] == sum(counts)
    if policy == "exact":
        assert total[3] == outcome.layout.budget(0.2)
        assert all(row[2] == row[3] for row in partitions)
    else:
        # As published twice: by the operators, and as its code does it.
        assert [row[2] for row in partitions] == [row[4] for row in partitions]
        assert all(abs(row[3] - (row[4] - row[5])) <= 1 for row in partitions)  # up to ties

    vision = loading.random_model("tiny")
    seen = vision.colours(vision.pixels(demo.open_picture(None))).numpy()
    drawn = np.asarray(Image.open(outcome.path))
    composed = card.compose(content(outcome.kept.numpy(), seen, outcome.layout))
    bright = np.zeros_like(drawn)
    picture.paint(bright, seen, outcome.layout, composed.panels)
    lines = np.zeros(drawn.shape[:2], dtype=bool)
    for left, top, right, bottom in picture.lines(outcome.layout, composed.panels):
        lines[top:bottom, left:right] = True
    for p, t in np.ndindex(*outcome.kept.shape):
        left, top, right, bottom = composed.panels.patches[p, t]
        patch = slice(top, bottom), slice(left, right)
        shown = ~lines[patch]
        if shown.any():
            same = np.array_equal(drawn[patch][shown], bright[patch][shown])
            assert same == bool(outcome.kept[p, t])


def content(kept, partitions, cut):
    """What `demo` draws of random weights, as far as it matters where panels lie."""
    return card.Content(
        headline="one line",
        remark="one line",
        photograph=demo.open_picture(None),
        partitions=partitions,
        kept=kept,
        layout=cut,
    )


def test_demo_with_the_model_that_comes_along(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "demo.png")]) == 0
    said = capsys.readouterr().out
    assert "andom weights" not in said
    (text, right), *_ = question.asked()
    assert f"question    {text.replace(' ?', '?').capitalize()} (it is {right})" in said
    assert re.search(rf"all tokens: {right}; 320 visual tokens, [\d.]+ ms to the first", said)
    assert re.search(rf"kept tokens: {right}; 64 visual tokens, [\d.]+ ms to the first", said)
    assert "80 % fewer tokens, " in said
    assert f"{tmp_path / 'demo.html'}, with a slider" in said
    *_, total = ledger_counts(said)
    assert total[3] == 64
    assert Image.open(tmp_path / "demo.png").width == card.WIDTH


def test_demo_keeps_what_the_picture_shows(tmp_path):
    """Of the patches with shapes and digits a selection of a fifth keeps nearly all."""
    threads = torch.get_num_threads()
    outcome = demo.run(out=str(tmp_path / "demo.png"), say=lambda line: None)
    assert torch.get_num_threads() == threads
    shown = np.asarray(Image.open(question.PICTURE)).astype(int)
    colourful = (shown.max(axis=2) - shown.min(axis=2) > 90).reshape(2, 8, 14, 2, 8, 14)
    patches = colourful.transpose(0, 3, 1, 4, 2, 5).reshape(4, 64, -1).mean(axis=2) > 0.1
    kept = outcome.kept[1:].numpy()
    assert patches.sum() >= 2
    assert kept[patches].mean() >= 0.75 > 2 * kept.mean()


def test_demo_takes_a_photograph_without_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "seconds_for", lambda size, partitions: 31.0)
    monkeypatch.setitem(loading.TOWERS, "small", loading.TOWERS["tiny"])
    Image.radial_gradient("L").resize((700, 300)).save(tmp_path / "grey.jpg")
    arguments = [str(tmp_path / "grey.jpg"), "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments]) == 0
    said = capsys.readouterr().out
    assert "Random weights choose at random" in said
    assert "question" not in said


def test_demo_on_a_terminal_that_cannot_print_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    name = tmp_path / "café.png"
    Image.radial_gradient("L").save(name)
    done = python(
        *("-m", "hired_kernels", "demo", str(name), "--tower", "tiny", "--out", str(name) + ".txt")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Random weights choose at random" in done.stdout
    assert f"picture     {tmp_path}/caf\\xe9.png, 256 x 256 pixels\n" in done.stdout
    assert f"drawn       {tmp_path}/caf\\xe9.png.txt, " in done.stdout
    assert Image.open(f"{name}.txt").format == "PNG"


def test_demo_with_a_saved_model(tmp_path, capsys):
    save("llava-next", tmp_path / "model")
    Image.radial_gradient("L").resize((700, 300)).save(tmp_path / "grey.jpg")
    arguments = [str(tmp_path / "grey.jpg"), "--model", str(tmp_path / "model"), "--budget", "300"]
    arguments += ["--alpha", "0.25", "--new-tokens", "0", "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments]) == 0
    said = capsys.readouterr().out
    assert "andom weights" not in said
    full, *_, total = ledger_counts(said)
    assert full[3] == 75
    assert total[3] == 300
    assert "question" not in said
    assert Image.open(tmp_path / "demo.png").width == card.WIDTH


def test_demo_where_the_published_code_crashes(tmp_path, capsys):
    out = ["--tower", "tiny", "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *out, "--alpha", "1", "--budget", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "divides by zero" in said
    assert re.search(r"^the picture .* 1,152 +- +-$", said, re.MULTILINE)
    assert cli.main(["demo", *out, "--alpha", "1", "--budget", "0.5", "--policy", "published"]) == 2
    assert "alpha" in only_line(capsys)


def test_demo_without_sub_images(tmp_path, capsys):
    save("llava", tmp_path / "model")
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments, "--budget", "0.5", "--new-tokens", "0"]) == 0
    assert ledger_counts(capsys.readouterr().out) == [[576, 0, 288, 288, 288, 0]]


def only_line(capsys):
    """The one line on stderr."""
    said = capsys.readouterr().err
    assert re.fullmatch(r"hired( \w+)?: [^\n]+\n", said), said
    return said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.jpg"], "missing.jpg: no such file"),
        (["text.jpg"], "cannot identify image file"),
        (["empty.png"], "cannot identify image file"),
        (["cut.jpg"], "truncated"),
        (["folder.jpg"], "got a folder"),
        (["--model", "no/such/model"], "neither a folder nor a hub name"),
        (["--model", "text.jpg"], "neither a folder nor a hub name"),
        (["--model", "folder.jpg"], "model_type"),
        (["--model", "nobody/has-this-model"], "no such folder, and from the hub"),
        (["--out", "folder.jpg"], "out folder.jpg: Is a directory"),
        (["--out", "text.jpg/demo.png"], "expected a folder, got a file: text.jpg"),
        (["--out", "pipe"], "out pipe: expected a file, got a pipe"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "/dev/full", "--tower", "tiny"], "out /dev/full: No space left on device"),
        (["x" * 300], "File name too long"),
        (["new\nline\x1b.png"], r"picture new\nline\x1b.png: no such file"),
        (["bomb.pgm"], "Image size (400000000 pixels) exceeds limit"),
        (["--budget", f"{1 << 63}", "--tower", "tiny"], f"below 2^63, got {1 << 63}"),
        (
            ["--new-tokens", "0", "--model", "pinpoints"],
            "model pinpoints: 'int' object is not iterable",
        ),
    ],
    ids=lambda value: ascii("-".join(value))[1:40] if isinstance(value, list) else "",
)
def test_demo_errors_are_one_line(arguments, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(files.PHOTOGRAPH.read_bytes()[:50000])
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "bomb.pgm").write_bytes(b"P5 20000 20000 255 ")
    os.mkfifo(tmp_path / "pipe")
    if arguments[-1] == "pinpoints":
        save("llava-next", tmp_path / "pinpoints", image_grid_pinpoints=[336])
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["demo", *arguments]) == 2
    assert expected in only_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["info", "more"],
        ["demo", "--budget", "1.5"],
        ["demo", "--budget", "0.0"],
        ["demo", "--budget", "-3"],
        ["demo", "--budget", "nan"],
        ["demo", "--alpha", "2"],
        ["demo", "--alpha", "nan"],
        ["demo", "--policy", "other"],
        ["demo", "--tower", "huge"],
        ["demo", "--unknown"],
        ["demo", ""],
        ["demo", "--out", ""],
        ["demo", "--alpha=--"],
        ["demo", "--model", ""],
        ["demo", "--budget", ""],
        ["demo", "new\nline", "other\nline"],
        ["info", "--model", ""],
        ["info", "--model"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_bad_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    only_line(capsys)


@pytest.mark.parametrize("budget", [0.2, 1.0, 0, 1, 500])
def test_whole_numbers_are_counts(budget):
    parsed = commands._budget(str(budget))
    assert (parsed, type(parsed)) == (budget, type(budget))


def test_the_slow_machine_gets_the_small_tower(monkeypatch):
    lines = []
    monkeypatch.setattr(loading, "seconds_for", lambda size, partitions: 31.0)
    monkeypatch.setattr(loading, "random_model", lambda size: SimpleNamespace(name=size))
    model = subjects.random_tower("auto", demo.open_picture(None), lines.append)
    assert model.name == "small"
    assert "the large one would take 31 s" in lines[0]


def test_towers_are_the_same_everywhere():
    assert commands._TOWERS == subjects.TOWERS


def test_demo_without_transformers_says_what_to_install():
    code = """
import sys, hired_kernels
from hired_kernels.cli import main
assert "transformers" not in sys.modules
sys.modules["transformers"] = None
sys.exit(main(["demo"]))
"""
    done = python("-c", code)
    expected = "hired demo: needs transformers: pip install 'hired-kernels[transformers]'\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_bench_needs_a_source_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        commands, "__file__", str(tmp_path / "hired_kernels" / "cli" / "commands.py")
    )
    assert cli.main(["bench"]) == 2
    assert "expected a source checkout" in only_line(capsys)


def test_bench_says_what_is_wrong_in_one_line(capfd):
    assert cli.main(["bench", "--threads", "0"]) == 2
    assert "--threads: expected an integer from 1 to 2^31 - 1, got '0'" in only_line(capfd)


def test_bench_puts_no_file_in_the_place_of_a_pipe(tmp_path, capfd):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert cli.main(["bench", "--quick", "--out", str(pipe)]) == 2
    assert "--out: expected the name of a file that can be written" in only_line(capfd)
    assert pipe.is_fifo()


def test_bench_hands_over_its_options(tmp_path, monkeypatch, capfd):
    (tmp_path / "benchmarks" / "operators").mkdir(parents=True)
    script = "import sys; print(sys.argv[1:]); sys.exit(3)"
    (tmp_path / "benchmarks" / "__main__.py").write_text(script)
    monkeypatch.setattr(
        commands, "__file__", str(tmp_path / "hired_kernels" / "cli" / "commands.py")
    )
    assert cli.main(["bench", "--json", "out.json", "--help"]) == 3
    assert capfd.readouterr().out == "['operators', '--json', 'out.json', '--help']\n"
