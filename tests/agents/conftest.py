"""A run with fitted shoppers, small worlds, and a training that takes a second."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hawker.agents.config import TrainConfig
from hawker.shop.decision import Decision, Outcome
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables, small_world
from hawker.simulators.world import Shoppers


class StayingWorld:
    """The small shop, but every second shopper of a batch stays for another page and remembers how many they saw."""

    def __init__(self) -> None:
        self._world = small_world()
        self.builder, self.size, self.device = self._world.builder, self._world.size, self._world.device
        self.choices, self.offers = self._world.choices, self._world.offers
        self.lines, self.bids = self._world.lines, self._world.bids

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers."""
        return replace(self._world.arrive(n, generator), state={"seen": torch.zeros(n)})

    def respond(
        self, shoppers: Shoppers, decision: Decision[torch.Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[torch.Tensor]]:
        """Answer a page; what was seen tires."""
        _, outcome = self._world.respond(shoppers, decision, generator)
        seen = shoppers.state["seen"]
        probability = outcome.click_probability * 0.9 ** seen[:, None]
        after = replace(shoppers, state={"seen": seen + 1})
        return after, Outcome(outcome.clicked, probability, torch.arange(len(seen)) % 2 == 0)


@pytest.fixture
def staying() -> StayingWorld:
    """The small shop, in which every second shopper stays."""
    return StayingWorld()


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Four rollouts of 128 pages, with a checkpoint after the second."""
    return TrainConfig(steps=512, shoppers=64, pages=2, batch=64, epochs=2, hidden=16, checkpoint_every=2, device="cpu")


@pytest.fixture(scope="session")
def fitted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and a run with shoppers fitted to them; not to be changed."""
    directory = tmp_path_factory.mktemp("fitted")
    impressions, items = small_tables()
    log = small_world(ctr=0.2).write_log(3000, impressions, seed=1)
    (directory / "logs").mkdir()
    log.to_parquet(directory / "logs/impressions.parquet", index=False)
    items.to_parquet(directory / "logs/items.parquet", index=False)
    config = FitConfig(members=2, epochs=6, batch=128, device="cpu")
    fit(directory / "logs", directory / "run/shoppers", config, lambda line: None)
    return directory


@pytest.fixture
def run(fitted_run: Path, tmp_path: Path) -> Run:
    """A run of one's own with fitted shoppers."""
    shutil.copytree(fitted_run / "run", tmp_path / "run")
    return Run(tmp_path / "run")
