"""A learned shopper: from history, a shopper's features and a page to clicks, purchases, leaving and coming back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.lines import Lines
from hawker.simulators.layers import Linear, first_weights, tower
from hawker.simulators.memory import OTHER_SURPRISES, TOLD, Leave, Memory, Return
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

HEADS = ("click", "conversion", "leave", "return")
"""What is calibrated, in the order of ``Ensemble.calibration``."""


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
        own_effect, own_taste = self.own_effect.weight, self.own_taste.weight
        if keep_own is not None:
            own_effect, own_taste = own_effect * keep_own[:, None], own_taste * keep_own[:, None]
        page, item = rows.page, rows.item.clamp(min=0)
        # An effect rides along as one more entry of a taste vector that everybody multiplies by 1.
        taste = torch.cat([self.item_taste(item_vectors) + own_taste, self.item_effect(item_vectors) + own_effect], 1)
        liking = self.shopper_taste(person)
        hidden = liking.shape[1]
        if wishes is not None:
            liking = liking + wishes[:, :hidden]
        wish = nn.functional.pad(liking, (0, 1), value=1.0)
        odds: Tensor = self.base + self.shopper_effect(person).squeeze(1)[page] + self.affinity_effect * rows.affinity
        odds = odds + (wish[page] * taste[item]).sum(1)
        if self._has_lines and rows.line is not None:
            assert line_vectors is not None
            taste = torch.cat([self.line_taste(line_vectors), self.line_effect(line_vectors)], 1)
            liking = self.shopper_line_taste(person)
            if wishes is not None:
                liking = liking + wishes[:, hidden:]
            wish = nn.functional.pad(liking, (0, 1), value=1.0)
            said = (wish[page] * taste[rows.line.clamp(min=0)]).sum(1)
            odds = odds + said.masked_fill(rows.line < 0, 0.0)
        if self._has_offers and rows.offer is not None:
            tier = nn.functional.pad(self.offer_effect + self.shopper_offer_taste(person), (1, 0))
            odds = odds + tier[page, rows.offer]
        if self._has_ads and rows.ad is not None:
            odds = odds + rows.ad * (self.ad_effect + self.shopper_ad_taste(person).squeeze(1)[page])
        return odds

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


class ShopperModel(nn.Module):
    """One member: P(click) = P(examined | position) x P(click | examined, history, shopper, item and its page).

    Further heads, where the log records what they need: a purchase after a click, its worth, the end of the visit,
    and the days until the next one.

    References:
        Position-based click model: Craswell et al. (2008), An Experimental Comparison of Click Position-Bias Models.
    """

    item_vectors: Tensor
    shopper_centre: Tensor
    shopper_spread: Tensor
    log_price: Tensor
    line_vectors: Tensor | None

    def __init__(
        self,
        builder: ContextBuilder,
        size: int,
        architecture: Architecture,
        ctr: float,
        generator: torch.Generator,
        recorded: Recorded = Recorded(),
        lines: Lines | None = None,
    ) -> None:
        """Build an untrained member that predicts about ``ctr`` everywhere.

        Args:
            builder: The shop's contexts and catalog.
            size: Positions of a page, K.
            architecture: Widths and depth.
            ctr: Click rate to start from, in (0, 1).
            generator: Source of the first weights.
            recorded: Which heads and inputs there are.
            lines: The bank of lines that pages may show.
        """
        super().__init__()
        catalog = builder.catalog
        self.size, self.recorded = size, recorded
        vectors = (catalog.vectors - catalog.centre) / catalog.spread
        self.register_buffer("item_vectors", torch.from_numpy(vectors))
        self.register_buffer("shopper_centre", torch.from_numpy(np.array(builder.shopper.centre)))
        self.register_buffer("shopper_spread", torch.from_numpy(np.array(builder.shopper.spread)))
        self.register_buffer("line_vectors", None if lines is None else torch.from_numpy(lines.scaled))
        self.register_buffer("log_price", torch.from_numpy(_log_price(builder)))
        person = builder.shopper.width + (TOLD if recorded.timeline else 0)
        self.position = nn.Parameter(torch.zeros(size))
        self.click = Appeal(person, builder, lines, recorded, architecture, ctr)
        self.in_view = InView(builder) if recorded.rows > 1 else None
        self.conversion = Appeal(person, builder, lines, recorded, architecture, 0.1) if recorded.conversions else None
        self.match = nn.Parameter(torch.zeros(())) if recorded.conversions else None
        if recorded.revenue:
            self.amount = nn.Parameter(torch.zeros(recorded.offers))
            self.amount_item = Linear(catalog.width, 1)
            self.amount_log_spread = nn.Parameter(torch.zeros(()))
        self.memory = None
        self.leave = self.back = None
        if recorded.timeline:
            line_width = 0 if lines is None else lines.vectors.shape[1]
            surprises = OTHER_SURPRISES + architecture.hidden * (1 if lines is None else 2)
            self.memory = Memory(builder, line_width, recorded.offers, size, architecture.memory, surprises)
            self.leave = Leave(self.memory.readable_width + 1)
            if recorded.returns:
                self.back = Return(self.memory.readable_width)
        first_weights(self, generator)

    def scaled(self, shopper: Tensor) -> Tensor:
        """Return shopper features (B, D) centred and scaled."""
        return (shopper - self.shopper_centre) / self.shopper_spread

    def person(self, shopper: Tensor, state: Tensor | None) -> Tensor:
        """Return what the heads see of shoppers: scaled features (B, D) and, where there is one, state (B, H)."""
        shopper = self.scaled(shopper)
        if self.memory is None:
            return shopper
        if state is None:
            state = self.memory.before(self.memory.start(shopper), None)
        return torch.cat([shopper, state], 1)

    def _apart(self, person: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take wishes, which only tastes of clicks know what to do with, from what heads see."""
        if self.memory is None:
            return person, None
        return person[:, : -self.memory.wishes], person[:, -self.memory.wishes :]

    def log_odds(self, person: Tensor, rows: Rows, keep_own: Tensor | None = None) -> Tensor:
        """Return the log-odds of a click given examination, shape (n,).

        Args:
            person: What ``person`` returned, shape (P, D + H).
            rows: What was shown.
            keep_own: 1 where an item's own vectors take part and 0 where they are dropped, shape (n_items,).
        """
        person, wishes = self._apart(person)
        odds: Tensor = self.click(person, rows, self.item_vectors, self.line_vectors, keep_own, wishes)
        if self.in_view is not None:
            odds = odds + self.in_view(rows, self.size)
        return odds

    def log_examination(self) -> Tensor:
        """Return the log-probability that each position is looked at, shape (K,); the best position has 0."""
        return self.position - self.position.max()

    def log_click(self, odds: Tensor, rows: Rows) -> Tensor:
        """Return log P(click) of each row, shape (n,), from what ``log_odds`` returned."""
        return nn.functional.logsigmoid(odds) + self.log_examination()[rows.position]

    def conversion_odds(self, person: Tensor, rows: Rows, odds: Tensor, keep_own: Tensor | None = None) -> Tensor:
        """Return the log-odds of a purchase given a click, shape (n,); arguments as in ``log_odds``, and its result."""
        assert self.conversion is not None
        assert self.match is not None
        person, _ = self._apart(person)
        found: Tensor = self.conversion(person, rows, self.item_vectors, self.line_vectors, keep_own)
        # What is liked is bought: clicks, which are many, say most about purchases, which are few.
        return found + self.match * (odds - self.click.base).detach()

    @property
    def amount_spread(self) -> Tensor:
        """The logarithm of the standard deviation of a purchase's log-worth, at least -4, a scalar."""
        return self.amount_log_spread.clamp(min=-4.0)

    def log_amount(self, rows: Rows) -> Tensor:
        """Return the mean logarithm of a purchase's worth, shape (n,)."""
        item = rows.item.clamp(min=0)
        tier = self.amount[0] if rows.offer is None else self.amount[rows.offer]
        worth: Tensor = tier + (self.log_price + self.amount_item(self.item_vectors).squeeze(1))[item]
        return worth

    def leave_odds(self, after: Tensor, number: Tensor) -> Tensor:
        """Return the log-odds that the visit ends, shape (B,), from what is carried on from a page and its number."""
        assert self.memory is not None
        assert self.leave is not None
        odds: Tensor = self.leave(torch.cat([self.memory.readable(after), number.log1p()[:, None]], 1)).squeeze(1)
        return odds

    def return_odds(self, after: Tensor) -> Tensor:
        """Return the log-odds of coming back on a day of each interval, if not before, shape (B, intervals)."""
        assert self.memory is not None
        assert self.back is not None
        odds: Tensor = self.back(self.memory.readable(after))
        return odds

    def summary(self, rows: Rows, keep_own: Tensor | None = None) -> Tensor:
        """Return what the memory reads of pages that were answered, shape (P, width)."""
        assert self.memory is not None
        read = self.memory.summary(rows, self.item_vectors, self.line_vectors, keep_own)
        anybody = nn.functional.pad(self.scaled(rows.shopper), (0, TOLD + self.memory.wishes))
        clicked = rows.clicked
        bought = torch.zeros_like(clicked) if rows.converted is None else rows.converted.nan_to_num()
        with torch.no_grad():
            # Expected of an item by itself: what else its page shows matters little here, and costs much.
            odds = self.click(self._apart(anybody)[0], rows, self.item_vectors, self.line_vectors, keep_own)
            surprise = (clicked - self.log_click(odds, rows).exp()) * (rows.item != EMPTY)
            excess = odds - self.click.base
            liked = torch.stack([excess * clicked, excess.tanh() * clicked, excess * bought, excess.tanh() * bought], 1)
        tastes = self.click.tastes(rows, self.item_vectors, self.line_vectors, keep_own)
        by_class = odds[:, None] + tastes @ self.memory.class_tastes.T
        seen = by_class.sigmoid() * self.log_examination().detach().exp()[rows.position][:, None]
        likely = torch.where(clicked[:, None] > 0, seen, 1 - seen).clamp(min=1e-6).log()
        likely = (likely - likely.mean(1, keepdim=True)) * (rows.item != EMPTY)[:, None]
        met = (tastes * clicked[:, None], tastes * bought[:, None])
        weighted = torch.cat([tastes * surprise[:, None], surprise[:, None], likely, liked, *met], 1)
        summed = weighted.new_zeros(len(rows.shopper), weighted.shape[1]).index_add(0, rows.page, weighted)
        surprises = self.memory.surprises + likely.shape[1]
        return torch.cat([summed[:, :surprises], read, summed[:, surprises:]], 1)

    def forward(self, shopper: Tensor, slate: Tensor, affinity: Tensor, state: Tensor | None = None) -> Tensor:
        """Return P(click) at each position of a slate, shape (B, K); 0 in an empty slot.

        Args:
            shopper: Encoded shopper features, shape (B, D).
            slate: Catalog indices, shape (B, K), in order of position.
            affinity: Affinity with those items, shape (B, K).
            state: State before the page, shape (B, H); None for new shoppers.
        """
        rows = slate_rows(shopper, slate, affinity)
        probability = self.log_click(self.log_odds(self.person(shopper, state), rows), rows).exp()
        return probability.reshape(slate.shape).masked_fill(slate == EMPTY, 0.0)


