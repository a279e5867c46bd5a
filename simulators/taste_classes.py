"""Latent classes of taste, between which shoppers move from visit to visit: what a shop believes of a shopper.

A hidden Markov model over visits whose emissions are the clicks and purchases of whole pages. It is small, and is
fitted to all shoppers at once by their marginal likelihood. The members of an ensemble add what they know to what it
believes (`hawker.simulators.taste_rows`), the shoppers of a learned world live in its classes, and
`hawker.simulators.reader.ReadWorld` tells strategies what it believes.

References:
    Zucchini, MacDonald and Langrock (2016), Hidden Markov Models for Time Series; Craswell et al. (2008), An
    Experimental Comparison of Click Position-Bias Models, for the clicks of a class.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.lines import Lines
from hawker.shop.reward import RewardSpec
from hawker.simulators.appeal import Recorded
from hawker.simulators.layers import Linear, apart

CLASSES = 6
"""Latent classes; a few too many cost little, since classes that are not needed become alike."""

LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""

FADES = ((0.6, 0.1), (0.9, 0.5))
"""What is left of what was seen a page later, and a visit later: at two speeds."""


class Utilities(NamedTuple):
    """What parts of a page add to the log-odds of each class.

    Attributes:
        item: Log-odds of each item said nothing of, shape (I, K).
        line: What each line adds, and 0 for none as the last, shape (L + 1, K).
        offer: What each tier adds, shape (T, K).
        ad: What being an ad adds, shape (K,).
    """

    item: Tensor
    line: Tensor
    offer: Tensor
    ad: Tensor


class ClassHead(nn.Module):
    """The log-odds of an answer, class by class: what all classes share, and what is their own."""

    def __init__(self, items: int, width: int, shopper: int, lines: int, offers: int, rate: float) -> None:
        """Args: how many ``items``, widths of vectors (theirs, ``shopper``, ``lines``), tiers, the rate at first."""
        super().__init__()
        self.base = nn.Parameter(torch.tensor(math.log(rate / (1.0 - rate))))
        self.shopper = Linear(shopper, 1, bias=False)
        self.item, self.item_class = Linear(width, 1, bias=False), Linear(width, CLASSES, bias=False)
        self.own, self.level = nn.Parameter(torch.zeros(items, 1)), nn.Parameter(torch.zeros(CLASSES))
        self.line, self.line_class = Linear(lines, 1), Linear(lines, CLASSES, bias=False)
        self.offer = nn.Parameter(torch.zeros(max(offers - 1, 0), CLASSES))
        self.ad = nn.Parameter(torch.zeros(CLASSES))

    def line_effect(self) -> Tensor:
        """Return what entries of a line's vector do to the log-odds, mean of the classes, shape (1, w)."""
        return self.line.weight + self.line_class.weight.mean(0, keepdim=True)

    def utilities(self, items: Tensor, lines: tuple[Tensor, ...]) -> Utilities:
        """Return what items and lines with these vectors, offers and being an ad do to the log-odds.

        Args:
            items: Shape (I, w).
            lines: Blocks of (L, v), see `hawker.simulators.layers.apart`.
        """
        item = self.base + self.level + self.item(items) + self.own + self.item_class(items)
        line = torch.cat([self.line(block) + self.line_class(block) for block in lines])
        return Utilities(
            item, nn.functional.pad(line, (0, 0, 0, 1)), nn.functional.pad(self.offer, (0, 0, 1, 0)), self.ad
        )


