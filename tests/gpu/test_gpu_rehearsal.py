# SPDX-License-Identifier: Apache-2.0
"""What is run on a GPU, rehearsed on a machine that pretends to have one (fake_gpu/).

All Python of `make first-contact`, `make test-gpu` and `make bench` runs here, on the CPU backend,
so that no typing error costs time on a GPU: of stages that differ by backend or tool alone, some.
And what hangs, dies or is missing has to be named by the log, within its limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_short_list import CALLS, LLAVA_CALLS
from rehearsal import FAKE, ROOT, Machine

sys.path.insert(0, str(ROOT / "tools" / "gpu"))
import package
import suites
from stages import HUNG, Run, Stage

sys.path.pop(0)

# Put at the end of a package: one operator does not return, as if its kernel waited in vain.
HANG = """
import time
def hang(*arguments, **more):
    time.sleep(1000)
_hanging = torch.library.Library("hired", "IMPL")
_hanging.impl("cls_attention", hang, "CPU", allow_override=True)
"""
# Or it is the emulator's, on counters that a launch before it left behind.
CORRUPT = """
import ctypes, os
torch.ops.load_library(os.environ["HIRED_EMULATED_LIBRARY"])
_emulator = ctypes.CDLL(os.environ["HIRED_EMULATED_LIBRARY"])
_emulator.hired_emulated_configure(ctypes.c_uint64(1), 8, 64, 0, 9, 1)
_emulator.hired_emulated_disturb(1, 0, 200)
_emulated = torch.library.Library("hired", "IMPL")
_emulated.impl("select", torch.ops.hired_emulated.select.default, "CPU", allow_override=True)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def broken(tmp_path: Path) -> Machine:
    """A machine of the test's own, to plant something in."""
    return Machine(tmp_path)


def plant(machine: Machine, variant: str, code: str) -> None:
    with machine.file(variant, "__init__.py").open("a") as file:
        file.write(f"\nimport torch\n{code}")


def processes() -> str:
    """The folders that processes are in: those of a stage are in its package's."""
    folders = []
    for process in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            folders.append(str(process.readlink()))
    return "\n".join(folders)


def verdicts(output: str) -> dict[str, str]:
    """Of the table that ends a run: verdicts by stage."""
    table = output[output.rindex("\nstage ") :]
    rows = re.finditer(r"^(\S.*?) {2,}(?:\d+\.\d|-)  (\S.*)$", table, re.MULTILINE)
    return {row[1]: row[2] for row in rows}


def test_first_contact(machine: Machine) -> None:
    result = machine.run("first_contact.py")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    table = verdicts(result.stdout)
    names = ["machine: tools", "machine: GPU", "spin", "calls", "cold select", "cold select_qk"]
    names += ["cold cls_attention", "loop"]
    names += ["times: before", "times: release", *suites.CUDA_SUITES, "cuda memcheck"]
    assert set(names) | {"triton short list"} <= table.keys()
    assert set(table.values()) == {"right"}

    log = machine.log("first-contact")
    for name in CALLS:
        assert f"{name} ...\n" in log
    for name in LLAVA_CALLS:
        for dtype in ("float16", "bfloat16", "float32"):
            assert f"{name} {dtype} again: right" in log
        assert f"{name} captured cold: right" in log
        assert f"{name} replayed on new data: right" in log
        assert f"{name}: 3 calls: the same bits" in log
    # Two builds take turns, each under its commit; the times are the last words.
    runs = json.loads((machine.out / "first-contact.json").read_text())["runs"]
    assert [run["label"] for run in runs] == ["release", "before"] * 2
    commits = [run["environment"]["commit"] for run in runs]
    assert commits[0] == package.commit()
    assert commits[1] == "abcdef0123"
    assert {case["operator"] for case in runs[1]["cases"]} == {"select", "select_qk"}
    assert all(case["median_us"] > 0 for run in runs for case in run["cases"])
    assert result.stdout[result.stdout.rindex("\nstage ") :].count("\nTIME") == 2 * len(runs)


def test_a_hang_is_named_within_its_limit(broken: Machine) -> None:
    plant(broken, "spin", HANG)
    begin = time.monotonic()
    result = broken.run("first_contact.py", HIRED_PATIENCE="1")
    assert time.monotonic() - begin < 90
    assert result.returncode == 1
    table = verdicts(result.stdout)
    assert re.fullmatch(r"WRONG \(exit 1\): hung in \d\.\d\d cls_attention \.\.\.", table["spin"])
    assert "calls" not in table  # it would not make sense
    assert "in hang" in broken.log("first-contact")  # where it is: faulthandler's traceback


