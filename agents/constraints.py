"""Limits that hold over all pages together, and the prices at which PPO comes to hold them.

Each limit is on a ratio of sums over pages: pages with an ad among pages, a provider's impressions among impressions.
A page pays its price for what it adds to the numerator beyond the limit's share of the denominator, so that pages that
keep to the limit are free, however many there are. After each rollout a price follows what was measured: up where the
limit is broken, down where it is kept, never below zero.

Sources: Tessler et al. (2019), Reward Constrained Policy Optimization, arXiv 1805.11074, for the price in the reward;
Stooke et al. (2020), Responsive Safety in Reinforcement Learning by PID Lagrangian Methods, arXiv 2007.03964, for the
proportional term, without which prices and policy swing around each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hawker.agents.config import Constraints
from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError, did_you_mean

PROVIDER = "provider"
"""The items' column that says whose they are."""

INTEGRAL, PROPORTIONAL = 1.0, 20.0
"""By how much a multiplier grows for a rollout's excess over a limit, each as a share of 1: for good, and for the next
rollout alone."""

LARGEST = 0.05
"""Excess from which on it counts no more: while a policy is far away, prices must not run ahead of it."""


class Prices(nn.Module):
    """The Lagrange multipliers of constraints, and what they make of a page.

    Multipliers are in units of the root mean square of pages' rewards so far: nothing depends on the reward's scale.

    Attributes:
        names: Of the m limits: "ad_load", "share.PROVIDER".
        columns: Where the catalog's vectors say that an item is that provider's; None for the ad load.
        sign: 1 for the ad load, which is to be at most so much, -1 for shares, shape (m,).
        limits: Largest ad load, least shares, shape (m,).
        multipliers: What the next rollout pays, at least 0, shape (m,).
        integral: The part of them that lasts, at least 0, shape (m,).
        square: Mean square of the pages' rewards, shape ().
        count: Pages seen, shape ().
    """

    limits: Tensor
    multipliers: Tensor
    integral: Tensor
    square: Tensor
    count: Tensor
    sign: Tensor
    _belongs: Tensor

    def __init__(self, constraints: Constraints, catalog: Catalog) -> None:
        """Find whose the items are.

        Raises:
            InputError: The catalog does not know a provider.
        """
        super().__init__()
        shares = constraints.shares
        ads = [] if constraints.ad_load is None else [constraints.ad_load]
        self.names = ["ad_load"] * len(ads) + [f"share.{share.provider}" for share in shares]
        columns = [column_of(share.provider, catalog) for share in shares]
        self.columns: list[int | None] = [None] * len(ads) + columns
        self._ads = len(ads)
        self.register_buffer("limits", torch.tensor([*ads, *(share.least for share in shares)]))
        for name in ("multipliers", "integral"):
            self.register_buffer(name, torch.zeros(len(self.names)))
        for name in ("square", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        belongs = np.zeros((len(shares), len(catalog) + 1), np.bool_)  # the last is an empty slot
        belongs[:, :-1] = catalog.vectors[:, columns].T > 0
        self.register_buffer("_belongs", torch.from_numpy(belongs), persistent=False)
        sign = torch.ones(len(self.names))
        sign[self._ads :] = -1.0  # a share is to be at least so much
        self.register_buffer("sign", sign, persistent=False)

    def counts(self, decision: Decision[Tensor]) -> Tensor:
        """Return each page's part in both sums of each ratio, shape (2, m, B); impressions count as 1 / K, ads too."""
        slate = decision.slate
        full = torch.ones_like(slate[:, 0], dtype=torch.float32)
        ads = torch.zeros_like(full) if decision.ad is None else (decision.ad != EMPTY).float()
        own = self._belongs[:, slate].float().mean(2)
        shown = (slate != EMPTY).float().mean(1)
        amounts = torch.cat([ads.expand(self._ads, -1), own])
        return torch.stack([amounts, torch.cat([full.expand(self._ads, -1), shown.expand(len(own), -1)])])

    def penalty(self, counts: Tensor) -> Tensor:
        """Return what pages pay, negative where they make up for others, in units of reward, shape (B,)."""
        amounts, bases = counts
        price = self.multipliers * self.sign * self.square.sqrt().float()
        return torch.mv((amounts - self.limits[:, None] * bases).T, price)

    def update(self, counts: Tensor, rewards: npt.NDArray[np.float32]) -> dict[str, float]:
        """Move the prices after a rollout.

        Args:
            counts: Both sums over its pages, shape (2, m).
            rewards: Its pages' rewards without penalties, any shape.

        Returns:
            For the logger, by name: the measured ratio, by how much it breaks the limit, and the new multiplier.
        """
        amounts, bases = counts
        measured = amounts / bases.clamp(min=1e-9)
        excess = self.sign * (measured - self.limits)
        step = excess.clamp(-LARGEST, LARGEST)
        self.integral = (self.integral + INTEGRAL * step).clamp(min=0.0)
        self.multipliers = (self.integral + PROPORTIONAL * step).clamp(min=0.0)
        total = self.count + rewards.size
        self.square = (self.square * self.count + float(np.square(rewards, dtype=np.float64).sum())) / total
        self.count = total
        told = torch.stack([measured, excess, self.multipliers], 1).tolist()
        rows = [zip(("", ".excess", ".multiplier"), row, strict=True) for row in told]
        return {name + part: value for name, row in zip(self.names, rows, strict=True) for part, value in row}


def items_of(provider: str, catalog: Catalog) -> npt.NDArray[np.bool_]:
    """Return which items of a catalog are a provider's, shape (I,), or refuse as ``column_of`` does."""
    own: npt.NDArray[np.bool_] = catalog.vectors[:, column_of(provider, catalog)] > 0
    return own


def column_of(provider: str, catalog: Catalog) -> int:
    """Return which entry of a catalog's vectors is 1 for a provider's items and 0 for others.

    Raises:
        InputError: The items have no providers, or none of this name; a catalog knows its 200 largest.
    """
    features = catalog.features
    known = features.categories.get(PROVIDER)
    if known is None:
        remedy = f"give the items table a text column {PROVIDER!r}"
        raise InputError("the items have no providers", where="constraints.shares", got=provider, remedy=remedy)
    if provider not in known:
        remedy = did_you_mean(provider, known)
        raise InputError("unknown provider", where="constraints.shares", got=provider, remedy=remedy)
    entries = [(name, value) for name, values in features.categories.items() for value in values]
    return len(features.numeric) + entries.index((PROVIDER, provider))