def slate_rows(shopper: Tensor, slate: Tensor, affinity: Tensor) -> Rows:
    """Return pages of B slates (B, K) as rows, empty slots included, top to bottom and page by page."""
    n, size = slate.shape
    return Rows(
        shopper,
        page=torch.arange(n, device=slate.device)[:, None].expand(n, size).reshape(-1),
        item=slate.reshape(-1),
        position=torch.arange(size, device=slate.device).expand(n, size).reshape(-1),
        affinity=affinity.reshape(-1),
        clicked=torch.zeros(n * size, device=slate.device),
    )


def _log_price(builder: ContextBuilder) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The logarithm of each item's price, 0 where the catalog has none."""
    features = builder.catalog.features
    if "price" not in features.numeric:
        return np.zeros(len(builder.catalog), np.float32)
    price = builder.catalog.vectors[:, features.numeric.index("price")]
    return np.log(np.maximum(price, 1e-2)).astype(np.float32)


class Ensemble(nn.Module):
    """Shopper models that differ in their data and architecture, calibrated together.

    Attributes:
        members: The models.
        calibration: For each of ``HEADS`` intercept a and slope b of its recalibration: log-odds z become a + b z;
            shape (4, 2).
    """

    calibration: Tensor

    def __init__(self, members: list[ShopperModel], calibration: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("calibration", calibration)

    @property
    def models(self) -> list[ShopperModel]:
        """The members, typed."""
        return [member for member in self.members if isinstance(member, ShopperModel)]

    def raw(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return the members' P(click) before calibration, shape (M, B, K); arguments as in ``ShopperModel``."""
        return torch.stack([member(shopper, slate, affinity) for member in self.members])

    def forward(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return the members' calibrated P(click) for new shoppers, shape (M, B, K); 0 in an empty slot."""
        probability = calibrated(self.raw(shopper, slate, affinity), self.calibration[0])
        return probability.masked_fill(slate == EMPTY, 0.0)


IDENTITY = torch.tensor([[0.0, 1.0]] * len(HEADS))
"""A calibration that changes nothing."""


def calibrated(probability: Tensor, calibration: Tensor) -> Tensor:
    """Map probabilities through log-odds z -> a + b z (Platt, 1999), with ``calibration`` = (a, b)."""
    return (calibration[0] + calibration[1] * log_odds(probability)).sigmoid()


def log_odds(probability: Tensor) -> Tensor:
    """Return the log-odds of probabilities, finite at 0 and 1 too."""
    return probability.clamp(1e-7, 1 - 1e-6).logit()
