"""What a strategy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from hawker.policies.slate import Marginals
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision


class SlateDistribution(Protocol):
    """A distribution over ordered slates for each page of a batch; picks are places in the candidate list."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw picks of shape (B, K)."""
        ...

    def mode(self) -> Tensor:
        """Return the greedy picks, shape (B, K)."""
        ...

    def log_prob(self, picks: Tensor) -> Tensor:
        """Return the log-probability of whole slates, shape (B,)."""
        ...

    def marginals(self, draws: int, generator: torch.Generator) -> Marginals:
        """Return the probability of each candidate at each position."""
        ...


class Strategy(ABC):
    """Maps what is known of a batch of shoppers to decisions with exact propensities.

    Attributes:
        name: How reports call it.
        size: Slots of a slate, K.
    """

    name: str
    size: int

    @abstractmethod
    def distribution(self, context: Context[Tensor]) -> SlateDistribution:
        """Return the strategy's distribution over slates for a batch of pages."""

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Draw one decision per page."""
        distribution = self.distribution(context)
        picks = distribution.sample(generator)
        return Decision(slate_of(context, picks), distribution.log_prob(picks))

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor]) -> Tensor:
        """Return the log-probability of each page's slate under this strategy, shape (B,)."""
        return self.distribution(context).log_prob(picks_of(context, decision.slate))


def slate_of(context: Context[Tensor], picks: Tensor) -> Tensor:
    """Turn picks, places in the candidate list, into catalog indices; both (B, K)."""
    return context.candidates.gather(1, picks.clamp(min=0)).masked_fill(picks == EMPTY, EMPTY)


def picks_of(context: Context[Tensor], slate: Tensor) -> Tensor:
    """Turn catalog indices into places in the candidate list, both (B, K).

    Raises:
        ValueError: A slate holds an item that is no candidate of its page.
    """
    same = context.candidates[:, None, :] == slate[:, :, None]
    place = same.to(torch.uint8).argmax(-1)
    stranger = ~same.any(-1) & (slate != EMPTY)
    if bool(stranger.any()):
        raise ValueError("a slate holds an item that is not among its page's candidates")
    return place.masked_fill(slate == EMPTY, EMPTY)
