"""The myopic strategy: what pays best at once, by the learned shoppers, whatever becomes of the shopper afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from hawker.policies.protocol import Strategy, slate_of
from hawker.policies.shopkeeper import ExploringSlate
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.reader import ReadWorld


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
        worth = self._reader.worth(context.shopper, context.candidates.long(), self._reward).squeeze(2)
        return ExploringSlate(worth, context.mask, self.size, 0.0)

    @torch.no_grad()
    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Return the best decision of each page; nothing is drawn."""
        slates = self.distribution(context)
        picks = slates.mode()
        slate = slate_of(context, picks)
        best = torch.full(picks.shape[:1], -torch.inf, device=picks.device)
        line, offer = torch.full_like(picks, EMPTY), torch.zeros_like(picks[:, 0])
        for tier in range(self._reader.offers):
            value, said = self._best_lines(context, slate, tier)
            value = value.masked_fill(slate == EMPTY, 0.0).sum(1)
            better = value > best
            best = torch.where(better, value, best)
            line, offer = torch.where(better[:, None], said, line), offer.masked_fill(better, tier)
        return Decision(slate, slates.log_prob(picks), offer=offer, copy=line.masked_fill(slate == EMPTY, EMPTY))

    def _best_lines(self, context: Context[Tensor], slate: Tensor, tier: int) -> tuple[Tensor, Tensor]:
        """Return what each item of a slate is worth with its best line under an offer, and that line, both (B, K)."""
        worth = self._reader.worth(context.shopper, slate.clamp(min=0), self._reward, tier, self._lines)
        value, place = worth.max(2)
        numbers = torch.full((1,), EMPTY, device=slate.device)
        if self._lines is not None:
            numbers = torch.cat([self._lines, numbers])
        return value, numbers[place]
