"""A world of learned shoppers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import Decision, Outcome
from hawker.simulators.frozen import FrozenModel
from hawker.simulators.frozen_memory import Read
from hawker.simulators.frozen_pages import Came, Carried, Page
from hawker.simulators.frozen_tastes import FrozenTastes
from hawker.simulators.memory import COUNTS, EDGES
from hawker.simulators.pages import affinity_of
from hawker.simulators.shopper import Ensemble, calibrated, recalibrated
from hawker.simulators.support import Support
from hawker.simulators.world import Shoppers, merged

NEVER = 365.0
"""Days after which a shopper who has not come back is gone."""

WEEK = 8
"""Intervals of ``EDGES`` until the end of day 7, each one day: a return then is still one within 7 days."""

FEW = 64
"""Shoppers below which a batch is too small to be dealt out by place."""

CHUNK = 820
"""Shoppers of one member who are answered at a time on a CPU, at most: what is computed of them stays in its cache."""

LOWEST, HIGHEST = math.log(1e-7), math.log(1e6)
"""Log-odds that are calibrated, from and to."""

Place = slice | Tensor
"""Which shoppers of a block: those of a span, or those of these numbers."""


class LearnedWorld:
    """Thousands of shoppers at once, each living in one member of an ensemble and in one of its classes of taste.

    Arriving shoppers are drawn from the contexts of the logs. Where the logs know neither returns nor leaving, as with
    logs of single impressions, those heads are absent: a visit has one page and its shopper is gone after it; where
    they know no returns, a shopper is gone after the visit. An offer above the tiers that the logs know counts as the
    largest of them. The ensemble's weights must not change any more: what depends on them alone is computed once.

    A visit ends at the latest with as many pages as the longest one of the log had: what comes after is unknown, and a
    strategy that found a way to keep shoppers for good would be paid for it.

    With ``doubts`` every page comes with what the member after the shopper's own expects, which reads the same history
    with a memory of its own, and with how much of the page the log says nothing of. One second opinion at a time
    differs from the first as far as any two members do, on average, at a fraction of the cost of asking them all.

    Attributes:
        models: The members, as they answer.
        bids: What a click on an ad of each item earns: the catalog's feature "bid", 0 where there is none; (n_items,).
    """

    def __init__(
        self,
        builder: ContextBuilder,
        ensemble: Ensemble,
        arrivals: Context[Tensor],
        size: int,
        lines: tuple[str, ...] = (),
        support: Support | None = None,
        doubts: bool = False,
    ) -> None:
        """Set up the world.

        Args:
            builder: The shop's contexts and catalog.
            ensemble: The fitted members.
            arrivals: Contexts to draw arriving shoppers from.
            size: Slots of a page, K.
            lines: The bank of lines.
            support: What the log shows how often.
            doubts: Whether pages come with their doubts; needs ``support``.
        """
        self.builder, self.size, self.device, self.lines = builder, size, arrivals.shopper.device, lines
        self.choices = arrivals.candidates.shape[1]
        self.ensemble = ensemble.requires_grad_(False).eval()
        self.offers, self.bids = ensemble.models[0].recorded.offers, _bids(builder).to(self.device)
        self.models = [FrozenModel(model) for model in ensemble.models]
        self._tastes = None if ensemble.tastes is None else FrozenTastes(ensemble.tastes)
        self._seconds, self.support = [*self.models[1:], self.models[0]], support if doubts else None
        self._longest = math.inf if support is None else float(support.visit)
        self._hidden = max(0 if model.memory is None else model.memory.hidden for model in self.models)
        self._nothing = torch.zeros((), device=self.device)
        self._logged, self._arrivals = len(arrivals.shopper), arrivals.map(_once)
        self._knows_affinity = bool(arrivals.affinity.any())
        # A new visit has new candidates where the log tells which a visit had, unless affinities belong to them.
        self._retrieves = len(self._arrivals.candidates) > 1 and not self._knows_affinity
        self._knows_affinity = self._knows_affinity or builder.search is not None  # that of a query comes with it

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers drawn from the logs; members are dealt out evenly, to a few from a random start."""
        row = self._draw(n, generator)
        context = self._arrivals.map(lambda array: _rows(array, row))
        if not self._hidden:
            return self._shoppers(context, {}, generator)
        # A memory begins with its first page: who replaces a shopper lives in the member that answers at their place.
        widths = {"memory": (n, self._hidden), "counts": (n, COUNTS), "gap": (n,), "number": (n,)}
        if self.support is not None:
            widths["second"] = (n, self._hidden)
        state = {name: self._nothing.expand(shape) for name, shape in widths.items()}
        if self._tastes is not None:
            draws = torch.rand(n, generator=generator, device=self.device)
            state["class"] = self._tastes.drawn(self.models[0].scaled(context.shopper), draws)
        return self._shoppers(context, state, generator)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self._logged, (n,), generator=generator, device=self.device)

    def _shoppers(self, context: Context[Tensor], state: dict[str, Tensor], generator: torch.Generator) -> Shoppers:
        """Deal shoppers out to the members."""
        n, members = len(context.shopper), len(self.models)
        place = torch.arange(n, device=self.device)
        if n >= FEW:
            block = self._block(n)
            return Shoppers(context, place % block * members // block, state, placed=True)
        # Places of a small batch would leave out members for good.
        start = torch.randint(members, (1,), generator=generator, device=self.device)
        return Shoppers(context, (place + start) % members, state)

    def _block(self, n: int) -> int:
        """Return how many of n shoppers are answered at a time: on a CPU, what is computed of them fits its cache."""
        return n if self.device.type != "cpu" else -(-n // -(-n // (CHUNK * len(self.models))))

    def click_probabilities(self, context: Context[Tensor], slate: Tensor) -> Tensor:
        """Return what each member expects of a slate of catalog indices (N, K) at the first page of a first visit.

        Returns:
            P(click), shape (M, N, K).
        """
        probability: Tensor = self.ensemble(context.shopper, slate, affinity_of(context, slate))
        return probability

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Draw what comes of one page from each shopper's own member."""
        n, size = decision.slate.shape
        # Of each shopper: clicks and purchases by item, the class of the next visit, leaving, coming back.
        draws = torch.rand(n, 2 * size + 3, generator=generator, device=self.device)
        answer = self._empty(n, size)
        with torch.inference_mode():
            for block, places in self.blocks(shoppers):
                self._answer(block, places, shoppers, decision, draws[block], answer)
        outcome = Outcome(
            clicked=answer["clicked"],
            click_probability=answer["click_probability"],
            gone=torch.ones(n, dtype=torch.bool, device=self.device),
            converted=answer.get("converted"),
            revenue=answer.get("revenue"),
            conversion_probability=answer.get("conversion_probability"),
        )
        if not self._hidden:
            return shoppers, self._doubted(outcome, answer, decision)
        leave, days = answer["leave"], answer["days"]
        stays = {
            "memory": answer["memory"],
            "counts": answer["counts"],
            "gap": days.clamp(max=NEVER),
            "number": torch.where(leave, 0.0, shoppers.state["number"] + 1.0),
        }
        back = answer.get("return_probability")
        if self._tastes is not None:
            stays["class"] = self._tastes.moved(shoppers.state["class"], leave, draws[:, -3])
        if self.support is not None:
            stays["second"] = answer["second.memory"]
        chances: Any = {"leave_probability": answer["leave_probability"], "return_probability": back}
        outcome = replace(outcome, gone=leave & days.isinf(), leave=leave, days=days, **chances)
        outcome = self._doubted(outcome, answer, decision)
        context = self._retrieved(shoppers.context, leave, generator) if self._retrieves else shoppers.context
        return replace(shoppers, context=context, state=stays), outcome

    def _doubted(
        self, outcome: Outcome[Tensor], answer: dict[str, Tensor], decision: Decision[Tensor]
    ) -> Outcome[Tensor]:
        """Return an outcome with the second opinion and what the log does not support, where doubts are told."""
        if self.support is None:
            return outcome
        heads = ("click_probability", "conversion_probability")
        second: Any = {name: answer[f"second.{name}"] for name in heads if f"second.{name}" in answer}
        return replace(outcome, second=replace(outcome, **second), unsupported=self.support.missing(decision))

    def _empty(self, n: int, size: int) -> dict[str, Tensor]:
        """Return tensors to put answers into."""
        first = self.models[0].recorded
        wide = ["clicked", "click_probability"]
        wide += ["converted", "conversion_probability"] if first.conversions else []
        wide += ["revenue"] if first.revenue else []
        answer = {name: torch.empty(n, size, device=self.device) for name in wide}
        if self._hidden:
            # Members remember more or less: the rest stays 0.
            answer["memory"] = torch.zeros(n, self._hidden, device=self.device)
            answer["counts"] = torch.empty(n, COUNTS, device=self.device)
            answer["leave"] = torch.empty(n, dtype=torch.bool, device=self.device)
            told = ["leave_probability", "days", *(["return_probability"] if first.returns else [])]
            answer |= {name: torch.empty(n, device=self.device) for name in told}
        if self.support is not None:
            heads = ("click_probability", "conversion_probability", "memory")
            answer |= {f"second.{name}": torch.zeros_like(answer[name]) for name in heads if name in answer}
        return answer

    def blocks(self, shoppers: Shoppers) -> list[tuple[slice, list[Place]]]:
        """Return blocks of shoppers that are answered at a time, and in each the members' own."""
        n, members = len(shoppers.member), len(self.models)
        if not shoppers.placed:
            return [(slice(0, n), [(shoppers.member == i).nonzero().squeeze(1) for i in range(members)])]
        # A member's own lie together in a block, and so are read faster.
        size = self._block(n)
        edges = [-(-size * i // members) for i in range(members + 1)]
        places: list[Place] = list(itertools.starmap(slice, itertools.pairwise(edges)))
        return [(slice(start, min(start + size, n)), places) for start in range(0, n, size)]

    def _answer(
        self,
        block: slice,
        places: list[Place],
        shoppers: Shoppers,
        decision: Decision[Tensor],
        draws: Tensor,
        answer: dict[str, Tensor],
    ) -> None:
        """Answer the pages of a block of shoppers; ``draws`` are uniform, see ``respond``, shape (n, 2 K + 3)."""
        calibration, first = self.ensemble.calibration, self.models[0]
        context = shoppers.context.map(lambda array: array[block])
        ad, offer, copy = (
            None if part is None else part[block] for part in (decision.ad, decision.offer, decision.copy)
        )
        decision = Decision(decision.slate[block], decision.log_prob[block], ad, offer, copy)
        affinity = affinity_of(context, decision.slate) if self._knows_affinity else None
        page = first.page(context.shopper, decision, affinity)
        if self._tastes is not None:
            page = replace(page, believed=self._tastes.believed(page, shoppers.state["class"][block]))
        answer = {name: value[block] for name, value in answer.items()}
        carried = None
        if self._hidden:
            state = (shoppers.state[name][block] for name in ("memory", "counts", "gap", "number"))
            carried = Carried.read(*state)
        likings = _likings(self.models, places, page, carried)
        click = torch.mul(calibrated(likings.click, calibration[0]), page.shown, out=answer["click_probability"])
        size = page.shown.shape[1]
        clicked = answer["clicked"].copy_(draws[:, :size] < click)
        converted, revenue = torch.zeros_like(clicked), None
        if "converted" in answer:
            odds = calibrated_odds(likings.purchase, calibration[1])
            bought = torch.mul(odds, page.shown, out=answer["conversion_probability"])
            converted = torch.mul(clicked, draws[:, size : 2 * size] < bought, out=answer["converted"])
        if "revenue" in answer:
            revenue = torch.mul(converted, likings.worth, out=answer["revenue"])
        came = None
        if carried is not None:
            came = Came.read(page, carried, clicked, converted, revenue, first.recorded.offers)
        if self.support is not None:
            other = None if carried is None else replace(carried, memory=shoppers.state["second"][block])
            self._answer_second(places, page, other, came, answer)
        if came is None:
            return
        answer["counts"].copy_(came.counts)
        odds = self._carry_on(self.models, places, likings.reads, came, answer["memory"])
        ends = calibrated_odds(odds[:, 0], calibration[2])
        ends.masked_fill_(shoppers.state["number"][block] + 1 >= self._longest, 1.0)
        leave = torch.lt(draws[:, -2], answer["leave_probability"].copy_(ends), out=answer["leave"])
        days = torch.full_like(answer["days"], torch.inf)
        if first.recorded.returns:
            rate, before = _survival(calibrated_odds(odds[:, 1:], calibration[3]))
            answer["return_probability"].copy_(-torch.expm1(before[:, WEEK]))
            days = _days(rate, before, draws[:, -1])
        answer["days"].copy_(torch.where(leave, days, 0.0))

    def _answer_second(
        self, places: list[Place], page: Page, carried: Carried | None, came: Came | None, answer: dict[str, Tensor]
    ) -> None:
        """Put down what the next member expects of each page, and what it reads in the answers that were drawn."""
        calibration, likings = self.ensemble.calibration, _likings(self._seconds, places, page, carried)
        click = calibrated(likings.click, calibration[0])
        torch.mul(click, page.shown, out=answer["second.click_probability"])
        if "converted" in answer:
            bought = calibrated_odds(likings.purchase, calibration[1])
            torch.mul(bought, page.shown, out=answer["second.conversion_probability"])
        if came is not None:
            self._carry_on(self._seconds, places, likings.reads, came, answer["second.memory"])

    def _carry_on(
        self, models: list[FrozenModel], places: list[Place], reads: list[Read | None], came: Came, memory: Tensor
    ) -> Tensor:
        """Put down what members remember of a page; return the log-odds of what comes next, see ``FrozenMemory``."""
        odds = memory.new_empty(len(memory), 1 + len(EDGES) * models[0].recorded.returns)
        for model, own, read in zip(models, places, reads, strict=True):
            assert model.memory is not None
            assert read is not None
            kept, odds[own] = model.memory.after(read, came.of(own))
            memory[own, : kept.shape[1]] = kept
        return odds

    def _retrieved(self, context: Context[Tensor], leave: Tensor, generator: torch.Generator) -> Context[Tensor]:
        """Return contexts with new candidates for those who leave."""
        row = self._draw(len(leave), generator)
        candidates, mask = _rows(self._arrivals.candidates, row), _rows(self._arrivals.mask, row)
        return replace(
            context,
            candidates=merged(leave, context.candidates, candidates),
            mask=merged(leave, context.mask, mask),
        )


@dataclass(frozen=True)
class _Likings:
    """What members make of their own shoppers' pages, put together, so that the rest is done once for all of them."""

    click: Tensor
    purchase: Tensor
    worth: Tensor
    reads: list[Read | None]


def _likings(models: list[FrozenModel], places: list[Place], page: Page, carried: Carried | None) -> _Likings:
    click, purchase, worth = (torch.empty_like(page.shown) for _ in range(3))
    reads: list[Read | None] = []
    for model, own in zip(models, places, strict=True):
        liking = model.liking(page.of(own), None if carried is None else carried.of(own))
        click[own] = liking.click
        if liking.purchase is not None:
            purchase[own] = liking.purchase
        if liking.worth is not None:
            worth[own] = liking.worth
        reads.append(liking.read)
    return _Likings(click, purchase, worth, reads)


def draw_days(hazard: Tensor, uniform: Tensor) -> Tensor:
    """Return the day of the return, inf where it is none within ``NEVER`` days, shape (n,).

    Args:
        hazard: P(returning on a day, if not before) in each interval of ``EDGES``, shape (n, len(EDGES)).
        uniform: Uniform draws in [0, 1), shape (n,).
    """
    return _days(*_survival(hazard), uniform)


def _survival(hazard: Tensor) -> tuple[Tensor, Tensor]:
    """Return log P(not returning) on a day of each interval, and until each begins: both (n, len(EDGES))."""
    rate = torch.log1p(-hazard.clamp(1e-9, 1 - 1e-6))
    return rate, nn.functional.pad((rate[:, :-1] * _lengths(rate)).cumsum(1), (1, 0))


def _days(rate: Tensor, before: Tensor, uniform: Tensor) -> Tensor:
    target = torch.log1p(-uniform)
    interval = (before[:, 1:] >= target[:, None]).sum(1, keepdim=True)
    rest = (target - before.gather(1, interval).squeeze(1)) / rate.gather(1, interval).squeeze(1)
    days = _edges(rate)[interval.squeeze(1)] + torch.floor(rest).clamp(min=0.0)
    return torch.where(days <= NEVER, days, torch.inf)


def _lengths(like: Tensor) -> Tensor:
    """Return the days of all intervals but the last."""
    edges = _edges(like)
    return edges[1:] - edges[:-1]


@lru_cache(maxsize=8)
def _edges_on(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.tensor(EDGES, device=device, dtype=dtype)


def _edges(like: Tensor) -> Tensor:
    return _edges_on(like.device, like.dtype)


def calibrated_odds(odds: Tensor, calibration: Tensor) -> Tensor:
    """Return calibrated probabilities from log-odds, bounded as ``log_odds`` bounds those of probabilities."""
    return recalibrated(odds.clamp(LOWEST, HIGHEST), calibration).sigmoid_()


def _once(array: Tensor) -> Tensor:
    """Return only the first row of an array whose rows are all the same, and the array where they are not."""
    return array[:1] if array.stride(0) == 0 or bool((array == array[:1]).all()) else array


def _rows(array: Tensor, row: Tensor) -> Tensor:
    """Return rows of an array, each its only one where it has one alone."""
    return array.expand(len(row), -1) if len(array) == 1 else array.index_select(0, row)


def _bids(builder: ContextBuilder) -> Tensor:
    catalog = builder.catalog
    if "bid" not in catalog.features.numeric:
        return torch.zeros(len(catalog))
    return torch.from_numpy(catalog.vectors[:, catalog.features.numeric.index("bid")].copy())
