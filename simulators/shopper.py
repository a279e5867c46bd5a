"""A learned shopper: from history, a shopper's features and a page to clicks, purchases, leaving and coming back."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.lines import Lines
from hawker.simulators.appeal import CLICKS_ALONE, Appeal, Architecture, InView, Recorded
from hawker.simulators.layers import Linear, first_weights
from hawker.simulators.memory import OTHER_SURPRISES, TOLD, Leave, Memory, Return
from hawker.simulators.rows import Rows
from hawker.simulators.taste_classes import TasteClasses
from hawker.simulators.taste_rows import believing

HEADS = ("click", "conversion", "leave", "return")
"""What is calibrated, in the order of ``Ensemble.calibration``."""

HEARD_SCALE = 12.0
"""Brings what lines do to log-odds, tenths, to the size of other inputs."""


class ShopperModel(nn.Module):
    """One member: P(click) = P(examined | position) x P(click | examined, history, shopper, item and its page).

    Where there are classes of taste, a member's log-odds of clicks and of purchases are what it adds to theirs, which
    rows bring along (``Rows.believed``). Further heads, where the log records what they need: a purchase after a click,
    its worth, the end of the visit, and the days until the next one.

    References:
        Position-based click model: Craswell et al. (2008), An Experimental Comparison of Click Position-Bias Models.

    Attributes:
        line_vectors: Scaled vectors of the lines that are understood, those of the log first, shape (L, w), or None.
        logged_lines: How many of them the log shows.
    """

    item_vectors: Tensor
    shopper_centre: Tensor
    shopper_spread: Tensor
    log_price: Tensor
    line_vectors: Tensor | None
    line_effects: Tensor

    def __init__(
        self,
        builder: ContextBuilder,
        size: int,
        architecture: Architecture,
        ctr: float,
        generator: torch.Generator,
        recorded: Recorded = CLICKS_ALONE,
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
        self.logged_lines = 0 if lines is None else len(lines)
        self.register_buffer("log_price", torch.from_numpy(_log_price(builder)))
        person = builder.shopper.width + (TOLD if recorded.timeline else 0)
        self.position = nn.Parameter(torch.zeros(size))
        self.click = Appeal(person, builder, lines, recorded, architecture, ctr)
        self.in_view = InView(builder) if recorded.rows > 1 else None
        self.conversion = Appeal(person, builder, lines, recorded, architecture, 0.1) if recorded.conversions else None
        self.match = nn.Parameter(torch.zeros(2)) if recorded.conversions else None
        if recorded.revenue:
            self.amount = nn.Parameter(torch.zeros(recorded.offers))
            self.amount_item = Linear(catalog.width, 1)
            self.amount_log_spread = nn.Parameter(torch.zeros(()))
        self.memory = None
        self.leave = self.back = None
        if recorded.timeline:
            # What entries of a line's vector do to clicks and purchases, see ``hear``.
            effects = torch.zeros(1 + recorded.conversions, 0 if lines is None else lines.vectors.shape[1])
            line_width = 0 if lines is None else len(effects)
            self.register_buffer("line_effects", effects)
            surprises = OTHER_SURPRISES + architecture.hidden * (1 if lines is None else 2)
            self.memory = Memory(builder, line_width, recorded.offers, size, architecture.memory, surprises)
            self.leave = Leave(self.memory.readable_width + 1)
            if recorded.returns:
                self.back = Return(self.memory.readable_width)
        first_weights(self, generator)

    @property
    def heads(self) -> list[Appeal]:
        """The heads of clicks and, where there are any, of purchases."""
        return [head for head in (self.click, self.conversion) if head is not None]

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
        return odds if rows.believed is None else odds + rows.believed[:, 0]

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
        own, wishes = self._apart(person)
        found: Tensor = self.conversion(own, rows, self.item_vectors, self.line_vectors, keep_own)
        # What is liked is bought: clicks, which are many, say most about purchases, which are few. What is said of an
        # item and how it is shown need not do to purchases what they do to clicks.
        with torch.no_grad():
            plain = replace(rows, line=None, offer=None, ad=None)
            liked = self.click(own, plain, self.item_vectors, self.line_vectors, keep_own, wishes) - self.click.base
            rest = odds - self.click.base - liked
            if rows.believed is not None:
                rest = rest - rows.believed[:, 0]
        bought: Tensor = found + self.match[0] * liked + self.match[1] * rest
        return bought if rows.believed is None else bought + rows.believed[:, 1]

    def wish(self, person: Tensor) -> Tensor:
        """Return what each shopper likes, for products with ``click.items``, shape (P, h + 1)."""
        person, wishes = self._apart(person)
        return self.click.wish(person, wishes)

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

    def heard(self, lines: Tensor) -> Tensor:
        """Return what the memory reads of lines with these scaled vectors (L, w), shape (L, 1) or (L, 2).

        Not their texts, but what they do to clicks and to purchases, mean of the classes of taste, beside any line at
        all: clicks, which are many, tell which lines are alike, and what such lines do later is learned from all of
        them together. With more to tell them apart by, what is learned of most lines is noise, which a strategy that
        picks the best of many finds.
        """
        return HEARD_SCALE * nn.functional.linear(lines, self.line_effects)

    def hear(self, tastes: TasteClasses) -> None:
        """Take from classes of taste what lines do, for ``heard``."""
        with torch.no_grad():
            self.line_effects.copy_(tastes.line_effects())

    def summary(self, rows: Rows, keep_own: Tensor | None = None) -> Tensor:
        """Return what the memory reads of pages that were answered, shape (P, width)."""
        assert self.memory is not None
        heard = None if self.line_vectors is None else self.heard(self.line_vectors)
        read = self.memory.summary(rows, self.item_vectors, heard, keep_own)
        anybody = nn.functional.pad(self.scaled(rows.shopper), (0, TOLD + self.memory.wishes))
        clicked = rows.clicked
        bought = torch.zeros_like(clicked) if rows.converted is None else rows.converted.nan_to_num()
        with torch.no_grad():
            # Expected of an item by itself: what else its page shows matters little here, and costs much.
            odds = self.click(self._apart(anybody)[0], rows, self.item_vectors, self.line_vectors, keep_own)
            odds = odds if rows.believed is None else odds + rows.believed[:, 0]
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
        summed = weighted.new_zeros(rows.shopper.shape[0], weighted.shape[1]).index_add(0, rows.page, weighted)
        surprises = self.memory.surprises + likely.shape[1]
        return torch.cat([summed[:, :surprises], read, summed[:, surprises:]], 1)

    def forward(
        self,
        shopper: Tensor,
        slate: Tensor,
        affinity: Tensor,
        state: Tensor | None = None,
        believed: Tensor | None = None,
    ) -> Tensor:
        """Return P(click) at each position of a slate, shape (B, K); 0 in an empty slot.

        Args:
            shopper: Encoded shopper features, shape (B, D).
            slate: Catalog indices, shape (B, K), in order of position.
            affinity: Affinity with those items, shape (B, K).
            state: State before the page, shape (B, H); None for new shoppers.
            believed: What classes of taste expect, see ``Rows``, shape (B * K, 2); None without them.
        """
        rows = replace(slate_rows(shopper, slate, affinity), believed=believed)
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
        calibration: For each of ``HEADS`` a, b, c, m of its recalibration, see ``recalibrated``; shape (4, 4).
        tastes: Classes of taste, to which the members add; None where nobody is seen on more than one page.
    """

    calibration: Tensor
    tastes: TasteClasses | None

    def __init__(self, members: list[ShopperModel], calibration: Tensor, tastes: TasteClasses | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("calibration", calibration)
        self.tastes = tastes

    @property
    def models(self) -> list[ShopperModel]:
        """The members, typed."""
        return [member for member in self.members if isinstance(member, ShopperModel)]

    def with_lines(self, vectors: Tensor) -> Ensemble:
        """Return a copy that also understands lines with these scaled vectors (L, w), numbered on from those it knows.

        Raises:
            ValueError: It was fitted without lines.
        """
        ensemble = copy.deepcopy(self)
        readers: list[ShopperModel | TasteClasses] = [*ensemble.models]
        for reader in readers if ensemble.tastes is None else [*readers, ensemble.tastes]:
            if reader.line_vectors is None or not reader.logged_lines:
                raise ValueError("shoppers who have seen no lines understand none")
            reader.line_vectors = torch.cat([reader.line_vectors, vectors.to(reader.line_vectors)])
        return ensemble

    def raw(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return the members' P(click) for new shoppers before calibration, (M, B, K); arguments as in ``forward``."""
        believed = believing(self.tastes, slate_rows(shopper, slate, affinity)).believed
        return torch.stack([member(shopper, slate, affinity, None, believed) for member in self.members])

    def forward(self, shopper: Tensor, slate: Tensor, affinity: Tensor) -> Tensor:
        """Return the members' calibrated P(click) for new shoppers, shape (M, B, K); 0 in an empty slot.

        Arguments as in ``ShopperModel``.
        """
        probability = calibrated(self.raw(shopper, slate, affinity), self.calibration[0])
        return probability.masked_fill(slate == EMPTY, 0.0)


IDENTITY = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * len(HEADS))
"""A calibration that changes nothing."""


def calibrated(probability: Tensor, calibration: Tensor) -> Tensor:
    """Map probabilities as ``recalibrated`` maps their log-odds."""
    return recalibrated(log_odds(probability), calibration).sigmoid()


def recalibrated(odds: Tensor, calibration: Tensor) -> Tensor:
    """Map log-odds z to a + b z + c max(z - m, 0), with ``calibration`` = (a, b, c, m).

    A line with a bend at m (without one: Platt, 1999).
    """
    a, b, c, m = calibration.unbind()
    return torch.addcmul(torch.addcmul(a, odds, b), (odds - m).clamp_(min=0.0), c)


def log_odds(probability: Tensor) -> Tensor:
    """Return the log-odds of probabilities, finite at 0 and 1 too."""
    return probability.clamp(1e-7, 1 - 1e-6).logit()
