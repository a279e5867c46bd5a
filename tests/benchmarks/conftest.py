"""A strategy that is known by heart, and shoppers that know their log and nothing else."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.logs import read_logs
from hawker.simulators.config import FitConfig
from hawker.simulators.store import FittedShoppers

MOSTLY_ESTIMATES = FitConfig(shares=(0.02, 0.02, 0.96))


class Fixed(Strategy):
    """Plackett-Luce with one logit per catalog item, the same for everybody."""

    def __init__(self, logits: np.ndarray, size: int, name: str = "fixed") -> None:
        self.name, self.size = name, size
        self.logits = torch.from_numpy(np.asarray(logits, np.float32))

    def distribution(self, context: Context[torch.Tensor]) -> PlackettLuce:
        return PlackettLuce(self.logits[context.candidates.long()], context.mask, self.size)


def _slates_of(logits: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    slates = np.array(list(itertools.permutations(range(len(logits)), size)))
    weight = np.exp(logits)[slates]
    above = np.cumsum(weight, axis=1) - weight
    return slates, (weight / (np.exp(logits).sum() - above)).prod(axis=1)


def _log_to(directory: Path, size: int, **tables: pd.DataFrame) -> FittedShoppers:
    directory.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(directory / f"{name}.parquet", index=False)
    logs = read_logs(directory)
    assert logs.impressions is not None
    assert logs.items is not None
    builder = ContextBuilder.fit(logs.impressions, logs.items)
    return FittedShoppers(builder, size, MOSTLY_ESTIMATES, {}, {}, directory, logs.digest)


@pytest.fixture(scope="session")
def fixed() -> type[Fixed]:
    """The strategy ``Fixed(logits, size, name)``."""
    return Fixed


@pytest.fixture(scope="session")
def slates_of() -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """A function of (logits, size) to every ordered slate and its Plackett-Luce probability, by hand."""
    return _slates_of


@pytest.fixture(scope="session")
def log_to() -> Callable[..., FittedShoppers]:
    """A function of (directory, size, tables by name) that writes them and returns shoppers that know that log.

    They have no models, and keep 96% of the rows for off-policy estimates.
    """
    return _log_to