class TasteClasses(nn.Module):
    """What is believed of a shopper: a class for each visit, the same for all of its pages.

    Items have kinds, the values of their categorical features. How many items of a kind stand above and below, and how
    much of it was seen on earlier pages, changes what an item is worth to anybody.

    A shopper's state is one row: log-probabilities of the classes, then what was seen of every kind, (n, CLASSES + V).

    Attributes:
        line_vectors: Scaled vectors of the lines that are understood, those of the log first, shape (L, v).
        logged_lines: How many of them the log shows.
    """

    item_vectors: Tensor
    line_vectors: Tensor
    kinds: Tensor
    shopper_centre: Tensor
    shopper_spread: Tensor

    def __init__(
        self, builder: ContextBuilder, size: int, recorded: Recorded, lines: Lines | None, ctr: float, cvr: float
    ) -> None:
        """Build unfitted classes.

        Args:
            builder: The shop's contexts and catalog.
            size: Positions of a page.
            recorded: What the log records.
            lines: The bank of lines that it shows.
            ctr: Click rate to start from, in (0, 1).
            cvr: Purchases a click to start from, in (0, 1).
        """
        super().__init__()
        catalog, shopper = builder.catalog, builder.shopper
        vectors = (catalog.vectors - catalog.centre) / catalog.spread
        self.register_buffer("item_vectors", torch.from_numpy(vectors.astype(np.float32)))
        told = np.zeros((0, 1), np.float32) if lines is None else lines.scaled
        self.register_buffer("line_vectors", torch.from_numpy(np.array(told, np.float32)))
        self.logged_lines = len(told)
        self.register_buffer("shopper_centre", torch.from_numpy(np.array(shopper.centre, np.float32)))
        self.register_buffer("shopper_spread", torch.from_numpy(np.array(shopper.spread, np.float32)))
        kinds, self.values = _kinds(builder)
        self.register_buffer("kinds", torch.from_numpy(kinds))
        n_items, width = vectors.shape
        shape = (n_items, width, shopper.width, told.shape[1], recorded.offers)
        self.click = ClassHead(*shape, ctr)
        self.purchase = ClassHead(*shape, cvr) if recorded.conversions else None
        self.match = nn.Parameter(torch.zeros(()))
        self.position = nn.Parameter(torch.zeros(size))
        self.start = Linear(shopper.width, CLASSES, bias=False)
        self.share = nn.Parameter(torch.zeros(CLASSES))
        self.switch = nn.Parameter(torch.tensor(-3.0))
        blocks = kinds.shape[1]
        self.kinds_around = nn.Parameter(torch.zeros(2, blocks))  # above, below
        self.kinds_seen = nn.Parameter(torch.zeros(len(FADES), blocks))

    @property
    def width(self) -> int:
        """Entries of a shopper's state."""
        return CLASSES + len(FADES) * self.values

    def scaled(self, shopper: Tensor) -> Tensor:
        """Return shopper features (n, D) centred and scaled."""
        return (shopper - self.shopper_centre) / self.shopper_spread

    def utilities(self) -> tuple[Utilities, Utilities | None]:
        """Return what parts of a page do to clicks and, where there are any, to purchases after them.

        What is clicked is bought: ``match`` times what a part does to clicks is in what it does to purchases.
        """
        lines = apart(self.line_vectors, self.logged_lines)
        click = self.click.utilities(self.item_vectors, lines)
        if self.purchase is None:
            return click, None
        own = self.purchase.utilities(self.item_vectors, lines)
        liked = click._replace(item=click.item - self.click.base)
        return click, Utilities(*(part + self.match * more for part, more in zip(own, liked, strict=True)))

    def line_effects(self) -> Tensor:
        """Return what entries of a line's vector do to clicks and purchases, mean of the classes, (1 or 2, w)."""
        click = self.click.line_effect()
        if self.purchase is None:
            return click
        return torch.cat([click, self.purchase.line_effect() + self.match * click])

    def begin(self, scaled: Tensor) -> Tensor:
        """Return the state of new shoppers with scaled features (n, D), shape (n, width)."""
        classes = (self.start(scaled) + self.share).log_softmax(1)
        return nn.functional.pad(classes, (0, self.width - CLASSES))

    def beliefs(self, state: Tensor) -> Tensor:
        """Return the probabilities of the classes, shape (n, CLASSES)."""
        return state[:, :CLASSES].exp()

    def moved(self, classes: Tensor) -> Tensor:
        """Return log-probabilities of the classes (n, CLASSES) at the next visit."""
        stays, switch = self.switch.neg().sigmoid(), self.switch.sigmoid()
        return (stays * classes.exp() + switch * self.share.softmax(0)).clamp(min=1e-9).log()

    def seen(self, state: Tensor, items: Tensor) -> Tensor:
        """Return what pages seen before do to the log-odds of items (n, C), shape (n, C)."""
        kinds, effect = rows_of(self.kinds, items), 0.0
        for weights, seen in zip(self.kinds_seen, state[:, CLASSES:].split(self.values, 1), strict=True):
            for weight, kind in zip(weights, kinds.unbind(2), strict=True):
                effect = effect + weight * seen.gather(1, kind)
        return torch.zeros_like(items, dtype=state.dtype) + effect

    def around(self, slate: Tensor) -> Tensor:
        """Return what the rest of a page does to the log-odds of its items, shape (n, K); 0 in an empty slot."""
        return torch.einsum("nksb,sb->nk", self.alike(slate), self.kinds_around)

    def alike(self, slate: Tensor) -> Tensor:
        """Return how many items of its kinds stand above and below each item of slates (n, K), (n, K, 2, blocks)."""
        kinds = self.kinds[slate.clamp(min=0)]
        known = (kinds < self.values - 1) & (slate != EMPTY)[:, :, None]
        same = (kinds[:, :, None] == kinds[:, None]) & known[:, :, None] & known[:, None]
        above = torch.ones(slate.shape[1], slate.shape[1], device=slate.device).tril(-1)[:, :, None]
        same = same.to(self.position.dtype)
        return torch.stack([(same * above).sum(2), (same * above.transpose(0, 1)).sum(2)], 2)

    def shown(self, slate: Tensor) -> Tensor:
        """Return the share of every kind on slates (n, K), shape (n, values); 0 for the kind of what has none."""
        kinds, real = self.kinds[slate.clamp(min=0)], (slate != EMPTY).to(self.position.dtype) / slate.shape[1]
        share = real.new_zeros(len(slate), self.values)
        for kind in kinds.unbind(2):
            share = share.scatter_add(1, kind, real)
        return share * (torch.arange(self.values, device=slate.device) < self.values - 1)

    def page_odds(
        self, tables: tuple[Utilities, Utilities | None], scaled: Tensor, decision: Decision[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``log_odds`` of pages without what the page and earlier ones add, both (n, K, CLASSES).

        Args:
            tables: What ``utilities`` returned.
            scaled: Scaled features of the pages' shoppers, shape (n, D).
            decision: The pages.
        """
        slate = decision.slate
        n, size = slate.shape
        line = None if decision.copy is None else decision.copy.reshape(-1)
        offer = None if decision.offer is None else decision.offer[:, None].expand(-1, size).reshape(-1)
        slot, ad = torch.arange(size, device=slate.device), None
        if decision.ad is not None:
            ad = (decision.ad[:, None] == slot).to(scaled.dtype).reshape(-1)
        person = scaled[:, None].expand(-1, size, -1).reshape(n * size, -1)
        click, purchase = self.log_odds(tables, person, (slate.clamp(min=0).reshape(-1), line, offer, ad))
        return click.view(n, size, -1), None if purchase is None else purchase.view(n, size, -1)

    def expected(self, beliefs: Tensor, click: Tensor, purchase: Tensor | None) -> Tensor:
        """Return the log-odds of clicks and of purchases after them, less their constants, whatever the class.

        Args:
            beliefs: Probabilities of the classes, shape (..., CLASSES).
            click: Log-odds of a click in each class, shape (..., CLASSES).
            purchase: Log-odds of a purchase after it, in its shape.

        Returns:
            Shape (..., 2), or (..., 1) where there are no purchases.
        """
        likely = beliefs * click.sigmoid()
        clicked = likely.sum(-1)
        found = [clicked.clamp(LEAST, 1 - LEAST).logit() - self.click.base]
        if purchase is not None and self.purchase is not None:
            bought = (likely * purchase.sigmoid()).sum(-1) / clicked.clamp(min=LEAST)
            found.append(bought.clamp(LEAST, 1 - LEAST).logit() - self.purchase.base)
        return torch.stack(found, -1)

    def after(
        self, state: Tensor, odds: tuple[Tensor, Tensor | None], slate: Tensor, clicked: Tensor,
        converted: Tensor | None, leaves: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the state at the next page, shape (n, width).

        Args:
            state: At the page that was answered, shape (n, width).
            odds: What ``page_odds`` says of it.
            slate: What it showed, shape (n, K).
            clicked: Shape (n, K).
            converted: Where the click led to a purchase, shape (n, K), or None.
            leaves: Where the page was the last one of its visit, shape (n,) bool.
        """
        n, size = slate.shape
        around = (self.around(slate) + self.seen(state, slate.clamp(min=0)))[:, :, None]
        click, purchase = odds
        click = (click + around).flatten(0, 1)
        purchase = None if purchase is None else (purchase + self.match * around).flatten(0, 1)
        log_examined = (self.position - self.position.max())[:size].expand(n, -1).reshape(-1)
        likely = log_likelihood(
            click, purchase, log_examined, clicked.reshape(-1), None if converted is None else converted.reshape(-1)
        )
        likely = (likely * (slate != EMPTY).reshape(-1, 1)).view(n, size, -1).sum(1)
        classes = (state[:, :CLASSES] + likely).log_softmax(1)
        classes = torch.where(leaves[:, None], self.moved(classes), classes)
        seen, shown = [], self.shown(slate)
        for (page, visit), before in zip(FADES, state[:, CLASSES:].split(self.values, 1), strict=True):
            now = page * before + shown
            seen.append(torch.where(leaves[:, None], visit * now, now))
        return torch.cat([classes, *seen], 1)

    def log_odds(
        self, tables: tuple[Utilities, Utilities | None], scaled: Tensor, parts: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the log-odds of clicks and of purchases after them in each class, both (n, CLASSES).

        Args:
            tables: What ``utilities`` returned.
            scaled: Scaled features of each row's shopper, shape (n, D).
            parts: Item, line (-1 for none), offer and whether it is an ad, shape (n,) each; None where there is none.
        """
        alike = self.click.shopper(scaled)  # for all classes
        click = part_sum(tables[0], parts) + alike
        if self.purchase is None or tables[1] is None:
            return click, None
        return click, part_sum(tables[1], parts) + (self.purchase.shopper(scaled) + self.match * alike)

    def worth(self, click: Tensor, purchase: Tensor | None, reward: RewardSpec) -> Tensor:
        """Return what answers with these log-odds (..., CLASSES) are worth at once in each class, in their shape."""
        if purchase is None:
            return click.sigmoid() * reward.click
        return click.sigmoid() * (purchase.sigmoid() * reward.conversion + reward.click)


def rows_of(table: Tensor, places: Tensor) -> Tensor:
    """Return rows of a table (I, w) at places of any shape, in a fraction of the time that indexing takes."""
    return table.index_select(0, places.reshape(-1)).reshape(*places.shape, table.shape[1])


def part_sum(tables: Utilities, parts: tuple[Tensor | None, ...]) -> Tensor:
    """Return the log-odds of rows in each class, (n, CLASSES): item, line (-1 for none), offer, whether it is an ad."""
    item, line, offer, ad = parts
    assert item is not None
    odds = rows_of(tables.item, item)
    if line is not None and len(tables.line) > 1:
        odds = odds + tables.line[line]
    if offer is not None and len(tables.offer) > 1:
        odds = odds + tables.offer[offer.clamp(max=len(tables.offer) - 1)]
    return odds if ad is None else odds + ad[:, None] * tables.ad


def log_likelihood(
    click: Tensor, purchase: Tensor | None, log_examined: Tensor, clicked: Tensor, converted: Tensor | None
) -> Tensor:
    """Return how likely each class makes what came of rows, (n, CLASSES), from its log-odds of clicks and purchases."""
    yes = nn.functional.logsigmoid(click) + log_examined[:, None]
    likely = torch.where(clicked[:, None] > 0, yes, torch.log1p(-yes.exp().clamp(max=1 - 1e-6)))
    if purchase is None or converted is None:
        return likely
    bought = converted.to(purchase.dtype)[:, None]
    known = (clicked[:, None] > 0) & ~bought.isnan()
    bought = nn.functional.logsigmoid(torch.where(bought > 0, purchase, -purchase))
    return likely + torch.where(known, bought, 0.0)


def _kinds(builder: ContextBuilder) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.int64]], int]:
    """Return the place of each item's value of every categorical feature, (I, blocks), and how many places there are.

    The last place is that of values nobody knows.
    """
    catalog = builder.catalog
    start, first, blocks = len(catalog.features.numeric), 0, []
    total = sum(len(known) for known in catalog.features.categories.values())
    for known in catalog.features.categories.values():
        told = catalog.vectors[:, start : start + len(known)]
        blocks.append(np.where(told.any(1), first + told.argmax(1), total))
        start, first = start + len(known), first + len(known)
    return np.stack(blocks, 1) if blocks else np.zeros((len(catalog), 0), np.int64), total + 1
