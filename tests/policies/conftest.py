"""What a distribution over slates is held against: every slate it may draw."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hawker.shop.decision import EMPTY


def _every_slate(mask: Tensor, size: int) -> Tensor:
    """Return all ordered picks of one page, shape (n, K), from the mask (C,) of its eligible candidates."""
    eligible = torch.nonzero(mask).flatten().tolist()
    filled = min(size, len(eligible))
    empty = (EMPTY,) * (size - filled)
    return torch.tensor([(*picks, *empty) for picks in itertools.permutations(eligible, filled)])


@pytest.fixture(scope="session")
def every_slate() -> Callable[[Tensor, int], Tensor]:
    """All ordered picks (n, K) of one page with eligible candidates ``mask`` (C,) and slates of ``size`` K."""
    return _every_slate
