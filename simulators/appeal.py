"""What draws shoppers to an item: the parts of which a shopper model's heads for clicks and purchases are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.lines import Lines
from hawker.simulators.layers import Linear, tower
from hawker.simulators.rows import Rows


@dataclass(frozen=True)
class Architecture:
    """What the members of an ensemble differ in, beside their data.

    Attributes:
        hidden: Width of the taste vectors of shoppers and items.
        depth: 1 for linear taste vectors, 2 for one hidden layer.
        memory: Width of the state over pages and visits.
    """

    hidden: int
    depth: int
    memory: int = 32


ARCHITECTURES = (
    Architecture(8, 1, 32),
    Architecture(16, 2, 48),
    Architecture(4, 1, 24),
    Architecture(8, 2, 32),
    Architecture(16, 1, 48),
)
"""Taken in turn by the members of an ensemble; the judge starts at another one."""


@dataclass(frozen=True)
class Recorded:
    """What a log records, and so what shoppers can learn from it.

    Attributes:
        rows: Most items that one page shows.
        conversions: Whether purchases are known.
        revenue: Whether a purchase's worth is known.
        offers: Discount tiers, 0 (none) included.
        ads: Whether some items are ads.
        timeline: Whether shoppers are seen on more than one page.
        returns: Whether some visit was followed by another.
    """

    rows: int = 1
    conversions: bool = False
    revenue: bool = False
    offers: int = 1
    ads: bool = False
    timeline: bool = False
    returns: bool = False

    @classmethod
    def of(cls, rows: Rows) -> Recorded:
        """Say what these rows record."""
        time = rows.time
        counts = torch.bincount(rows.page, minlength=1)
        bought = rows.converted is not None and bool((rows.converted == 1).any())
        return cls(
            rows=int(counts.max()),
            conversions=bought,
            revenue=bought and rows.revenue is not None and bool((rows.revenue > 0).any()),
            offers=1 if rows.offer is None else int(rows.offer.max()) + 1,
            ads=rows.ad is not None,
            timeline=time is not None,
            returns=time is not None and bool((time.returned == 1).any()),
        )


CLICKS_ALONE = Recorded()
"""What a log of single impressions records."""


class Appeal(nn.Module):
    """The log-odds that a person answers an item: one head of this kind for clicks, another for purchases.

    They are the sum of: a constant, effects of the person's features and state, effects of the item's features and of
    the item itself, recorded affinity, the product of two taste vectors, and likewise for the line of copy, the offer
    and being an ad. An item's own effect and taste are dropped out in training, so that a new item is judged by its
    features.
    """

    def __init__(
        self,
        person: int,
        builder: ContextBuilder,
        lines: Lines | None,
        recorded: Recorded,
        architecture: Architecture,
        rate: float,
    ) -> None:
        """Build an unfilled head; ``person`` is the width of features and state, ``rate`` the mean to start from."""
        super().__init__()
        n_items, hidden, width = len(builder.catalog), architecture.hidden, builder.catalog.width
        self.base = nn.Parameter(torch.tensor(np.log(rate / (1.0 - rate)), dtype=torch.float32))
        self.shopper_effect = Linear(person, 1, bias=False)
        self.item_effect = Linear(width, 1, bias=False)
        self.own_effect = nn.Embedding.from_pretrained(torch.zeros(n_items, 1), freeze=False)
        self.affinity_effect = nn.Parameter(torch.zeros(()))
        self.shopper_taste = tower(person, hidden, architecture.depth)
        self.item_taste = tower(width, hidden, architecture.depth)
        self.own_taste = nn.Embedding.from_pretrained(torch.zeros(n_items, hidden), freeze=False)
        if lines is not None:
            self.line_effect = Linear(lines.vectors.shape[1], 1)  # its bias: the effect of any line at all
            self.line_taste = Linear(lines.vectors.shape[1], hidden)
            self.shopper_line_taste = tower(person, hidden, architecture.depth)
        if recorded.offers > 1:
            self.offer_effect = nn.Parameter(torch.zeros(recorded.offers - 1))
            self.shopper_offer_taste = Linear(person, recorded.offers - 1, bias=False)
        if recorded.ads:
            self.ad_effect = nn.Parameter(torch.zeros(()))
            self.shopper_ad_taste = Linear(person, 1, bias=False)
        self._has_lines, self._has_offers, self._has_ads = lines is not None, recorded.offers > 1, recorded.ads

    def forward(
        self,
        person: Tensor,
        rows: Rows,
        item_vectors: Tensor,
        line_vectors: Tensor | None,
        keep_own: Tensor | None,
        wishes: Tensor | None = None,
    ) -> Tensor:
        """Return the log-odds of each row, shape (n,).

        Args:
            person: Scaled features and state of each page's shopper, shape (P, D).
            rows: What they were shown.
            item_vectors: Scaled vectors of all items, shape (n_items, width).
            line_vectors: Scaled vectors of all lines, shape (n_lines, width), or None.
            keep_own: 1 where an item's own vectors take part and 0 where they are dropped, shape (n_items,).
            wishes: What to add to each page's shopper's tastes, of items and then of lines, shape (P, h) or (P, 2 h).
        """
        page, item = rows.page, rows.item.clamp(min=0)
        taste, wish = self.items(item_vectors, keep_own), self.wish(person, wishes)
        odds: Tensor = self.base + self.shopper_effect(person).squeeze(1)[page] + self.affinity_effect * rows.affinity
        odds = odds + (wish[page] * taste[item]).sum(1)
        if self._has_lines and rows.line is not None:
            assert line_vectors is not None
            taste = torch.cat([self.line_taste(line_vectors), self.line_effect(line_vectors)], 1)
            liking = self.shopper_line_taste(person)
            if wishes is not None:
                liking = liking + wishes[:, -liking.shape[1] :]
            wish = nn.functional.pad(liking, (0, 1), value=1.0)
            said = (wish[page] * taste[rows.line.clamp(min=0)]).sum(1)
            odds = odds + said.masked_fill(rows.line < 0, 0.0)
        if self._has_offers and rows.offer is not None:
            tier = nn.functional.pad(self.offer_effect + self.shopper_offer_taste(person), (1, 0))
            odds = odds + tier[page, rows.offer]
        if self._has_ads and rows.ad is not None:
            odds = odds + rows.ad * (self.ad_effect + self.shopper_ad_taste(person).squeeze(1)[page])
        return odds

    def items(self, item_vectors: Tensor, keep_own: Tensor | None = None) -> Tensor:
        """Return what ``wish`` is multiplied by of every item, shape (n_items, h + 1); arguments as in ``forward``."""
        own_effect, own_taste = self.own_effect.weight, self.own_taste.weight
        if keep_own is not None:
            own_effect, own_taste = own_effect * keep_own[:, None], own_taste * keep_own[:, None]
        # An effect rides along as one more entry of a taste vector that everybody multiplies by 1.
        return torch.cat([self.item_taste(item_vectors) + own_taste, self.item_effect(item_vectors) + own_effect], 1)

    def wish(self, person: Tensor, wishes: Tensor | None = None) -> Tensor:
        """Return what ``items`` are multiplied by for each person, shape (P, h + 1); arguments as in ``forward``."""
        liking: Tensor = self.shopper_taste(person)
        if wishes is not None:
            liking = liking + wishes[:, : liking.shape[1]]
        return nn.functional.pad(liking, (0, 1), value=1.0)

    def tastes(self, rows: Rows, item_vectors: Tensor, line_vectors: Tensor | None, keep_own: Tensor | None) -> Tensor:
        """Return the taste vectors of each row's item and, where there are lines, of its line: (n, h) or (n, 2 h)."""
        own = self.own_taste.weight if keep_own is None else self.own_taste.weight * keep_own[:, None]
        item: Tensor = (self.item_taste(item_vectors) + own)[rows.item.clamp(min=0)]
        if not self._has_lines:
            return item
        if rows.line is None or line_vectors is None:
            return torch.cat([item, torch.zeros_like(item)], 1)
        line = self.line_taste(line_vectors)[rows.line.clamp(min=0)] * (rows.line >= 0)[:, None]
        return torch.cat([item, line], 1)