@pytest.mark.skipif(
    "HIRED_EMULATED_LIBRARY" not in os.environ, reason="the emulator: make test-emulated"
)
def test_a_wait_in_vain_says_what_it_is_for(broken: Machine) -> None:
    plant(broken, "spin", CORRUPT)
    result = broken.run("first_contact.py")
    assert result.returncode == 1
    said = r"hired: block \d+, job \d+: (weighed|tickets), picture 0: have \d+, want \d+"
    assert re.match(rf"WRONG \(exit 1\): {said}", verdicts(result.stdout)["spin"])
    log = broken.log("first-contact")
    named = [line.split()[-2] for line in log.splitlines() if line.endswith(" ...") and "|" in line]
    assert named[-1] == "select"
    assert "   1 x hired: block " in result.stdout


def test_a_wrong_result_ends_first_contact(broken: Machine) -> None:
    wrong = HANG.replace("time.sleep(1000)", "return torch.zeros(arguments[0].shape[:2] + (16,))")
    plant(broken, "spin", wrong)
    result = broken.run("first_contact.py")
    assert result.returncode == 1
    table = verdicts(result.stdout)
    said = "WRONG: cls_attention: output 0: 144 of 144 differ, at (0, 0, 0): 0.0, expected"
    assert said in table["spin"]
    assert "calls" not in table


