"""What holds for every test."""

import os

# One thread a process: on two cores the thread pools of torch and OpenBLAS fight the other workers for them, and sums
# taken in one order are the same on every machine. Set before anything imports numpy or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode

# Derandomised, so that a red run can be repeated; no deadline, because the machine may be busy.
settings.register_profile("house", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("house")


class _Watch(TorchDispatchMode):
    """Fails where the host asks the device what is in the data."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")
        assert not any(word in name for word in waits), f"a step waits for the device: {name}"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def never_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager in which nothing may move data to the host or wait for what is in it."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a step moves data to the host")

    @contextmanager
    def watched() -> Iterator[None]:
        with monkeypatch.context() as patched, _Watch():
            for name in ("item", "cpu", "numpy", "tolist", "nonzero"):
                patched.setattr(torch.Tensor, name, refuse)
            for name in ("bool", "int", "float", "array", "iter"):
                patched.setattr(torch.Tensor, f"__{name}__", refuse)
            yield

    return watched


@pytest.fixture
def nothing_global() -> Iterator[None]:
    """Fail if the test moves a global random generator."""

    def state() -> str:
        legacy = np.random.get_state()  # noqa: NPY002  # to see that nobody uses it
        return repr((torch.random.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()))

    before = state()
    yield
    assert state() == before
