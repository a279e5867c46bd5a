"""What holds for every test."""

import os

# One thread a process: on two cores the thread pools of torch and OpenBLAS fight the other workers for them, and sums
# taken in one order are the same on every machine. Set before anything imports numpy or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

# Derandomised, so that a red run can be repeated; no deadline, because the machine may be busy.
settings.register_profile("house", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("house")


@pytest.fixture
def nothing_global() -> Iterator[None]:
    """Fail if the test moves a global random generator."""

    def state() -> str:
        legacy = np.random.get_state()  # noqa: NPY002  # to see that nobody uses it
        return repr((torch.random.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()))

    before = state()
    yield
    assert state() == before
