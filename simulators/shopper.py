"""A learned shopper: from a shopper's features and an item at a position to the probability of a click."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY


@dataclass(frozen=True)
class Architecture:
    """What the members of an ensemble differ in, beside their data.

    Attributes:
        hidden: Width of the taste vectors of shoppers and items.
        depth: 1 for linear taste vectors, 2 for one hidden layer.
    """

    hidden: int
    depth: int


ARCHITECTURES = (Architecture(8, 1), Architecture(16, 2), Architecture(4, 1), Architecture(8, 2), Architecture(16, 1))
"""Taken in turn by the members of an ensemble; the judge starts at another one."""


class ShopperModel(nn.Module):
    """One member of a click model: P(click) = P(examined | position) x P(click | examined, shopper, item).

    The attraction of an item is the sigmoid of: a constant, effects of the shopper's features, effects of the item's
    features and of the item itself, recorded affinity, and the product of two taste vectors. An item's own effect
    and taste are dropped out in training, so that a new item is judged by its features.

    References:
        Position-based click model: Craswell et al. (2008), An Experimental Comparison of Click Position-Bias Models.
    """

    item_vectors: Tensor
    shopper_centre: Tensor
    shopper_spread: Tensor

    def __init__(
        self, builder: ContextBuilder, size: int, architecture: Architecture, ctr: float, generator: torch.Generator
    ) -> None:
        """Build an untrained member that predicts about ``ctr`` everywhere.

        Args:
            builder: The shop's contexts and catalog.
            size: Positions of a page, K.
            architecture: Width and depth.
            ctr: Click rate to start from, in (0, 1).
            generator: Source of the first weights.
        """
        super().__init__()
        catalog = builder.catalog
        vectors = (catalog.vectors - catalog.centre) / catalog.spread
        self.register_buffer("item_vectors", torch.from_numpy(vectors))
        self.register_buffer("shopper_centre", torch.from_numpy(np.array(builder.shopper.centre)))
        self.register_buffer("shopper_spread", torch.from_numpy(np.array(builder.shopper.spread)))
        n_items, hidden = len(builder.catalog), architecture.hidden
        self.base = nn.Parameter(torch.tensor(np.log(ctr / (1.0 - ctr)), dtype=torch.float32))
        self.position = nn.Parameter(torch.zeros(size))
        self.shopper_effect = _Linear(builder.shopper.width, 1, bias=False)
        self.item_effect = _Linear(catalog.width, 1, bias=False)
        self.own_effect = nn.Embedding.from_pretrained(torch.zeros(n_items, 1), freeze=False)
        self.affinity_effect = nn.Parameter(torch.zeros(()))
        self.shopper_taste = _tower(builder.shopper.width, architecture)
        self.item_taste = _tower(catalog.width, architecture)
        self.own_taste = nn.Embedding.from_pretrained(torch.zeros(n_items, hidden), freeze=False)
        for name, parameter in self.named_parameters():
            if "effect" in name or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("weight") and "own" not in name:
                nn.init.normal_(parameter, std=0.5 * max(parameter.shape[1], 1) ** -0.5, generator=generator)

    def log_odds(self, shopper: Tensor, item: Tensor, affinity: Tensor, keep_own: Tensor | None = None) -> Tensor:
        """Return the log-odds of a click given examination, shape (B, K).

        Args:
            shopper: Encoded shopper features, shape (B, D).
            item: Catalog indices, shape (B, K).
            affinity: Affinity with those items, shape (B, K).
            keep_own: 1 where an item's own vectors take part and 0 where they are dropped, shape (n_items,).
        """
        shopper = (shopper - self.shopper_centre) / self.shopper_spread
        own_effect, own_taste = self.own_effect.weight, self.own_taste.weight
        if keep_own is not None:
            own_effect, own_taste = own_effect * keep_own[:, None], own_taste * keep_own[:, None]
        taste = self.item_taste(self.item_vectors) + own_taste
        effect = (self.item_effect(self.item_vectors) + own_effect).squeeze(-1)
        match = (self.shopper_taste(shopper)[:, None, :] * taste[item]).sum(-1)
        odds: Tensor = self.base + self.shopper_effect(shopper) + effect[item] + self.affinity_effect * affinity + match
        return odds

    def log_examination(self) -> Tensor:
        """Return the log-probability that each position is looked at, shape (K,); the best position has 0."""
        return self.position - self.position.max()

    def forward(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return P(click) at each position of a slate, shape (B, K); 0 in an empty slot.

        Args:
            shopper: Encoded shopper features, shape (B, D).
            slate: Catalog indices, shape (B, K), in order of position.
            affinity: Affinity with those items, shape (B, K).
        """
        attraction = nn.functional.logsigmoid(self.log_odds(shopper, slate.clamp(min=0), affinity))
        return (attraction + self.log_examination()).exp().masked_fill(slate == EMPTY, 0.0)


class _Linear(nn.Linear):
    """A linear layer that waits for its first weights: torch would draw them from its global generator."""

    def reset_parameters(self) -> None:
        """Leave them to the model."""


def _tower(width: int, architecture: Architecture) -> nn.Module:
    if architecture.depth == 1:
        return _Linear(width, architecture.hidden, bias=False)
    hidden = 2 * architecture.hidden
    return nn.Sequential(_Linear(width, hidden), nn.Tanh(), _Linear(hidden, architecture.hidden, bias=False))


class Ensemble(nn.Module):
    """Shopper models that differ in their data and architecture, calibrated together.

    Attributes:
        members: The models.
        calibration: Intercept a and slope b of the recalibration: log-odds z of a click become a + b z.
    """

    calibration: Tensor

    def __init__(self, members: list[ShopperModel], calibration: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("calibration", calibration)

    def raw(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return the members' P(click) before calibration, shape (M, B, K); arguments as in ``ShopperModel``."""
        return torch.stack([member(shopper, slate, affinity) for member in self.members])

    def forward(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return the members' calibrated P(click), shape (M, B, K); 0 in an empty slot."""
        probability = calibrated(self.raw(shopper, slate, affinity), self.calibration)
        return probability.masked_fill(slate == EMPTY, 0.0)


def calibrated(probability: Tensor, calibration: Tensor) -> Tensor:
    """Map probabilities through log-odds z -> a + b z (Platt, 1999), with ``calibration`` = (a, b)."""
    return (calibration[0] + calibration[1] * log_odds(probability)).sigmoid()


def log_odds(probability: Tensor) -> Tensor:
    """Return the log-odds of probabilities, finite at 0 and 1 too."""
    return probability.clamp(1e-7, 1 - 1e-6).logit()
