"""A world of learned shoppers."""

from __future__ import annotations

import torch
from torch import Tensor

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import Outcome
from hawker.simulators.shopper import Ensemble
from hawker.simulators.world import Shoppers


class LearnedWorld:
    """Thousands of shoppers at once, each living in one member of an ensemble of shopper models.

    Arriving shoppers are drawn from the contexts of the logs. Where the logs know neither returns nor leaving, as with
    logs of single impressions, those heads are absent: a visit has one page and its shopper is gone after it.
    """

    def __init__(self, builder: ContextBuilder, ensemble: Ensemble, arrivals: Context[Tensor], size: int) -> None:
        """Args: the shop's ``builder``, the fitted ``ensemble``, contexts to draw ``arrivals`` from, slots K."""
        self.builder, self.size, self.device = builder, size, arrivals.shopper.device
        self.ensemble = ensemble.requires_grad_(False).eval()
        self._arrivals = arrivals

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers drawn from the logs; members are dealt out evenly from a random start."""
        row = torch.randint(len(self._arrivals.shopper), (n,), generator=generator, device=self.device)
        members = len(self.ensemble.members)
        start = torch.randint(members, (1,), generator=generator, device=self.device)
        member = (torch.arange(n, device=self.device) + start) % members
        return Shoppers(self._arrivals.map(lambda array: array[row]), member)

    def click_probabilities(self, context: Context[Tensor], slate: Tensor) -> Tensor:
        """Return what each member expects of a slate of catalog indices (N, K): P(click), shape (M, N, K)."""
        affinity = _affinity_of(context, slate)
        probability: Tensor = self.ensemble(context.shopper, slate, affinity)
        return probability

    def respond(self, shoppers: Shoppers, slate: Tensor, generator: torch.Generator) -> Outcome[Tensor]:
        """Draw the clicks of one page from each shopper's own member."""
        everyone = self.click_probabilities(shoppers.context, slate)
        own = shoppers.member[None, :, None].expand(1, *slate.shape)
        probability = everyone.gather(0, own).squeeze(0)
        clicked = torch.rand(probability.shape, generator=generator, device=self.device) < probability
        return Outcome(clicked.float(), probability, torch.ones_like(shoppers.member, dtype=torch.bool))


def _affinity_of(context: Context[Tensor], slate: Tensor) -> Tensor:
    """Return the shopper's affinity with each item of a slate, both (N, K); an empty slot has 0."""
    same = context.candidates[:, None, :] == slate[:, :, None]
    return (same * context.affinity[:, None, :]).sum(-1)
