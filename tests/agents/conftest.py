"""A run with fitted shoppers, a training that takes a second, and a shop of which the best page is known."""

import dataclasses
import shutil
import socket
from pathlib import Path

import pytest
import torch

from hawker.agents.config import TrainConfig
from hawker.policies.small_writer import small_model
from hawker.shop.decision import EMPTY, Outcome
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables, small_world
from hawker.simulators.world import Shoppers


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


class TinyShop:
    """Six items, two slots, two tiers, three lines; what is best is known.

    Older shoppers click item 0 most, younger ones item 1; item 4 is the ad that pays, and in the lower slot it pays
    more. The line "cheap" helps with an offer and harms without; "fine" helps a little.
    """

    def __init__(self, bids=(0.0, 0.0, 0.0, 0.5, 2.0, 0.0), stays=False):
        self._world = small_world(n_items=6, size=2)
        self.builder, self.size, self.device = self._world.builder, 2, self._world.device
        self.choices, self.offers, self.lines, self.bids = 6, 2, ("cheap", "plain", "fine"), torch.tensor(bids)
        self._stays = stays
        self._age = self.builder.shopper.numeric.index("age")

    def arrive(self, n, generator):
        """Return n shoppers."""
        return dataclasses.replace(self._world.arrive(n, generator), state={"visits": torch.zeros(n)})

    def older(self, context):
        """Return who is older, shape (B,)."""
        return context.shopper[:, self._age] > self.builder.shopper.mean[self._age]

    def odds(self, context, decision):
        """Return P(click) of each slot."""
        best = torch.where(self.older(context), 0, 1)[:, None]
        odds = 0.1 + torch.tensor([0.4, 0.2]) * (decision.slate == best)
        if decision.ad is not None:
            is_ad = torch.arange(2) == decision.ad[:, None]
            odds = torch.where(is_ad, torch.tensor([0.05, 0.2]), odds)
        if decision.copy is not None:
            offer = torch.zeros(len(odds)) if decision.offer is None else decision.offer
            odds = odds + torch.where(decision.copy == 0, 0.2 * offer[:, None] - 0.1, 0.0)
            odds = odds + 0.03 * (decision.copy == 2)
        return odds.clamp(min=0.0) * (decision.slate != EMPTY)

    def respond(self, shoppers, decision, generator):
        """Answer; every page is a visit of its own, three days apart, if anybody stays."""
        odds = self.odds(shoppers.context, decision)
        n = len(odds)
        gone = torch.full((n,), not self._stays)
        days = torch.full((n,), 3.0).masked_fill(gone, torch.inf)
        visits = shoppers.state["visits"] + 1
        clicked = (torch.rand(odds.shape, generator=generator) < odds).float()
        after = Shoppers(shoppers.context, shoppers.member, {"visits": visits})
        return after, Outcome(clicked, odds, gone, leave=torch.ones(n, dtype=torch.bool), days=days)


@pytest.fixture(scope="session")
def tiny_shop() -> type[TinyShop]:
    """The tiny shop, to be opened."""
    return TinyShop


@pytest.fixture(scope="session")
def small_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with a chat template; not to be changed."""
    texts = ["A quiet pot for slow mornings", "Warm wool for cold days", "Write a headline that makes people look"]
    return small_model(tmp_path_factory.mktemp("models") / "small", texts)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever opens a connection."""

    def refuse(*_: object) -> None:
        raise AssertionError("something asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
