"""What a strategy earns of shoppers over some weeks, in any world."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawker.shop.decision import EMPTY
from hawker.simulators.diary import Proposer
from hawker.simulators.world import World


@dataclass(frozen=True)
class Visits:
    """Visits, V of them, in no particular order.

    Attributes:
        shopper: Whose, shape (V,).
        number: Number of the visit from 0, shape (V,).
        pages: Its pages, shape (V,).
        clicks: Its clicks, shape (V,).
    """

    shopper: Tensor
    number: Tensor
    pages: Tensor
    clicks: Tensor


@dataclass(frozen=True)
class Totals:
    """What came of N shoppers, each (N,).

    Attributes:
        clicks, purchases: Expected numbers given the pages that were seen: the sums of the world's probabilities. They
            have the mean of what was drawn, with less noise.
        impressions: Items shown.
        pages: Pages seen.
        visits: Every visit.
    """

    clicks: Tensor
    purchases: Tensor
    impressions: Tensor
    pages: Tensor
    visits: Visits

    def reward(self, click: float = 1.0, purchase: float = 5.0) -> Tensor:
        """Return what each shopper was worth, shape (N,)."""
        return click * self.clicks + purchase * self.purchases


@torch.no_grad()
def rollout(world: World, strategy: Proposer, shoppers: int, days: int, generator: torch.Generator) -> Totals:
    """Let new shoppers come and follow each for some days from the first visit on; no visit begins later.

    Args:
        world: Any world; one that knows no leaving shows each shopper one page.
        strategy: What decides.
        shoppers: How many, N.
        days: For how long.
        generator: Of everything that is drawn.
    """
    here, who = world.arrive(shoppers, generator), torch.arange(shoppers, device=world.device)
    day = torch.zeros(shoppers, device=world.device)
    visit, pages, clicks = (torch.zeros_like(who) for _ in range(3))
    totals = {name: torch.zeros(shoppers, device=world.device) for name in ("click", "purchase", "shown", "pages")}
    ended: list[tuple[Tensor, ...]] = []
    while len(who):
        decision = strategy.propose(here.context, generator)
        here, outcome = world.respond(here, decision, generator)
        click = outcome.click_probability
        purchase = torch.zeros_like(click)
        if outcome.conversion_probability is not None:
            purchase = click * outcome.conversion_probability
        shown = (decision.slate != EMPTY).sum(1).float()
        seen = (click.sum(1), purchase.sum(1), shown, torch.ones_like(shown))
        for total, value in zip(totals.values(), seen, strict=True):
            total.index_add_(0, who, value)
        pages, clicks = pages + 1, clicks + outcome.clicked.sum(1).long()
        leave = outcome.gone if outcome.leave is None else outcome.leave
        ended.append(tuple(part[leave] for part in (who, visit, pages, clicks)))
        visit, pages, clicks = visit + leave, pages.masked_fill(leave, 0), clicks.masked_fill(leave, 0)
        if outcome.days is not None:
            day = day + outcome.days
        stay = ~outcome.gone & (day < days)
        here = here.take(stay)
        who, day, visit, pages, clicks = (part[stay] for part in (who, day, visit, pages, clicks))
    visits = Visits(*(torch.cat(part) for part in zip(*ended, strict=True)))
    return Totals(totals["click"], totals["purchase"], totals["shown"], totals["pages"], visits)
