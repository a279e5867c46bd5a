"""Strategies without learning: what any trained strategy has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.policies.protocol import Strategy
from hawker.policies.slate import Marginals, PlackettLuce, position_marginals
from hawker.shop.catalog import Catalog
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY

PRIOR_IMPRESSIONS = 10.0
"""Strength of the shrinkage of an item's click rate towards the log's mean, in impressions."""

SHARPNESS = 10.0
"""Popularity shows an item in proportion to its click rate to this power: nearly a ranking, with no zero propensity."""


class RandomStrategy(Strategy):
    """Every eligible candidate is equally likely at every slot."""

    name = "random"

    def __init__(self, size: int) -> None:
        self.size = size

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        """Return the uniform distribution over slates."""
        return PlackettLuce(torch.zeros_like(context.affinity), context.mask, self.size)


class Popularity(Strategy):
    """Items by their logged click rate, the same for every shopper."""

    name = "popularity"

    def __init__(self, click_rate: npt.NDArray[np.float64], size: int) -> None:
        """Args: positive ``click_rate`` of every catalog item, shape (n_items,); slate ``size``."""
        self.size = size
        self._logits = torch.from_numpy(SHARPNESS * np.log(click_rate / click_rate.max())).float().clamp(min=-40.0)

    @classmethod
    def fit(cls, impressions: pd.DataFrame, catalog: Catalog, size: int) -> Popularity:
        """Estimate click rates from a log, shrunk towards its mean: (clicks + 10 ctr) / (impressions + 10)."""
        item = catalog.index(impressions["item_id"], "impressions")
        clicked = impressions["clicked"].to_numpy(np.float64)
        shown = np.bincount(item, minlength=len(catalog))
        mean = max(clicked.mean(), 1.0 / (len(clicked) + 1))
        clicks = np.bincount(item, clicked, minlength=len(catalog))
        return cls((clicks + PRIOR_IMPRESSIONS * mean) / (shown + PRIOR_IMPRESSIONS), size)

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        """Return slates that favour items with a high click rate."""
        logits = self._logits.to(context.affinity.device)[context.candidates.long()]
        return PlackettLuce(logits, context.mask, self.size)


class LoggingClone(Strategy):
    """The strategy that wrote a log, as far as item and position tell: P(item | position) by smoothed counts."""

    def __init__(self, probability: npt.NDArray[np.float64], name: str = "clone") -> None:
        """Args: positive ``probability`` of each item at each position, shape (K, n_items)."""
        self.name = name
        self.size = len(probability)
        self._logits = torch.from_numpy(np.log(probability)).float()

    @classmethod
    def fit(cls, impressions: pd.DataFrame, catalog: Catalog, size: int, name: str = "clone") -> LoggingClone:
        """Count a log's items by position, with one pseudo-impression per position spread over the catalog."""
        item = catalog.index(impressions["item_id"], "impressions")
        position = impressions["position"].to_numpy(np.int64)
        within = position < size
        counts = np.full((size, len(catalog)), 1.0 / len(catalog))
        np.add.at(counts, (position[within], item[within]), 1.0)
        return cls(counts / counts.sum(axis=1, keepdims=True), name)

    def distribution(self, context: Context[Tensor]) -> PositionedSlate:
        """Return slates drawn slot by slot from the counts of each position."""
        logits = self._logits.to(context.affinity.device)[:, context.candidates.long()].transpose(0, 1)
        return PositionedSlate(logits, context.mask)


class PositionedSlate:
    """Slates drawn slot by slot without replacement, with other logits at every position.

    Plackett-Luce has one logit per item; logs of a ranker with position-dependent probabilities need one per slot.
    """

    def __init__(self, logits: Tensor, mask: Tensor) -> None:
        """Args: finite ``logits`` (B, K, C), boolean ``mask`` (B, C) of eligible candidates."""
        self.logits = logits.masked_fill(~mask[:, None], -torch.inf)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw picks of shape (B, K)."""
        noise = torch.empty_like(self.logits).exponential_(generator=generator).log_()
        return self._best(self.logits - noise)

    def mode(self) -> Tensor:
        """Return the greedy picks slot by slot, shape (B, K)."""
        return self._best(self.logits.clone())

    def _best(self, scores: Tensor) -> Tensor:
        """Take the best remaining candidate slot by slot, closing it in ``scores`` (B, K, C) for the slots after."""
        picks = []
        for slot in range(scores.shape[1]):
            best = scores[:, slot].max(1)
            picks.append(best.indices.masked_fill(torch.isneginf(best.values), EMPTY))
            scores.scatter_(2, best.indices[:, None, None].expand(-1, scores.shape[1], 1), -torch.inf)
        return torch.stack(picks, 1)

    def log_prob(self, picks: Tensor) -> Tensor:
        """Return the log-probability of whole slates, shape (B,); minus infinity where one cannot be drawn."""
        remaining = self.logits.clone()
        total = torch.zeros_like(self.logits[:, 0, 0])
        for slot in range(picks.shape[1]):
            scores = remaining[:, slot]
            left = ~torch.isneginf(scores).all(1)
            filled = picks[:, slot] != EMPTY
            place = picks[:, slot, None].clamp(min=0)
            step = scores.log_softmax(1).gather(1, place).squeeze(1)
            total = total + torch.where(filled & left, step, torch.where(filled == left, 0.0, -torch.inf))
            closed = torch.zeros_like(scores).scatter(1, place, filled[:, None].to(scores.dtype)) > 0
            remaining = remaining.masked_fill(closed[:, None], -torch.inf)
        return total

    def marginals(self, draws: int, generator: torch.Generator) -> Marginals:
        """Estimate the marginal probability of each candidate at each position; see ``position_marginals``."""
        return position_marginals(self.logits, draws, generator)