class InView(nn.Module):
    """What the rest of the page does to an item: how many items above and below it are alike, and in what.

    Alike are items with the same value of a categorical feature, one effect per feature; and items whose vectors point
    the same way, by their cosine.
    """

    kinds: Tensor
    vectors: Tensor

    def __init__(self, builder: ContextBuilder) -> None:
        super().__init__()
        catalog = builder.catalog
        start, blocks = len(catalog.features.numeric), []
        for known in catalog.features.categories.values():
            blocks.append(catalog.vectors[:, start : start + len(known)])
            start += len(known)
        centred = (catalog.vectors - catalog.centre) / catalog.spread
        blocks.append(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6))
        self._widths = [block.shape[1] for block in blocks]
        self.register_buffer("vectors", torch.from_numpy(np.concatenate(blocks, 1).astype(np.float32)))
        self.above = nn.Parameter(torch.zeros(len(blocks)))
        self.below = nn.Parameter(torch.zeros(len(blocks)))

    def forward(self, rows: Rows, size: int) -> Tensor:
        """Return the effect on the log-odds of each row, shape (n,)."""
        own = self.vectors[rows.item.clamp(min=0)] * (rows.item != EMPTY)[:, None]
        place = rows.page * size + rows.position
        laid = own.new_zeros(len(rows.shopper) * size, own.shape[1]).index_copy(0, place, own)
        laid = laid.reshape(-1, size, own.shape[1])
        above = laid.cumsum(1) - laid
        below = laid.sum(1, keepdim=True) - laid - above
        effect = own.new_zeros(len(own))
        for others, weights in ((above, self.above), (below, self.below)):
            alike = own * others.reshape(-1, own.shape[1])[place]
            for part, weight in zip(alike.split(self._widths, 1), weights.unbind(), strict=True):
                effect = effect + weight * part.sum(1)
        return effect
