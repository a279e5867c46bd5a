"""Jobs in processes of their own: what they return, tell and raise, and that none outlives a failure."""

import importlib
import os
import time
from pathlib import Path
from types import ModuleType

import pytest

from hawker.benchmarks.side_by_side import gathered, side_by_side
from hawker.shop.errors import InputError

JOBS = """
import os, time
import torch
from hawker.shop.errors import InputError

def square(number, told):
    told(f"squaring {number}")
    return number * number, os.getpid(), torch.get_num_threads()

def refuse(told):
    raise InputError("no good", where="here", got=3, remedy="use 4")

def dawdle(started, told):
    started.write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Jobs in a module that another process finds too."""
    (tmp_path / "some_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("some_jobs")


def test_jobs_return_and_tell_from_processes_with_one_thread(jobs: ModuleType):
    told: list[str] = []
    with side_by_side(2, told.append) as start:
        found = [start(jobs.square, number) for number in range(4)]
        results = gathered(found)
    assert [number for number, _, _ in results] == [0, 1, 4, 9]
    assert os.getpid() not in {process for _, process, _ in results}
    assert {threads for _, _, threads in results} == {1}
    assert sorted(told) == [f"squaring {number}" for number in range(4)]


def fail_beside(jobs: ModuleType, started: Path) -> None:
    """Start a job that takes its time, and another, later in order, that raises."""
    with side_by_side(2, print) as start:
        slow = start(jobs.dawdle, started)
        late = time.monotonic() + 60
        while (not started.exists() or not started.read_text()) and time.monotonic() < late:
            time.sleep(0.05)
        gathered([slow, start(jobs.refuse)])


def test_a_failure_is_the_jobs_own_and_ends_the_others(jobs: ModuleType, tmp_path: Path):
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"^here: no good; got 3; use 4$"):
        fail_beside(jobs, tmp_path / "started")
    assert time.monotonic() - begun < 120
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "started").read_text()), 0)
