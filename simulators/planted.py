"""A gold world with planted effects on a shop's own shoppers and items: would this machine find a signal there?

Shoppers and items are those of a log, so that everything but the clicks has the log's shape; the click probabilities
are drawn from a seed and known exactly. Nothing may be trained on the world itself, only on logs that it writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.simulators.config import PlantedEffects
from hawker.simulators.world import Shoppers


@dataclass(frozen=True)
class PlantedRows:
    """Drawn impressions, n of them: bank row of the shopper, item, position, true click probability, click."""

    row: Tensor
    item: Tensor
    position: Tensor
    probability: Tensor
    clicked: Tensor


class PlantedWorld:
    """Visits of one page; P(click) = examination(position) x sigmoid(score(shopper, item))."""

    def __init__(
        self,
        builder: ContextBuilder,
        shoppers: Context[Tensor],
        size: int,
        effects: PlantedEffects,
        seed: int,
    ) -> None:
        """Plant the effects.

        Args:
            builder: The shop's contexts and catalog.
            shoppers: Contexts to draw arriving shoppers from, with the whole catalog as candidates.
            size: Slots of a page, K.
            effects: How strong to plant what.
            seed: Decides every planted effect.
        """
        self.builder, self.size, self.device = builder, size, shoppers.shopper.device
        self.choices = len(builder.catalog)
        self.offers, self.bids = 1, torch.zeros(self.choices, device=self.device)
        self.lines: tuple[str, ...] = ()
        self._bank = shoppers
        generator = np.random.default_rng(seed)
        person = _standardised(shoppers.shopper.cpu().double())
        item = _standardised(torch.from_numpy(builder.catalog.vectors).double())
        rank = 3

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(generator.standard_normal(shape))

        own = _scaled(item @ draw(item.shape[1], 1)) + _scaled(draw(len(item), 1))
        taste = (person @ draw(person.shape[1], rank)) @ (item @ draw(item.shape[1], rank)).T
        taste = taste - taste.mean(0, keepdim=True) - taste.mean(1, keepdim=True) + taste.mean()
        score = (
            effects.item * _scaled(own).T
            + effects.shopper * _scaled(person @ draw(person.shape[1], 1))
            + effects.taste * _scaled(taste)
            + effects.affinity * shoppers.affinity.cpu().double()
        )
        self.examination = (effects.examination ** torch.arange(size)).to(self.device, torch.float64)
        base = _solve_base(score, effects.ctr / float(self.examination.mean()))
        self._score = (base + score).to(self.device)

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers drawn from the bank; ``member`` is their row in it."""
        row = torch.randint(len(self._score), (n,), generator=generator, device=self.device)
        return Shoppers(self._bank.map(lambda array: array[row]), row)

    def attraction(self, row: Tensor, item: Tensor) -> Tensor:
        """Return P(click | examined), shape (N, K), of items (N, K) shown to bank rows (N,)."""
        return self._score[row].gather(1, item).sigmoid()

    def click_probability(self, row: Tensor, slate: Tensor) -> Tensor:
        """Return the true click probabilities, shape (N, K), of slates (N, K) shown to bank rows (N,)."""
        attraction = self.attraction(row, slate.clamp(min=0))
        return (attraction * self.examination).masked_fill(slate == EMPTY, 0.0)

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Draw the clicks of one page; every visit ends with it."""
        probability = self.click_probability(shoppers.member, decision.slate)
        clicked = torch.rand(probability.shape, generator=generator, device=self.device) < probability
        gone = torch.ones_like(shoppers.member, dtype=torch.bool)
        return shoppers, Outcome(clicked.float(), probability.float(), gone)

    def best_slate(self, row: Tensor) -> Tensor:
        """Return the slate with the most expected clicks for bank rows (N,): shape (N, K)."""
        found = min(self.size, len(self.builder.catalog))
        best = self._score[row].topk(found, dim=1).indices
        return nn.functional.pad(best, (0, self.size - found), value=EMPTY)

    def draw(self, n: int, generator: torch.Generator) -> PlantedRows:
        """Draw n impressions of the uniform strategy: shopper, item, position and click."""
        row = torch.randint(len(self._score), (n,), generator=generator, device=self.device)
        item = torch.randint(len(self.builder.catalog), (n,), generator=generator, device=self.device)
        position = torch.randint(self.size, (n,), generator=generator, device=self.device)
        probability = self._score[row, item].sigmoid() * self.examination[position]
        clicked = torch.rand(n, generator=generator, device=self.device, dtype=torch.float64) < probability
        return PlantedRows(row, item, position, probability, clicked.float())

    def write_log(self, n: int, logged: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Return n impressions of the uniform strategy, each a visit of one page and one position.

        Args:
            n: Rows to write.
            logged: The log whose rows, in order, are this world's shoppers; their features and times are kept, what
                they bought is not.
            seed: Decides shoppers, items, positions and clicks.
        """
        drawn = self.draw(n, torch.Generator(self.device).manual_seed(seed))
        row, item, position, clicked = (
            array.cpu().numpy() for array in (drawn.row, drawn.item, drawn.position, drawn.clicked)
        )
        order = np.argsort(logged["timestamp"].to_numpy()[row], kind="stable")
        return (
            logged.drop(columns=["converted", "revenue"], errors="ignore")
            .iloc[row[order]]
            .reset_index(drop=True)
            .assign(
                visit_id=np.arange(n),
                page=0,
                item_id=np.array(self.builder.catalog.item_ids)[item[order]],
                position=position[order],
                clicked=clicked[order].astype(np.int8),
                propensity=1.0 / len(self.builder.catalog),
            )
        )


def _standardised(values: Tensor) -> Tensor:
    """Columns with mean 0 and deviation 1, cut at 3 deviations; a constant column becomes 0."""
    deviation = values.std(0, correction=0)
    return ((values - values.mean(0)) / torch.where(deviation > 1e-9, deviation, torch.inf)).clamp(-3.0, 3.0)


def _scaled(effect: Tensor) -> Tensor:
    """The effect with mean 0 and deviation 1 over all its entries; no effect stays none."""
    deviation = float(effect.std(correction=0))
    return (effect - effect.mean()) / deviation if deviation > 1e-9 else torch.zeros_like(effect)


def _solve_base(score: Tensor, target: float) -> float:
    """Find the constant that brings the mean of sigmoid(base + score) to ``target``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle + score).sigmoid().mean()) < target else (low, middle)
    return (low + high) / 2
