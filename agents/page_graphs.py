"""What a page bundle computes, as torch modules to be traced: the page, what is read of a shopper, what is read next.

They compute in double precision, float32 in; what depends on the items alone is computed beforehand. A shopper of whom
nothing was read yet carries zeros, and begins with what the features of the first page say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hawker.policies.page import LineLogits, PageDistribution, PageLogits
from hawker.policies.page_actor import PageActor
from hawker.policies.page_draw import LineTable
from hawker.policies.slate import LOGIT_BOUND
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.memory import CLASSES, COUNTS, MOODS, Memory, clock_of
from hawker.simulators.pages import shown_rows
from hawker.simulators.reader import TOP
from hawker.simulators.shopper import Ensemble, ShopperModel
from hawker.simulators.taste_classes import CLASSES as TASTES
from hawker.simulators.taste_classes import FADES, Utilities

Array = npt.NDArray[Any]


class ActorGraph(nn.Module):
    """The logits of ``PageActor``, from what depends on the shopper; see ``LineLogits`` for those of lines."""

    keys: Tensor
    bias: Tensor
    ad_bias: Tensor
    bidder: Tensor

    def __init__(self, actor: PageActor) -> None:
        super().__init__()
        self.actor = actor = copy.deepcopy(actor).cpu().double()
        slate, n_items = actor.slate, len(actor.slate.item_vectors)
        with torch.no_grad():
            items = (slate.item_vectors - slate.item_centre) / slate.item_spread
            self.register_buffer("keys", (slate.item_key(items) + slate.own_key) * actor.hidden**-0.5)
            self.register_buffer("bias", (slate.item_bias(items) + slate.own_bias).squeeze(-1))
        bidder = torch.zeros(n_items, dtype=torch.bool)
        if actor.layout.ad:
            bidder[actor.bidders] = True
            self.register_buffer("ad_bias", actor.ad_bias.detach())
        self.register_buffer("bidder", bidder)

    def forward(self, shopper: Tensor, candidates: Tensor, may: Tensor, affinity: Tensor) -> tuple[Tensor, ...]:
        """Return logits by part: slate (B, C), ad (B, C + 1), slot (B, K), offer (B, T); queries and effects of lines.

        An item that may not be the ad has minus infinity.

        Args:
            shopper: As contexts have it, shape (B, D).
            candidates: Catalog indices, shape (B, C).
            may: Candidates that may be shown, as an ad too, shape (B, C).
            affinity: As contexts have it, shape (B, C).
        """
        actor, layout = self.actor, self.actor.layout
        shopper, affinity = shopper.double(), affinity.double()
        query = actor.slate.query((shopper - actor.slate.shopper_centre) / actor.slate.shopper_spread)
        keys = self.keys[candidates]
        organic = (keys @ query[:, :, None]).squeeze(2) + self.bias[candidates]
        found = {"slate": _bound(organic + affinity * actor.slate.affinity_weight(query))}
        if layout.ad:
            ad = (keys @ actor.ad_query(query)[:, :, None]).squeeze(2) + self.ad_bias[candidates]
            bids = self.bidder[candidates] & may
            bidding = bids.sum(1, keepdim=True).clamp(min=1).double().log()
            found["ad"] = torch.cat(
                [_bound(ad).masked_fill(~bids, -torch.inf), _bound(actor.no_ad(query)) + bidding], 1
            )
            found["slot"] = _bound(actor.slot(query))
        if layout.offers:
            offer = actor.offer(query)
            if actor._offer_effects is not None:
                offer = offer + actor.offer_weight(query) * shopper[:, actor._offer_effects]
            found["offer"] = _bound(offer)
        if layout.lines is not None:
            found["line_query"] = actor.line_query(query)
            if actor._line_effects is not None:
                found["line_effects"] = actor.line_weight(query) * shopper[:, actor._line_effects]
        return tuple(found.values())

    @torch.no_grad()
    def pages(self, context: Context[Tensor]) -> PageDistribution:
        """Return the distribution over pages, in double precision; every eligible bidder may be the ad."""
        parts = dict(
            zip(self.names, self(context.shopper, context.candidates, context.mask, context.affinity), strict=True)
        )
        line = ad = may = None
        if "line_query" in parts:
            keys, bias, by_tier = self._lines()
            line = LineLogits(parts["line_query"], keys, bias, by_tier, parts.get("line_effects"))
        if "ad" in parts:
            may = ~parts["ad"][:, :-1].isneginf()
            ad = parts["ad"].masked_fill(parts["ad"].isneginf(), 0.0)  # the distribution masks it anew
        logits = PageLogits(parts["slate"], ad, parts.get("slot"), parts.get("offer"), line)
        return PageDistribution(self.actor.layout, logits, context.mask, may)

    @property
    def names(self) -> tuple[str, ...]:
        """What ``forward`` returns."""
        actor, layout = self.actor, self.actor.layout
        there = {
            "slate": True,
            "ad": layout.ad,
            "slot": layout.ad,
            "offer": layout.offers > 0,
            "line_query": layout.lines is not None,
            "line_effects": layout.lines is not None and actor._line_effects is not None,
        }
        return tuple(name for name, is_on in there.items() if is_on)

    @torch.no_grad()
    def _lines(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, bias and what tiers add, as ``LineLogits`` has them."""
        actor = self.actor
        keys = nn.functional.pad(actor.line_key(actor.line_vectors), (0, 0, 0, 1)) + actor.line_own
        by_tier = actor.tier_query.detach() if actor.layout.offers else None
        return keys * actor.hidden**-0.5, actor.line_bias.detach(), by_tier

    def line_table(self) -> dict[str, Array]:
        """Return what the logits of lines need beside a page's own, as ``LineTable`` has it."""
        parts = zip(LineTable._fields, self._lines(), strict=True)
        return {name: np.ascontiguousarray(part.numpy()) for name, part in parts if part is not None}


