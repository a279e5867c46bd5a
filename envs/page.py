"""What one action asks for, and the page that comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hawker.policies.page import PageLayout
from hawker.policies.protocol import slate_of
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.simulators.world import World


@dataclass(frozen=True)
class Parts:
    """What of a page a strategy decides; what it does not is left out of its actions.

    Attributes:
        slate: The organic items; where not, they are a given ranking.
        ad: Which item is the page's ad, if any, and its slot.
        offer: The discount tier of the page.
        copy: The line shown with each item.
    """

    slate: bool = True
    ad: bool = False
    offer: bool = False
    copy: bool = False

    def __post_init__(self) -> None:
        """Refuse a page on which there is nothing to decide."""
        if not (self.slate or self.ad or self.offer or self.copy):
            raise InputError("nothing to decide", where="parts", expected="at least one of slate, ad, offer and copy")


STOREFRONT = Parts(slate=True, ad=True, offer=True, copy=True)
RECOMMEND = Parts()
AD_PLACEMENT = Parts(slate=False, ad=True)
COPYWRITING = Parts(slate=False, copy=True)


@dataclass(frozen=True)
class Rules:
    """What a shop holds to, whoever decides.

    Attributes:
        horizon: Days of an episode: it ends before a visit that begins this many days after the first, or later.
        ad_gap: Pages in a row of which at most one has an ad, counted over a shopper's visits; 1 is no limit.
        ad_load: Largest share of a shopper's pages up to and including the present one that have an ad.
    """

    horizon: float = math.inf
    ad_gap: int = 1
    ad_load: float = 1.0

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant."""
        if not self.horizon > 0:  # NaN too
            raise InputError("no days", where="rules.horizon", got=self.horizon, expected="a number of days above 0")
        if self.ad_gap < 1:
            raise InputError("bad gap", where="rules.ad_gap", got=self.ad_gap, expected="at least 1 page")
        if not 0 <= self.ad_load <= 1:
            raise InputError("not a share", where="rules.ad_load", got=self.ad_load, expected="a number from 0 to 1")


@dataclass(frozen=True)
class Layout:
    """What of a world's pages is decided, and how many values it can take.

    Attributes:
        parts: What is decided.
        size: Slots of a page, K.
        choices: Candidates, C.
        offers: Tiers, T.
        lines: Lines in the bank, L.
    """

    parts: Parts
    size: int
    choices: int
    offers: int
    lines: int

    @classmethod
    def of(cls, world: World, parts: Parts) -> Layout:
        """Return the layout of a world's pages."""
        return cls(parts, world.size, world.choices, world.offers, len(world.lines))

    @cached_property
    def page(self) -> PageLayout:
        """How actions list what is decided."""
        offers, lines = self.offers if self.parts.offer else 0, self.lines if self.parts.copy else None
        return PageLayout(self.size, self.parts.slate, self.parts.ad, offers, lines)

    @property
    def values(self) -> list[int]:
        """How many values each entry of an action can take, A entries."""
        return self.page.nvec(self.choices)


def decide(
    layout: Layout, actions: Tensor, context: Context[Tensor], ad_mask: Tensor | None, given: Tensor | None
) -> tuple[Decision[Tensor], Tensor]:
    """Return the pages that actions come to, and how much of each was refused.

    An organic place that is not eligible, or taken already, leaves its slot empty. An ad that may not be shown is left
    out, and its slot holds what the slate has there; one that may be takes its slot, whatever the slate has there, and
    its item stands nowhere else. A tier or line that does not exist is none; a line for an empty slot is not shown.

    Args:
        layout: Where the parts stand.
        actions: (N, A); an organic place or a line may be ``EMPTY``, too.
        context: The pages' contexts.
        ad_mask: True where a candidate may be the ad, shape (N, C); needed where ads are decided.
        given: The ranking of the organic items, places in the candidate list (N, K); needed where it is not decided.

    Returns:
        The decisions, with a log-probability of 0, and the number of choices refused, shape (N,).
    """
    asked = layout.page.split(actions)
    refused = torch.zeros(len(actions), dtype=torch.int64, device=actions.device)
    places = asked["slate"] if given is None else given
    ad = offer = copy = None
    own = torch.zeros_like(places, dtype=torch.bool)  # the ad's slot
    if ad_mask is not None:
        place, slot = asked["ad"], asked["slot"]
        known = (place >= 0) & (place < layout.choices) & (slot >= 0) & (slot < layout.size)
        item = place.masked_fill(~known, 0)
        shown = known & ad_mask.gather(1, item)
        refused += ((place != layout.choices) & ~shown).squeeze(1)
        slot = slot.masked_fill(~shown, EMPTY)
        ad = slot.squeeze(1)
        own = torch.arange(layout.size, device=actions.device) == slot
        elsewhere = (places == item) & shown
        if given is None:
            places = places.masked_fill(elsewhere, layout.choices)  # no such place: counts as refused
        else:
            places = _closed_ranks(places, elsewhere, own)
        places = torch.where(own, item, places)
    picks = places
    if given is None:
        picks = first_picks(places, context.mask)
        refused += ((picks == EMPTY) & (places != EMPTY)).sum(1)
    slate = slate_of(context, picks)
    if "offer" in asked:
        exists = (asked["offer"] >= 0) & (asked["offer"] < layout.offers)
        offer = asked["offer"].masked_fill(~exists, 0).squeeze(1)
        refused += (~exists).squeeze(1)
    if "copy" in asked:
        line = asked["copy"]
        exists = (line >= 0) & (line < layout.lines)
        copy = line.masked_fill(~exists | (slate == EMPTY), EMPTY)
        refused += (~exists & (line != layout.lines) & (line != EMPTY)).sum(1)
    log_prob = torch.zeros(len(actions), device=actions.device)  # worlds do not look at how a page was chosen
    return Decision(slate, log_prob, ad, offer, copy), refused


def first_picks(picks: Tensor, mask: Tensor) -> Tensor:
    """Return the picks with every repeat and every ineligible place emptied: shapes (N, K), (N, C) to (N, K)."""
    (n, size), choices = picks.shape, mask.shape[1]
    outside = (picks < 0) | (picks >= choices)
    places = picks.masked_fill(outside, 0)
    slots = torch.arange(size, device=picks.device).expand(n, -1)
    # Where each candidate is picked first: places outside are of one more candidate.
    first = torch.full((n, choices + 1), size, device=picks.device)
    first.scatter_reduce_(1, picks.masked_fill(outside, choices), slots, "amin")
    repeated = first.gather(1, places) < slots
    return places.masked_fill(outside | repeated | ~mask.gather(1, places), EMPTY)


def ranking(score: Tensor, mask: Tensor, size: int) -> Tensor:
    """Return the places of the best eligible candidates, best first, ties in their order: (N, C), (N, C) to (N, K)."""
    order = score.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :size]
    best = order.masked_fill(~mask.gather(1, order), EMPTY)
    return torch.nn.functional.pad(best, (0, size - best.shape[1]), value=EMPTY)


def _closed_ranks(places: Tensor, left_out: Tensor, own: Tensor) -> Tensor:
    """Return a ranking without some of its places and with a gap at ``own``: what follows moves up or down; (N, K)."""
    kept = (left_out | (places == EMPTY)).to(torch.uint8).argsort(stable=True, dim=1)
    closed = places.masked_fill(left_out, EMPTY).gather(1, kept)
    behind = own.cumsum(1) - own.long()  # 1 in the slots after the gap
    rank = torch.arange(places.shape[1], device=places.device) - behind
    return closed.gather(1, rank)
