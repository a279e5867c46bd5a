"""The myopic strategy: what pays best at once, by the learned shoppers, whatever becomes of the shopper afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from hawker.policies.protocol import Strategy, slate_of
from hawker.policies.shopkeeper import ExploringSlate
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.appeal import Tables
from hawker.simulators.reader import ReadWorld
from hawker.simulators.shopper import calibrated


class MyopicPages(Strategy):
    """The items, lines and offer that earn most from the clicks and purchases of one page; no ads.

    Items are ranked by what they are worth without a line; each then gets the line, and the page the offer, that
    raises what it earns most. Rewarded for clicks alone, the strategy is greedy on predicted CTR.
    """

    def __init__(self, name: str, reader: ReadWorld, reward: RewardSpec, lines: Tensor | None = None) -> None:
        """Set up the strategy.

        Args:
            name: How reports call it.
            reader: What its contexts are made by.
            reward: Its weights of clicks and purchases count.
            lines: Numbers of the lines that may be shown, shape (L,); None shows none.
        """
        self.name, self.size = name, reader.size
        self._reader, self._reward, self._lines = reader, reward, lines

    def distribution(self, context: Context[Tensor]) -> ExploringSlate:
        """Return the one slate that is never left to chance, as a distribution."""
        return self._slates(context, self._reader.model.tables(self._reader.person(context.shopper)))

    def _slates(self, context: Context[Tensor], tables: tuple[Tables, Tables | None]) -> ExploringSlate:
        click, purchase = (None if part is None else part.items.gather(1, context.candidates.long()) for part in tables)
        assert click is not None
        return ExploringSlate(self._worth(click, purchase), context.mask, self.size, 0.0)

    @torch.no_grad()
    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Return the best decision of each page; nothing is drawn."""
        tables = self._reader.model.tables(self._reader.person(context.shopper))
        slates = self._slates(context, tables)
        picks = slates.mode()
        slate = slate_of(context, picks)
        best = torch.full(picks.shape[:1], -torch.inf, device=picks.device)
        line, offer = torch.full_like(picks, EMPTY), torch.zeros_like(picks[:, 0])
        for tier in range(self._reader.offers):
            value, said = self._best_lines(tables, slate, tier)
            value = value.masked_fill(slate == EMPTY, 0.0).sum(1)
            better = value > best
            best = torch.where(better, value, best)
            line, offer = torch.where(better[:, None], said, line), offer.masked_fill(better, tier)
        return Decision(slate, slates.log_prob(picks), offer=offer, copy=line.masked_fill(slate == EMPTY, EMPTY))

    def _best_lines(self, tables: tuple[Tables, Tables | None], slate: Tensor, tier: int) -> tuple[Tensor, Tensor]:
        """Return what each item of a slate is worth with its best line under an offer, and that line, both (B, K)."""

        def with_lines(part: Tables | None) -> Tensor | None:
            if part is None:
                return None
            odds = part.items.gather(1, slate.clamp(min=0))
            if part.offers is not None:
                odds = odds + part.offers[:, tier, None]
            if part.lines is None or self._lines is None:
                return odds[:, :, None]
            said = torch.nn.functional.pad(part.lines[:, self._lines], (0, 1))  # the last one says nothing
            return odds[:, :, None] + said[:, None]

        click, purchase = map(with_lines, tables)
        assert click is not None
        value, place = self._worth(click, purchase).max(2)
        numbers = torch.full((1,), EMPTY, device=slate.device)
        if self._lines is not None:
            numbers = torch.cat([self._lines, numbers])
        return value, numbers[place]

    def _worth(self, click: Tensor, purchase: Tensor | None) -> Tensor:
        """Return what answers with these log-odds are worth at a page's best position."""
        calibration = self._reader.calibration
        value = calibrated(click.sigmoid(), calibration[0])
        if purchase is None:
            return value * self._reward.click
        bought = calibrated(purchase.sigmoid(), calibration[1])
        return value * (self._reward.click + self._reward.conversion * bought)
