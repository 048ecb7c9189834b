# SPDX-License-Identifier: Apache-2.0
"""How hypothesis runs here: the same examples every time, so that a red test is red for everyone.

HIRED_TEST_EXAMPLES=10000 tries that many examples of each test instead of the few of a normal run;
they begin with those of the normal run. HIRED_TEST_SHRINK=0 reports the first that fails as it is:
on a borrowed GPU there is no time to look for a smaller one.

Each part of the project has a room here, and what one room alone imports lies in it; what several
import lies beside this file, whose folder pytest puts on the path. Names of files are unique over
the rooms, as pytest without packages wants them, and programs find this folder by themselves.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# For `benchmarks`. Last, so that the hired_kernels to be tested is the one that is installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

settings.register_profile(
    "hired",
    max_examples=int(os.environ.get("HIRED_TEST_EXAMPLES", "100")),
    derandomize=True,
    database=None,
    deadline=None,  # machines are shared, and the oracle is slow by design
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[
        phase
        for phase in (Phase.explicit, Phase.generate, Phase.shrink)
        if phase is not Phase.shrink or os.environ.get("HIRED_TEST_SHRINK") != "0"
    ],
)
settings.load_profile("hired")

# As the names of tests of test_bad_calls.py end.
SERVED_BY_PYTHON = ("-reference]", "-reference-backend]", "-fake]")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Some runs repeat files of tests on another target: what is not of it stays with the others.

    With sanitizers, of the tables of calls, that is what no native code serves.
    """
    if os.environ.get("HIRED_TEST_SANITIZED"):
        python = [
            x for x in items if x.path.stem == "test_bad_calls" and "-operator]" not in x.name
        ]
        config.hook.pytest_deselected(items=python)
        items[:] = [item for item in items if item not in set(python)]
    if os.environ.get("HIRED_TEST_TARGET") == "triton":
        mark_the_whole_list(items)


def mark_the_whole_list(items: list[pytest.Item]) -> None:
    """Of each test of parity and of invariants two cases stay unmarked for the Triton kernels.

    So that `-m "not whole_list"` is a fast selection: interpreted, a call takes a second; compiled,
    a new shape takes three.
    """
    cases = defaultdict(list)
    for item in items:
        if item.path.stem == "test_bad_calls" and "triton-backend" not in item.name:
            item.add_marker("whole_list")  # the others run elsewhere
        if item.path.stem not in ("test_parity", "test_invariants", "test_cls_attention"):
            continue
        cases[item.nodeid.partition("[")[0]].append(item)
    for name, tests in cases.items():
        some = zlib.crc32(name.encode()) % len(tests)
        for i, test in enumerate(tests):
            if (i - some) % len(tests) not in (0, len(tests) // 2):
                test.add_marker("whole_list")


def pytest_sessionstart(session: pytest.Session) -> None:
    """`make test-sanitize` means the sanitized copy of the package, not the installed one."""
    if os.environ.get("HIRED_TEST_SANITIZED"):
        from hired_kernels import _C

        if "address" not in _C.build_info()["sanitizers"]:
            pytest.exit(f"{_C.__file__} was built without the address sanitizer", returncode=1)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this run alone, and of all its workers, each of which has a folder of its own in it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def dirty_memory() -> Iterator[None]:
    """New tensors come full of NaN and of the largest integers: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For many small calls: waking threads costs the oracle more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
