# SPDX-License-Identifier: Apache-2.0
"""What a command line owes its user: streams that are full, gone, or cannot print a name."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hired_kernels import cli
from hired_kernels.cli import commands, terminal

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")


def full() -> io.TextIOWrapper:
    return FULL.open("w")


def without_reader() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    for arguments in (["info"], ["demo", "--help"], ["demo", "--tower", "tiny"]):
        with full() as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            assert cli.main(arguments) == 2
        expected = "hired: standard output: No space left on device\n"
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize("length", [1, 1 << 20], ids=["at the end", "at once"])
def test_a_reader_that_has_gone_ends_nothing(length, monkeypatch, capsys):
    done = []

    def work() -> int:
        print("x" * length)
        print("more")
        done.append("everything")
        return 3

    with without_reader() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert terminal.run("name", work) == 3
    assert done == ["everything"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", r"caf\xe9 \udce9"), ("latin-1", r"café \udce9"), ("utf-8", r"café \udce9")],
)
def test_what_an_encoding_lacks_is_escaped(encoding, expected, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert terminal.run("name", lambda: print("café \udce9")) is None
    assert written.getvalue().decode(encoding) == f"{expected}\n"


def test_without_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["info"]) == 0
    assert cli.main(["demo", "missing.jpg"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("stream", [full, without_reader, lambda: None])
def test_without_standard_error(stream: Callable[[], io.TextIOWrapper | None], monkeypatch):
    broken = stream()
    monkeypatch.setattr(sys, "stderr", broken)
    assert cli.main(["demo", "missing.jpg"]) == 2
    with pytest.raises(SystemExit) as raised:
        cli.main(["demo", "--budget", "x"])
    assert raised.value.code == 2
    if broken:
        broken.close()


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(options: object) -> int:
        print("a line")
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("a line\n", "hired: interrupted\n")


def test_one_line():
    assert terminal.one_line("a b\n\x1b[31mé\udce9\u2028") == r"a b\n\x1b[31mé\udce9\u2028"


def test_the_interpreter_has_nothing_left_to_flush():
    def run(arguments: list[str], stdout: io.TextIOWrapper) -> tuple[int, str]:
        command = [sys.executable, "-m", "hired_kernels", *arguments]
        with stdout:
            done = subprocess.run(command, stdout=stdout, stderr=-1, text=True, cwd=ROOT)
        return done.returncode, done.stderr

    assert run(["info"], without_reader()) == (0, "")
    said = "hired: standard output: No space left on device\n"
    assert run(["--help"], full()) == (2, said)