def _bound(scores: Tensor) -> Tensor:
    return LOGIT_BOUND * torch.tanh(scores / LOGIT_BOUND)


class ReadGraph(nn.Module):
    """What ``ReadWorld`` tells of shoppers, from their features and what is carried; see ``Reader``."""

    def __init__(self, ensemble: Ensemble, builder: ContextBuilder, reward: RewardSpec) -> None:
        """Args: the ensemble that reads, the shop's ``builder``, the ``reward`` whose weights say what is worth it."""
        super().__init__()
        self.reader = Reader(ensemble)
        self._reward, self._numbers = reward, len(builder.shopper.numeric)

    def forward(
        self, features: Tensor, memory: Tensor, gap: Tensor, number: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``shopper`` (B, D) and ``affinity`` (B, C) of contexts, float32.

        Args:
            features: The shop's own, shape (B, d).
            memory: What is carried to this page, shape (B, H).
            gap: Days since the page before, shape (B,).
            number: Number of this page within its visit, shape (B,).
            candidates: Catalog indices, shape (B, C).
        """
        model, carrier = self.reader.model, self.reader.memory
        features, gap, number = features.double(), gap.double(), number.double()
        scaled = model.scaled(features)
        tastes, carried = self.reader.begun(scaled, memory, number)
        clock = clock_of(gap, number)
        told = carrier.before(carried, clock)
        readable = carrier.readable(carried)[:, -CLASSES - MOODS - COUNTS :]
        numbers, categories = features[:, : self._numbers], features[:, self._numbers :]
        worth, effects, believed = self._by_class(scaled, tastes, candidates)
        shopper = torch.cat([numbers, told, readable, clock, *believed, *effects, categories], 1)
        return shopper.float(), worth.float()

    def _by_class(
        self, scaled: Tensor, tastes: Tensor, candidates: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return what candidates are worth (B, C) as logarithms, effects of offers and lines, and what is believed."""
        classes, tables = self.reader.tastes, self.reader.tables()
        of_click, of_purchase = tables
        belief = classes.beliefs(tastes)
        seen = classes.seen(tastes, candidates)
        alike = classes.click.shopper(scaled) + seen
        click = of_click.item[candidates] + alike[:, :, None]
        purchase = None
        if of_purchase is not None and classes.purchase is not None:
            alike = classes.purchase.shopper(scaled) + classes.match * alike
            purchase = of_purchase.item[candidates] + alike[:, :, None]

        def worth(click: Tensor, purchase: Tensor | None) -> Tensor:
            return (classes.worth(click, purchase, self._reward) * belief[:, None]).sum(2)

        value = worth(click, purchase)
        average = _best(value)
        click, purchase = average(click), None if purchase is None else average(purchase)
        plain, found = worth(click, purchase).clamp(min=LEAST).log(), []
        rest = len(of_click.line) - classes.logged_lines  # lines that the log does not show, and none at all
        offers, lines = of_click.offer, of_click.line[:-rest]
        sold = (None, None) if of_purchase is None else (of_purchase.offer, of_purchase.line[:-rest])
        for added, own, least in ((offers, sold[0], 1), (lines, sold[1], 0)):
            if added.shape[0] > least:
                both = None if purchase is None or own is None else purchase + own
                found.append(worth(click + added, both).clamp(min=LEAST).log() - plain)
        return value.clamp(min=LEAST).log(), found, [belief, tastes[:, belief.shape[1] :]]


LEAST = 1e-6
"""The least that anything is worth, as ``ReadWorld`` has it."""


def _best(keys: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what averages values (B, C, ...) over the ``TOP`` candidates with the highest keys (B, C): (B, 1, ...).

    There may be fewer candidates.
    """
    none = torch.full_like(keys[:, :1], -torch.inf).expand(-1, TOP)
    best = torch.cat([keys, none], 1).topk(TOP, 1)
    there = best.values.isfinite()
    share = there / there.sum(1, keepdim=True)
    places = torch.where(there, best.indices, 0)

    def average(values: Tensor) -> Tensor:
        if values.ndim == 2:
            return (values.gather(1, places) * share).sum(1, keepdim=True)
        taken = values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))
        return (taken * share[:, :, None]).sum(1, keepdim=True)

    return average


class ObserveGraph(nn.Module):
    """What ``ReadWorld`` carries on from a page that was answered; see ``Reader``."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.reader = Reader(ensemble)

    def forward(
        self,
        features: Tensor,
        memory: Tensor,
        gap: Tensor,
        number: Tensor,
        slate: Tensor,
        clicked: Tensor,
        converted: Tensor,
        revenue: Tensor,
        ad: Tensor,
        offer: Tensor,
        lines: Tensor,
        affinity: Tensor,
    ) -> Tensor:
        """Return what is carried on from the page, shape (B, H), float32.

        Args:
            features: The shop's own at that page, shape (B, d).
            memory: What was carried to it, shape (B, H).
            gap: Days since the page before, shape (B,).
            number: Its number within its visit, shape (B,).
            slate: Catalog indices, shape (B, K).
            clicked: 1 where an item was clicked, shape (B, K).
            converted: 1 where the click led to a purchase, shape (B, K).
            revenue: Currency, shape (B, K).
            ad: The ad's slot, shape (B,).
            offer: The tier, shape (B,).
            lines: The line at each slot, shape (B, K).
            affinity: Recorded affinity with the items, shape (B, K).
        """
        model, carrier = self.reader.model, self.reader.memory
        features, gap, number = features.double(), gap.double(), number.double()
        scaled = model.scaled(features)
        tastes, carried = self.reader.begun(scaled, memory, number)
        context = Context(features, slate, slate != EMPTY, torch.where(slate != EMPTY, affinity.double(), 0.0))
        decision = Decision(slate, gap, ad, offer, lines)
        rows = shown_rows(model, context, decision)
        clicked, converted, revenue = clicked.double(), converted.double(), revenue.double()
        ads = None if rows.ad is None else rows.ad.double()
        rows = replace(
            rows, ad=ads, clicked=clicked.flatten(), converted=converted.flatten(), revenue=revenue.flatten()
        )
        classes = self.reader.tastes
        odds = classes.page_odds(self.reader.tables(), scaled, decision)
        expected = classes.expected(classes.beliefs(tastes)[:, None], *odds)
        rows = replace(rows, believed=expected.flatten(0, 1))
        after = carrier.after(carried, gap, number, model.summary(rows))
        stays = torch.zeros_like(ad, dtype=torch.bool)  # whether the visit ends is known with the next page
        tastes = classes.after(tastes, odds, slate, clicked, converted, stays)
        return torch.cat([tastes, after], 1).float()


class Reader(nn.Module):
    """What reads shoppers: the first member of an ensemble and its classes of taste, in double precision.

    What is carried is one row: the state of the classes, then that of the memory, whose last entry
    counts the pages. The classes know of a page only later that it was its visit's last: when the next visit begins.

    Attributes:
        model: The member; what it makes of items is looked up.
        tastes: The classes of taste.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.model = _frozen(ensemble.models[0])
        assert ensemble.tastes is not None
        self.tastes = copy.deepcopy(ensemble.tastes).cpu().double()
        with torch.no_grad():
            click, purchase = self.tastes.utilities()
        for name, table in (("click", click), ("purchase", purchase)):
            for part, value in ({} if table is None else table._asdict()).items():
                self.register_buffer(f"{name}_{part}", value)

    @property
    def memory(self) -> Memory:
        """The member's memory."""
        assert self.model.memory is not None
        return self.model.memory

    @property
    def width(self) -> int:
        """Entries of what is carried, H."""
        return self.memory.hidden + self.tastes.width

    def tables(self) -> tuple[Utilities, Utilities | None]:
        """Return what ``TasteClasses.utilities`` did."""
        click, purchase = (
            [getattr(self, f"{name}_{part}", None) for part in Utilities._fields] for name in ("click", "purchase")
        )
        return Utilities(*click), None if purchase[0] is None else Utilities(*purchase)  # type: ignore[arg-type]

    def begun(self, scaled: Tensor, carried: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of classes and memory at a page, in double precision, from what was carried to it.

        Args:
            scaled: Scaled features, shape (B, d).
            carried: Shape (B, H); where no page was read yet, what features say stands in its place.
            number: Number of the page within its visit, shape (B,).
        """
        known, carried = carried[:, -1:] > 0, carried.double()
        memory = torch.where(known, carried[:, -self.memory.hidden :], self.memory.start(scaled))
        states = carried[:, : self.tastes.width]
        classes, *seen = states.split([TASTES, *[self.tastes.values] * len(FADES)], 1)
        faded = [visit * part for (_, visit), part in zip(FADES, seen, strict=True)]
        moved = torch.cat([self.tastes.moved(classes), *faded], 1)
        states = torch.where((number == 0)[:, None], moved, states)
        return torch.where(known, states, self.tastes.begin(scaled)), memory


class _Known(nn.Module):
    """Stands where a layer stood whose one input never changes."""

    known: Tensor

    def __init__(self, layer: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("known", layer(vectors))

    def forward(self, _: Tensor) -> Tensor:
        return self.known


class _Step(nn.Module):
    """One step of a gated recurrent unit as its equations have it: onnxruntime's own is in single precision alone."""

    def __init__(self, unit: nn.GRU) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, read: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state after (B, 1, H), and as (1, B, H), from what is read (B, 1, W) and before it (1, B, H)."""
        unit: Any = self.unit  # its weights have names that types do not know
        state = before[0]
        given = nn.functional.linear(read[:, 0], unit.weight_ih_l0, unit.bias_ih_l0).chunk(3, 1)
        held = nn.functional.linear(state, unit.weight_hh_l0, unit.bias_hh_l0).chunk(3, 1)
        reset, keep = (given[0] + held[0]).sigmoid(), (given[1] + held[1]).sigmoid()
        new = (given[2] + reset * held[2]).tanh()
        after = (1.0 - keep) * new + keep * state
        return after[:, None], after[None]


@torch.no_grad()
def _frozen(model: ShopperModel) -> ShopperModel:
    """Return a copy in double precision that looks up what it makes of items."""
    model = copy.deepcopy(model).cpu().double()
    assert model.memory is not None
    for head in model.heads:
        for name in ("item_taste", "item_effect"):
            setattr(head, name, _Known(getattr(head, name), model.item_vectors))
    setattr(model.memory, "item", _Known(model.memory.item, model.item_vectors))  # noqa: B010  # of another type
    setattr(model.memory, "gru", _Step(model.memory.gru))  # noqa: B010
    return model
