"""A strategy that is known by heart, and shoppers that know their log and nothing else."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.benchmarks.fidelity_cohort import (
    Cohort,
    Predictions,
    encode_cohort,
    impressions,
    predict_cohort,
    read_lines,
    served,
)
from hawker.benchmarks.fidelity_heads import Happened, Swaps, happened, make_swaps
from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.language import Encoder, load_encoder
from hawker.shop.lines import Lines
from hawker.shop.logs import read_logs
from hawker.simulators.appeal import ARCHITECTURES, Recorded
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import IDENTITY, Ensemble, ShopperModel
from hawker.simulators.store import FittedShoppers
from hawker.simulators.support import Support
from hawker.simulators.taste_classes import TasteClasses

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
    support = Support.from_impressions(logs.impressions, builder.catalog, None, 1)
    return FittedShoppers(builder, size, MOSTLY_ESTIMATES, {}, {}, directory, logs.digest, support)


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


@pytest.fixture(scope="session")
def hashed() -> Encoder:
    return load_encoder("hashed", torch.device("cpu"))


@pytest.fixture(scope="session")
def bazaar() -> BazaarWorld:
    return BazaarWorld(load_bazaar(None), torch.device("cpu"))


@pytest.fixture(scope="session")
def cohort(bazaar: BazaarWorld) -> Cohort:
    """Sixty shoppers of the bazaar over 40 days."""
    return served(bazaar, 60, 40, 3)


@pytest.fixture(scope="session")
def untrained(bazaar: BazaarWorld, cohort: Cohort, hashed: Encoder) -> FittedShoppers:
    """Shoppers with untrained members: they know what a log of the bazaar records and nothing else."""
    frame = impressions(bazaar, cohort)
    builder = ContextBuilder.fit(frame, bazaar.items.table, hashed)
    lines = Lines.from_impressions(frame, hashed)
    support = Support.from_impressions(frame, builder.catalog, lines, bazaar.offers)
    bare = FittedShoppers(builder, bazaar.size, FitConfig(), {}, {}, Path(), "", support, lines)
    recorded = Recorded.of(encode_cohort(bazaar, cohort, bare, hashed))
    members = [
        ShopperModel(builder, bazaar.size, architecture, 0.1, torch.Generator().manual_seed(i), recorded, lines).eval()
        for i, architecture in enumerate(ARCHITECTURES[:2])
    ]
    shopper = torch.from_numpy(builder.encode_shoppers(frame))[:: bazaar.size * 5]
    candidates = torch.arange(30).expand(len(shopper), -1)
    arrivals = Context(shopper, candidates, torch.ones_like(candidates).bool(), torch.zeros(candidates.shape))
    tastes = TasteClasses(builder, bazaar.size, recorded, lines, 0.1, 0.1).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(2)
    for weights in tastes.parameters():
        weights.copy_(0.1 * torch.randn(weights.shape, generator=generator))
    ensemble = Ensemble(members, IDENTITY.clone(), tastes)
    return FittedShoppers(
        builder, bazaar.size, FitConfig(), {"train": ensemble}, {"train": arrivals}, Path(), "", support, lines
    )


@pytest.fixture(scope="session")
def members(bazaar: BazaarWorld, untrained: FittedShoppers, hashed: Encoder) -> Ensemble:
    """The untrained members, with all lines of the bazaar."""
    return read_lines(untrained.ensembles["train"], bazaar, untrained, hashed)


@pytest.fixture(scope="session")
def cohort_rows(bazaar: BazaarWorld, cohort: Cohort, untrained: FittedShoppers, hashed: Encoder) -> Rows:
    return encode_cohort(bazaar, cohort, untrained, hashed)


@pytest.fixture(scope="session")
def seen(cohort: Cohort, cohort_rows: Rows) -> Happened:
    return happened(cohort, cohort_rows)


@pytest.fixture(scope="session")
def swaps(bazaar: BazaarWorld, cohort: Cohort) -> Swaps:
    return make_swaps(bazaar, cohort, 40, 10, 1)


@pytest.fixture(scope="session")
def said(members: Ensemble, cohort_rows: Rows) -> Predictions:
    return predict_cohort(members, cohort_rows)
