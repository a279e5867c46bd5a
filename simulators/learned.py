"""A world of learned shoppers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.simulators.memory import EDGES, clock_of
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import Ensemble, ShopperModel, calibrated, slate_rows
from hawker.simulators.world import Shoppers

NEVER = 365.0
"""Days after which a shopper who has not come back is gone."""


class LearnedWorld:
    """Thousands of shoppers at once, each living in one member of an ensemble of shopper models.

    Arriving shoppers are drawn from the contexts of the logs. Where the logs know neither returns nor leaving, as with
    logs of single impressions, those heads are absent: a visit has one page and its shopper is gone after it; where
    they know no returns, a shopper is gone after the visit. An offer above the tiers that the logs know counts as the
    largest of them.
    """

    def __init__(self, builder: ContextBuilder, ensemble: Ensemble, arrivals: Context[Tensor], size: int) -> None:
        """Args: the shop's ``builder``, the fitted ``ensemble``, contexts to draw ``arrivals`` from, slots K."""
        self.builder, self.size, self.device = builder, size, arrivals.shopper.device
        self.choices = arrivals.candidates.shape[1]
        self.ensemble = ensemble.requires_grad_(False).eval()
        self._arrivals = arrivals
        self._hidden = max(0 if model.memory is None else model.memory.hidden for model in ensemble.models)
        # A new visit has new candidates where the log tells which a visit had, unless affinities belong to them.
        candidates = arrivals.candidates
        self._retrieves = bool((candidates != candidates[:1]).any()) and not bool(arrivals.affinity.any())

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers drawn from the logs; members are dealt out evenly from a random start."""
        row = self._draw(n, generator)
        members = len(self.ensemble.members)
        start = torch.randint(members, (1,), generator=generator, device=self.device)
        member = (torch.arange(n, device=self.device) + start) % members
        context = self._arrivals.map(lambda array: array[row])
        if not self._hidden:
            return Shoppers(context, member)
        memory = torch.zeros(n, self._hidden, device=self.device)
        for i, model in enumerate(self.ensemble.models):
            own = (member == i).nonzero().squeeze(1)
            assert model.memory is not None
            memory[own, : model.memory.hidden] = model.memory.start(model.scaled(context.shopper[own]))
        zero = torch.zeros(n, device=self.device)
        return Shoppers(context, member, {"memory": memory, "gap": zero, "number": zero.clone()})

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self._arrivals.shopper), (n,), generator=generator, device=self.device)

    def click_probabilities(self, context: Context[Tensor], slate: Tensor) -> Tensor:
        """Return what each member expects of a slate of catalog indices (N, K) at the first page of a first visit.

        Returns:
            P(click), shape (M, N, K).
        """
        probability: Tensor = self.ensemble(context.shopper, slate, _affinity_of(context, slate))
        return probability

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Draw what comes of one page from each shopper's own member."""
        shape = decision.slate.shape
        first = self.ensemble.models[0].recorded
        draws = torch.rand(4, *shape, generator=generator, device=self.device)
        answers: list[tuple[Tensor, _Answer]] = []
        for i, model in enumerate(self.ensemble.models):
            own = (shoppers.member == i).nonzero().squeeze(1)
            answers.append((own, self._answer(model, shoppers, decision, own, draws[:, own])))

        def merged(name: str) -> Tensor:
            whole: Tensor | None = None
            for own, answer in answers:
                part: Tensor = getattr(answer, name)
                if whole is None:
                    whole = part.new_zeros(shape[0], *part.shape[1:])
                whole[own] = part
            assert whole is not None
            return whole

        bought = first.conversions
        outcome = Outcome(
            clicked=merged("clicked"),
            click_probability=merged("click_probability"),
            gone=torch.ones_like(shoppers.member, dtype=torch.bool),
            converted=merged("converted") if bought else None,
            revenue=merged("revenue") if first.revenue else None,
            conversion_probability=merged("conversion_probability") if bought else None,
        )
        if not self._hidden:
            return shoppers, outcome
        leave, days = merged("leave"), merged("days")
        stays = {
            "memory": merged("memory"),
            "gap": days.clamp(max=NEVER),
            "number": torch.where(leave, 0.0, shoppers.state["number"] + 1.0),
        }
        context = shoppers.context
        if self._retrieves:
            row = self._draw(shape[0], generator)
            candidates, mask = self._arrivals.candidates[row], self._arrivals.mask[row]
            context = replace(
                context,
                candidates=torch.where(leave[:, None], candidates, context.candidates),
                mask=torch.where(leave[:, None], mask, context.mask),
            )
        outcome = replace(outcome, gone=leave & days.isinf(), leave=leave, days=days)
        return Shoppers(context, shoppers.member, stays), outcome

    def _answer(
        self, model: ShopperModel, shoppers: Shoppers, decision: Decision[Tensor], own: Tensor, draws: Tensor
    ) -> _Answer:
        """Answer the pages of one member's own shoppers; ``draws`` are uniform, shape (4, n, K)."""
        slate, calibration = decision.slate[own], self.ensemble.calibration
        context, shown = shoppers.context.map(lambda array: array[own]), slate != EMPTY
        rows = _shown(model, context, decision, own)
        state = clock = None
        if model.memory is not None:
            clock = clock_of(shoppers.state["gap"][own], shoppers.state["number"][own])
            state = model.memory.before(shoppers.state["memory"][own, : model.memory.hidden], clock)
        person = model.person(context.shopper, state)
        liked = model.log_odds(person, rows)
        click = calibrated(model.log_click(liked, rows).exp(), calibration[0]).reshape(slate.shape) * shown
        clicked = (draws[0] < click).float()
        conversion = converted = revenue = torch.zeros_like(click)
        if model.conversion is not None:
            odds = model.conversion_odds(person, rows, liked).sigmoid()
            conversion = calibrated(odds, calibration[1]).reshape(slate.shape) * shown
            converted = clicked * (draws[1] < conversion).float()
        if model.recorded.revenue:
            # The mean of a log-normal worth.
            worth = model.log_amount(rows) + (2 * model.amount_spread).exp() / 2
            revenue = converted * worth.exp().reshape(slate.shape)
        answer = _Answer(clicked, click, converted, conversion, revenue)
        if model.memory is None:
            return answer
        assert clock is not None
        came = replace(rows, clicked=clicked.flatten(), converted=converted.flatten(), revenue=revenue.flatten())
        carried = shoppers.state["memory"][own, : model.memory.hidden]
        gap, number = shoppers.state["gap"][own], shoppers.state["number"][own]
        memory = model.memory.after(carried, gap, number, model.summary(came))
        odds = model.leave_odds(memory, shoppers.state["number"][own]).sigmoid()
        leave = draws[2, :, 0] < calibrated(odds, calibration[2])
        days = torch.full_like(leave, torch.inf, dtype=click.dtype)
        if model.back is not None:
            hazard = calibrated(model.return_odds(memory).sigmoid(), calibration[3])
            days = draw_days(hazard, draws[3, :, 0])
        days = torch.where(leave, days, 0.0)
        memory = nn.functional.pad(memory, (0, self._hidden - model.memory.hidden))
        return replace(answer, leave=leave, days=days, memory=memory)