def test_a_mixed_up_bundle_is_found_out(broken: Machine) -> None:
    broken.file("spin", "_C.py").write_text(broken.file("release", "_C.py").read_text())
    result = broken.run("first_contact.py")
    assert result.returncode == 1
    assert "WRONG: a build with spin limit None" in verdicts(result.stdout)["spin"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_killed_leaves_its_log(broken: Machine, how: signal.Signals) -> None:
    plant(broken, "spin", HANG)
    environment = {
        **os.environ, "OUT": str(broken.out), "PYTHONPATH": str(FAKE),
        "HIRED_GPU_BUNDLE": str(broken.folder / "bundle"),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tools" / "gpu" / "first_contact.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and "cls_attention ...\n" not in (
            broken.log("first-contact") if broken.out.exists() else ""
        ):
            time.sleep(0.2)
        process.send_signal(how)
    log = broken.log("first-contact")
    assert "select again: right" in log
    if how == signal.SIGKILL:
        assert log.endswith("cls_attention ...\n")
    else:  # it had time for a last word, and for what it had started
        assert process.returncode == 1
        assert verdicts(log.replace("] ", "]\n"))["spin"].startswith("WRONG")
        assert str(broken.folder) not in processes()


def test_suites(machine: Machine) -> None:
    """But for what `test_first_contact` has run: the same files by the same backend."""
    tools = {f"cuda {tool}" for tool in suites.TOOLS} | {"triton racecheck"}
    names = {"triton short list", "triton test_gpu", "triton test_gpu_calls", "triton test_parity"}
    names |= {"pascal test_gpu_calls", "test_bad_calls"}
    result = machine.run("suites.py", *sorted(tools | names))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    table = verdicts(result.stdout)
    assert set(table.values()) == {"right"}
    packages = {"package: release", "package: pascal"}
    assert table.keys() == tools | names | packages | {"cuda short list"}
    passed, failed, skipped = (
        int(number.split()[0]) for number in result.stdout.splitlines()[-3].split(", ")
    )
    assert failed == 0
    assert passed > 30
    assert skipped > 0  # what needs a real one says so


def test_bench(machine: Machine) -> None:
    few = "--tokens 64 --batches 1 --dtypes float16 --rates 0.2 --seconds 0.01 --compile no"
    bench = ("benchmark.py", "120", "gpu", *few.split(), "--limit")
    result = machine.run(*bench, "120")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    contents = json.loads((machine.out / "pretended-gpu.json").read_text())
    for name in ("gpu", "driver", "cuda", "torch", "triton", "commit", "date"):
        assert name in contents["environment"]
    cases = contents["cases"]
    assert [case["operator"] for case in cases] == ["select", "select_qk"] * 2
    assert [case["policy"] for case in cases] == ["exact"] * 2 + ["published"] * 2
    for case in cases[:2]:
        assert case["others"]["published method"]["eager"]["median_us"] > 0
        assert case["others"]["torch, static"]["graph"]["median_us"] > 0
        assert case["peers"]
    # The README's table and the plot are made of what was written.
    code = """
import json, sys
sys.path.append(sys.argv[2])
from benchmarks.gpu import publish
contents = json.load(open(sys.argv[1]))
print(publish.figures(contents, "x.json"), publish.plot(contents))
"""
    command = [sys.executable, "-c", code, str(machine.out / "pretended-gpu.json"), str(ROOT)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "Pretended GPU, driver 000.00" in made.stdout
    assert "| `select_qk` | 1 |" in made.stdout
    assert "published method" in made.stdout
    # Out of time: what there was is written.
    result = machine.run(*bench, "0")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    contents = json.loads((machine.out / "pretended-gpu.json").read_text())
    assert contents["left_out"] == "what was left after 0 s"


def test_without_a_gpu(machine: Machine) -> None:
    """As most machines are: it says so, and does not go on."""
    for script, arguments, words in (
        ("first_contact.py", (), "WRONG: PyTorch sees no GPU"),
        ("suites.py", (), "expected a GPU that PyTorch can use, got none"),
        ("benchmark.py", ("60", "gpu"), "expected a GPU that PyTorch can use, got none"),
    ):
        result = machine.run(script, *arguments, PYTHONPATH="", PYTEST_ADDOPTS="")
        assert result.returncode == 1
        assert words in result.stdout
        assert len(verdicts(result.stdout)) < 6


# The parts.


def test_a_command_that_outlives_its_limit_is_killed_with_all_it_started(tmp_path: Path) -> None:
    run = Run(tmp_path / "log", 60)
    mark = tmp_path / "mark"
    script = f"echo begun; (sleep 3; touch {mark}) & printf 'half a line'; sleep 60"
    stage = Stage("long", 1.5, ["sh", "-c", script])
    assert not run.one(stage)
    assert stage.status == HUNG
    assert stage.seconds < 3
    assert stage.verdict() == "WRONG (killed after 2 s): half a line"
    assert suites.counted([stage]) == "0 passed, 1 failed, 0 skipped"
    assert "long | begun\n" in run.log.read_text()
    time.sleep(3)
    assert not mark.exists()
    assert run.end() == 1


def test_a_run_that_is_out_of_time_begins_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "log", 60)
    cut = Stage("cut", 30, ["sleep", "30"])
    run.left = lambda: 1.2
    assert not run.one(cut)
    assert cut.verdict() == "unfinished (killed after 1 s): nothing said"
    run.left = lambda: 0.0
    late = Stage("late", 30, ["true"])
    assert not run.one(late)
    assert late.verdict() == "not run"
    assert run.end() == 1


def test_what_a_suite_counted(tmp_path: Path) -> None:
    run = Run(tmp_path / "log", 60)
    summary = "== 1 failed, 12 passed, 3 skipped in 4.56s ==="
    failing = Stage("failing", 9, ["sh", "-c", f"echo '{summary}'; exit 1"])
    crashing = Stage("crashing", 9, ["sh", "-c", "echo '== 5 passed in 1.0s =='; exit 139"])
    run.side_by_side([failing, crashing])
    assert suites.counted([failing]) == "12 passed, 1 failed, 3 skipped"
    assert suites.counted([crashing]) == "5 passed, 1 failed, 0 skipped"


def test_a_tool_that_says_nothing_has_not_done_its_work(tmp_path: Path) -> None:
    run = Run(tmp_path / "log", 60)
    stages = [
        Stage("silent", 9, ["true"], expected=["ERROR SUMMARY: 0 errors"]),
        Stage("missing", 9, [str(tmp_path / "no-such-tool")]),
        Stage("good", 9, ["echo", "ERROR SUMMARY: 0 errors"], expected=["ERROR SUMMARY: 0 errors"]),
    ]
    assert not run.side_by_side(stages)
    assert [stage.good for stage in stages] == [False, False, True]
    assert "nothing said like" in stages[0].verdict()
    assert "No such file" in stages[1].verdict()
    assert suites.counted(stages) == "1 passed, 2 failed, 0 skipped"


def test_a_bundle_serves_only_its_sources_and_python(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "BUNDLE", machine.folder / "bundle")
    assert package.why_not_the_bundle() == ""
    said = package.manifest()
    monkeypatch.setattr(package, "manifest", lambda: {**said, "python": "3.99"})
    assert "for Python 3.99" in package.why_not_the_bundle()
    monkeypatch.setattr(package, "manifest", lambda: {**said, "sources": "0"})
    assert "other sources" in package.why_not_the_bundle()


def test_every_source_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("csrc/phases", "python", "hired_kernels/models"):
        (tmp_path / name).mkdir(parents=True)
    files = ["CMakeLists.txt", "setup.py", "csrc/phases/a.h", "csrc/b.cuh", "csrc/c.cu"]
    files += ["python/d.cpp", "hired_kernels/models/e.py"]
    for name in files:
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(package, "ROOT", tmp_path)
    digests = {package.digest()}
    for name in files:
        (tmp_path / name).write_text("2")
        digests.add(package.digest())
    assert len(digests) == 1 + len(files)
