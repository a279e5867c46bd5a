"""Strategies that know the truth of a bazaar, to show what it rewards: greed, or an eye on satisfaction.

They look at the hidden state, so they are no strategies for a shop: they are the yardstick of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.bazaar import DAY, BazaarWorld
from hawker.simulators.world import Shoppers

Propose = Callable[[Shoppers, torch.Generator], Decision[Tensor]]


@dataclass(frozen=True)
class Aims:
    """What a page is worth: per click, per purchase, and per unit of satisfaction that it adds."""

    click: float = 1.0
    purchase: float = 0.0
    satisfaction: float = 0.0


class Oracle:
    """Fills each page slot by slot with the item and line of the highest expected worth; no ads, no offers."""

    def __init__(self, world: BazaarWorld, aims: Aims) -> None:
        """Args: the ``world`` whose truth it knows, and its ``aims``."""
        self._world, self._aims = world, aims
        cues = torch.from_numpy(world.bank.cues)
        usable = world.logged_lines.cpu().nonzero().squeeze(1)
        kinds = {tuple(cues[line].tolist()): int(line) for line in usable.flip(0)}  # one line of each kind
        self._lines = torch.tensor([EMPTY, *sorted(kinds.values())], device=world.device)
        self._logit, self._purchase, self._change = self._tables()

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the choice of an item and a line leads to in each segment, (Z, I, lines) each.

        The logit of P(click | looked at) without fatigue, P(purchase | click), and what a click is expected to add to
        satisfaction.
        """
        world, p = self._world, self._world.parameters
        shape = (len(p.segments), p.shop.items, len(self._lines))
        segment, item, line = (
            values.flatten() for values in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
        )
        n = len(segment)
        state = {
            "segment": segment.to(world.device),
            "satisfaction": torch.zeros(n, device=world.device),
            "fatigue": torch.zeros(n, len(p.categories), device=world.device),
        }
        slate = item.to(world.device)[:, None]
        decision = Decision(
            slate, torch.zeros(n, device=world.device), copy=self._lines[line.to(world.device)][:, None]
        )
        no, yes = torch.zeros_like(slate, dtype=torch.bool), torch.ones_like(slate, dtype=torch.bool)
        purchase = world.conversion_probabilities(state, decision).view(shape)
        ignored, clicked, bought = (
            world.satisfaction_change(state, decision, *seen).view(shape) for seen in ((no, no), (yes, no), (yes, yes))
        )
        logit = world.attraction(state, decision).logit(eps=1e-6).view(shape)
        return logit, purchase, clicked - ignored + purchase * (bought - clicked)

    def propose(self, shoppers: Shoppers, generator: torch.Generator) -> Decision[Tensor]:
        """Return the page of the highest worth; ``generator`` is not used."""
        candidates, (n, c) = shoppers.context.candidates, shoppers.context.candidates.shape
        lines, world, aims = self._lines, self._world, self._aims
        slate = torch.full((n, world.size), EMPTY, device=candidates.device)
        copy, left = slate.clone(), shoppers.context.mask.clone()
        place = (shoppers.state["segment"][:, None], candidates)
        category = world.category[candidates]
        click = world.parameters.click
        logit = self._logit[place] - click.fatigue * shoppers.state["fatigue"].gather(1, category)[:, :, None]
        value = aims.click + aims.purchase * self._purchase[place] + aims.satisfaction * self._change[place]
        looked = world.looked_at(logit.new_full((1, world.size), float(logit.sigmoid().mean())))[0]
        shouted = torch.zeros(n, device=candidates.device)  # spam lines on the page so far
        for slot in range(min(world.size, c)):
            above = (category[:, :, None] == world.category[slate.clamp(min=0)][:, None]) & (slate != EMPTY)[:, None]
            chance = (logit - click.same_category * above.sum(2)[:, :, None]).sigmoid() * looked[slot]
            annoyed = world.parameters.satisfaction.spam * 0.5 ** (shouted + 1)
            worth = chance * value - aims.satisfaction * annoyed[:, None, None] * world.spam[lines]
            best = worth.masked_fill(~left[:, :, None], -torch.inf).flatten(1).max(1)
            pick, line = best.indices // len(lines), best.indices % len(lines)
            some = ~best.values.isneginf()
            slate[:, slot] = candidates.gather(1, pick[:, None]).squeeze(1).masked_fill(~some, EMPTY)
            copy[:, slot] = lines[line].masked_fill(~some, EMPTY)
            shouted += world.spam[lines[line]]
            left.scatter_(1, pick[:, None], False)
        return Decision(slate, torch.zeros(n, device=slate.device), copy=copy)


@dataclass(frozen=True)
class Lives:
    """What came of n shoppers, each (n,): impressions, clicks, purchases, revenue (currency), pages and visits."""

    impressions: Tensor
    clicks: Tensor
    purchases: Tensor
    revenue: Tensor
    pages: Tensor
    visits: Tensor

    def reward(self, click: float = 1.0, purchase: float = 5.0) -> Tensor:
        """Return what each shopper was worth, (n,)."""
        return click * self.clicks + purchase * self.purchases


def live(world: BazaarWorld, propose: Propose, n: int, days: int, generator: torch.Generator) -> Lives:
    """Let n shoppers come for the first time and follow each for ``days`` days."""
    here, who = world.arrive(n, generator), torch.arange(n, device=world.device)
    totals = {name: torch.zeros(n, device=world.device) for name in Lives.__dataclass_fields__}
    while len(who):
        decision = propose(here, generator)
        first_page = here.state["page"] == 0
        here, outcome = world.respond(here, decision, generator)
        converted, revenue = outcome.converted, outcome.revenue
        assert converted is not None
        assert revenue is not None  # a bazaar fills every field
        seen = {
            "impressions": (decision.slate != EMPTY).sum(1),
            "clicks": outcome.clicked.sum(1),
            "purchases": converted.sum(1),
            "revenue": revenue.sum(1),
            "pages": torch.ones_like(who),
            "visits": first_page,
        }
        for name, value in seen.items():
            totals[name].index_add_(0, who, value.float())
        stay = ~outcome.gone & (here.state["clock"] < days * DAY)
        here, who = here.take(stay), who[stay]
    return Lives(**totals)
