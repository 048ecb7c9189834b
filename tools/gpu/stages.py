# SPDX-License-Identifier: Apache-2.0
"""Commands with limits, one after the other or side by side, and one log of all they say.

Every line reaches the log as it is said, with the time and the stage's name in front, so that
whatever ends the run loses nothing. A command that outlives its limit is killed with all that it
started; one that a driver will not let go of is left behind, and the run goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# All limits are times this: for a slow machine.
PATIENCE = float(os.environ.get("HIRED_PATIENCE", "1"))
LAST_WORDS = 5  # lines of a command that failed which are shown again
DYING = 10  # seconds that a killed command is waited for
# A group of its own, to be killed as one; not a session of its own, which would outlive a terminal.
GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
HUNG = 124  # the status of a command that outlived its limit, as timeout(1) has it
FAULTHANDLER = "Timeout ("  # its first words where a limit has passed
SPIN = re.compile(r"hired: block .*")  # csrc/device.cuh: give_up
SHOWN = re.compile(r"^TIME|WRONG|hired: block|^FAILED|^ERROR| passed| failed")


@dataclass
class Stage:
    """A command, and what became of it."""

    name: str
    limit: float  # seconds
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    unlogged: str = ""  # a pattern: lines not worth a place in the log
    expected: Sequence[str] = ()  # patterns: without a line of each it has not done its work
    shown: bool = False  # on the terminal too, line by line
    status: int | None = None
    seconds: float = 0.0
    cut: bool = False  # by the end of the whole run, before its own limit
    remark: str = ""  # in place of "right"
    lines: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.status == 0

    def verdict(self) -> str:
        """In words: right, or what was last heard of it."""
        if self.status is None:
            return "not run"
        if self.good:
            return self.remark or "right"
        how = f"killed after {self.limit:.0f} s" if self.status == HUNG else f"exit {self.status}"
        word = "unfinished" if self.cut and self.status == HUNG else "WRONG"
        return f"{word} ({how}): {self._what_matters()[:150]}"

    def _what_matters(self) -> str:
        """In this order: what a kernel said of its wait, the first WRONG, the call that did not
        return, the last line."""
        for pattern in (SPIN, re.compile(r".*WRONG.*")):
            for line in self.lines:
                if match := pattern.search(line):
                    return match[0].strip()
        if any(line.startswith(FAULTHANDLER) for line in self.lines):
            for line in reversed(self.lines):
                if line.endswith(" ..."):
                    return f"hung in {line.strip()}"
        return next((line.strip() for line in reversed(self.lines) if line.strip()), "nothing said")


class Run:
    """Stages that share a log and a deadline, `seconds` after the start."""

    def __init__(self, log: Path, seconds: float) -> None:
        self._start = time.monotonic()
        self._seconds = seconds * PATIENCE
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen] = []
        self.stages: list[Stage] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._file = log.open("w", buffering=1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        """Whoever ends the run gets the table, and leaves nothing running on the GPU."""
        self._seconds = 0.0
        for process in self._processes:
            self._end_group(process)

    def now(self) -> float:
        return time.monotonic() - self._start

    def left(self) -> float:
        return self._seconds - self.now()

    def say(self, text: str, shown: bool = True) -> None:
        with self._lock:
            self._file.write(f"[{self.now():6.1f}] {text}\n")
            if shown:
                print(text, flush=True)

    def one(self, stage: Stage) -> bool:
        self.side_by_side([stage])
        return stage.good

    def side_by_side(self, stages: Sequence[Stage]) -> bool:
        """Whether all ended well. None begins where the deadline has passed."""
        threads = [threading.Thread(target=self._run, args=[stage]) for stage in stages]
        self.stages += stages
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return all(stage.good for stage in stages)

    def _run(self, stage: Stage) -> None:
        stage.limit *= PATIENCE
        stage.cut = self.left() < stage.limit
        stage.limit = min(stage.limit, self.left())
        if stage.limit <= 1:
            self.say(f"== {stage.name}: left out, no time")
            return
        self.say(f"== {stage.name}, at most {stage.limit:.0f} s: {' '.join(stage.command)}", False)
        self.say(f"== {stage.name} ...")
        begin = time.monotonic()
        try:
            process = subprocess.Popen(
                stage.command, cwd=stage.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, **GROUP,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
            )  # fmt: skip
        except OSError as error:
            self.say(f"{stage.name} | {error}")
            stage.status, stage.lines = 127, [str(error)]
            return
        self._processes.append(process)
        reader = threading.Thread(target=self._read, args=[stage, process], daemon=True)
        reader.start()
        try:
            stage.status = process.wait(stage.limit)
        except subprocess.TimeoutExpired:
            stage.status = HUNG
        self._kill(process)
        reader.join(DYING)
        missing = [p for p in stage.expected if not any(re.search(p, x) for x in stage.lines)]
        if stage.good and missing:
            stage.status = 1
            stage.lines.append(f"WRONG: nothing said like: {', '.join(missing)}")
        stage.seconds = time.monotonic() - begin
        self.say(
            f"== {stage.name}: {stage.verdict()}, {stage.seconds:.1f} s, at {self.now():.1f} s"
        )
        if not stage.good:
            self._last_words(stage)

    def _read(self, stage: Stage, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for raw in process.stdout:  # the last one also where it has no end
            line = raw.decode(errors="replace").rstrip()
            stage.lines.append(line)
            if not stage.unlogged or not re.search(stage.unlogged, line):
                shown = stage.shown or bool(SHOWN.search(line))
                self.say(f"{stage.name} | {line}", shown=shown)

    @staticmethod
    def _end_group(process: subprocess.Popen) -> None:
        """The command and all that it started, also where it has ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _kill(self, process: subprocess.Popen) -> None:
        self._end_group(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver holds it
            process.wait(DYING)
        self._processes.remove(process)

    def _last_words(self, stage: Stage) -> None:
        waits = Counter(match[0] for line in stage.lines if (match := SPIN.search(line)))
        for text, times in waits.most_common(8):
            self.say(f"   {times} x {text}")
        for line in stage.lines[-LAST_WORDS:]:
            self.say(f"   {line[:300]}")

    def end(self, extra: Sequence[str] = ()) -> int:
        """Prints the table, then `extra`; 0 where every stage ended well."""
        width = max(len(stage.name) for stage in self.stages)
        self.say(f"{'stage':<{width}}  seconds  verdict")
        for stage in self.stages:
            seconds = f"{stage.seconds:7.1f}" if stage.status is not None else "      -"
            self.say(f"{stage.name:<{width}}  {seconds}  {stage.verdict()}")
        for line in extra:
            self.say(line)
        bad = sum(not stage.good for stage in self.stages)
        self.say(
            f"{len(self.stages) - bad} of {len(self.stages)} stages right, {self.now():.0f} s;"
        )
        self.say(f"every line: {self.log}")
        return int(bad > 0)


def out() -> Path:
    """Where results go: $OUT, or out/."""
    return Path(os.environ.get("OUT") or ROOT / "out").resolve()