@dataclass(frozen=True)
class _Answer:
    """What came of the pages of one member's shoppers; the first five (n, K)."""

    clicked: Tensor
    click_probability: Tensor
    converted: Tensor
    conversion_probability: Tensor
    revenue: Tensor
    leave: Tensor | None = None
    days: Tensor | None = None
    memory: Tensor | None = None


def draw_days(hazard: Tensor, uniform: Tensor) -> Tensor:
    """Return the day of the return, inf where it is none within ``NEVER`` days, shape (n,).

    Args:
        hazard: P(returning on a day, if not before) in each interval of ``EDGES``, shape (n, len(EDGES)).
        uniform: Uniform draws in [0, 1), shape (n,).
    """
    edges = torch.tensor(EDGES, device=hazard.device, dtype=hazard.dtype)
    survive = torch.log1p(-hazard.clamp(1e-9, 1 - 1e-6))
    ends = (survive[:, :-1] * (edges[1:] - edges[:-1])).cumsum(1)
    target = torch.log1p(-uniform)
    interval = (ends >= target[:, None]).sum(1)
    before = nn.functional.pad(ends, (1, 0)).gather(1, interval[:, None]).squeeze(1)
    rate = survive.gather(1, interval[:, None]).squeeze(1)
    days = edges[interval] + torch.floor((target - before) / rate).clamp(min=0.0)
    return torch.where(days <= NEVER, days, torch.inf)


def _shown(model: ShopperModel, context: Context[Tensor], decision: Decision[Tensor], own: Tensor) -> Rows:
    """Return a member's own pages as rows, every part of the decision that the model knows included."""
    slate = decision.slate[own]
    rows = slate_rows(context.shopper, slate, _affinity_of(context, slate))
    line = offer = ad = None
    if model.line_vectors is not None:
        line = torch.full_like(slate, -1) if decision.copy is None else decision.copy[own]
    if model.recorded.offers > 1:
        offer = torch.zeros_like(slate)
        if decision.offer is not None:
            offer = decision.offer[own, None].clamp(max=model.recorded.offers - 1).expand(slate.shape)
    if model.recorded.ads:
        place = torch.arange(slate.shape[1], device=slate.device)
        ad = torch.zeros(slate.shape, device=slate.device)
        ad = ad if decision.ad is None else (decision.ad[own, None] == place).float()
    flat = [None if part is None else part.reshape(-1) for part in (line, offer, ad)]
    return replace(rows, line=flat[0], offer=flat[1], ad=flat[2])


def _affinity_of(context: Context[Tensor], slate: Tensor) -> Tensor:
    """Return the shopper's affinity with each item of a slate, both (N, K); an empty slot has 0."""
    same = context.candidates[:, None, :] == slate[:, :, None]
    return (same * context.affinity[:, None, :]).sum(-1)
