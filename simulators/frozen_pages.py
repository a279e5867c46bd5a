"""Pages in the form that shopper models read once they learn no more: what members share is made once for all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from hawker.simulators.memory import clock_of


@dataclass(frozen=True)
class Page:
    """What n shoppers see; what there is not is None.

    Attributes:
        scaled: Scaled features, shape (n, D).
        at: Rows of the items in the tables, shape (n, K); 0 is an empty slot.
        shown: 1 where there is an item, shape (n, K).
        pair: Which two items are on the page together, see ``FrozenView``, shape (n, pairs).
        affinity: With the items shown, shape (n, K).
        said: Rows of the lines in the tables, 0 for none, shape (n, K).
        offer: Tier of the page, among those that the models know, shape (n, 1).
        tier: As 1 at its place, shape (n, tiers).
        ad: 1 where the item is an ad, shape (n, K).
        believed: What classes of taste add to the log-odds of clicks, of clicks of anybody with these features, and of
            purchases, shape (n, K, heads).
    """

    scaled: Tensor
    at: Tensor
    shown: Tensor
    pair: Tensor | None
    affinity: Tensor | None
    said: Tensor | None
    offer: Tensor | None
    tier: Tensor | None
    ad: Tensor | None
    believed: Tensor | None = None

    def of(self, some: slice | Tensor) -> Page:
        """Return the pages of some of the shoppers."""
        taken: list[Any] = [None if part is None else part[some] for part in _parts(self)]
        return Page(*taken)


@dataclass(frozen=True)
class Carried:
    """What n shoppers bring to a page.

    Attributes:
        memory: What their members remember, counts left out, shape (n, H); zeros before the first page.
        counts: Visits, days and pages, shape (n, 3).
        totals: The counts as the memory's readable form has them, shape (n, 3).
        share: What the mean surprise is of their sum, shape (n, 1).
        new: 1 before the first page, else 0, shape (n, 1).
        gap: Days since the page before, shape (n, 1).
        clock: As features, with the page's number in its visit, shape (n, CLOCK).
    """

    memory: Tensor
    counts: Tensor
    totals: Tensor
    share: Tensor
    new: Tensor
    gap: Tensor
    clock: Tensor

    @classmethod
    def read(cls, memory: Tensor, counts: Tensor, gap: Tensor, number: Tensor) -> Carried:
        """Return what is carried, from ``memory`` and ``counts`` as above, ``gap`` (n,) and ``number`` (n,)."""
        new = (counts[:, 2:] == 0).to(counts.dtype)
        return cls(memory, counts, *readable_counts(counts), new, gap[:, None], clock_of(gap, number))

    def of(self, some: slice | Tensor) -> Carried:
        """Return what some of the shoppers bring."""
        return Carried(*(part[some] for part in _parts(self) if part is not None))


@dataclass(frozen=True)
class Came:
    """How n shoppers answered a page, in the form that their members' memories read.

    Attributes:
        clicked, converted: 1 where an item was, shape (n, K).
        sums: Over the page: items shown, clicks, purchases, revenue, the ad, its click, and both counts by tier.
        counts, totals, share: As in ``Carried``, after the page.
        clock: Of the page.
    """

    clicked: Tensor
    converted: Tensor
    sums: Tensor
    counts: Tensor
    totals: Tensor
    share: Tensor

    @classmethod
    def read(
        cls, page: Page, carried: Carried, clicked: Tensor, converted: Tensor, revenue: Tensor | None, tiers: int
    ) -> Came:
        """Return it from what came of a page; ``tiers`` is how many offers the models know, none included."""
        n = len(clicked)
        filled, clicks = page.shown.sum(1, keepdim=True) / 8, clicked.sum(1, keepdim=True)
        zero = torch.zeros_like(clicks)
        earned = zero if revenue is None else revenue.log1p().sum(1, keepdim=True) / 4
        ads = (zero, zero)
        if page.ad is not None:
            ads = (page.ad.sum(1, keepdim=True), (page.ad * clicked).sum(1, keepdim=True))
        tier = page.tier
        if tier is None:
            tier = nn.functional.pad(clicks.new_ones(n, 1), (0, tiers - 1))
        bought = converted.sum(1, keepdim=True)
        sums = torch.cat([filled, clicks, bought, earned, *ads, tier * filled, tier * clicks], 1)
        seen = torch.cat([carried.clock[:, :1], carried.gap, torch.ones_like(clicks)], 1)
        counts = carried.counts + seen
        return cls(clicked, converted, sums, counts, *readable_counts(counts))

    def of(self, some: slice | Tensor) -> Came:
        """Return how some of the shoppers answered."""
        return Came(*(part[some] for part in _parts(self) if part is not None))


def readable_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return visits, days and their rate as ``Memory.readable`` has them (n, 3), and 1 / (2 + pages / 8), (n, 1)."""
    visits, days, pages = counts.unbind(1)
    rate = (visits + 0.5).log() - (days + 7.0).log()
    totals = torch.stack([visits.log1p() / 2.0, days.log1p() / 3.0, rate / 2.0], 1)
    return totals, (2.0 + pages / 8.0).reciprocal()[:, None]


def _parts(value: Page | Carried | Came) -> list[Tensor | None]:
    return [getattr(value, field.name) for field in fields(value)]
