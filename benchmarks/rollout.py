"""What a strategy earns of shoppers over some weeks, in any world."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawker.shop.decision import EMPTY, Decision, Outcome
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
        revenue: Currency earned by purchases, as drawn; 0 where a world knows none.
        ad_income: Currency earned by clicks on ads, expected likewise.
        ads: Ads shown.
        impressions: Items shown.
        pages: Pages seen.
        back: P(the second visit begins within 7 days of the first one's end), 0 where a world knows no returns.
        exposure: How often each item was shown to anybody, shape (I,).
        offers: Pages of each discount tier, shape (T,); those without a decision on offers count as tier 0.
        visits: Every visit.
        segment: Number of the hidden segment that each came with, whatever it became; None where a world knows none.
    """

    clicks: Tensor
    purchases: Tensor
    revenue: Tensor
    ad_income: Tensor
    ads: Tensor
    impressions: Tensor
    pages: Tensor
    back: Tensor
    exposure: Tensor
    offers: Tensor
    visits: Visits
    segment: Tensor | None = None

    def reward(self, click: float = 1.0, purchase: float = 5.0) -> Tensor:
        """Return what each shopper was worth, shape (N,)."""
        return click * self.clicks + purchase * self.purchases

    def by_segment(self, values: Tensor) -> Tensor:
        """Return the means of values (N,) over the shoppers of each segment that came, in order of number, shape (S,).

        A world that knows no segments has one, which everybody is of.
        """
        if self.segment is None:
            return values.mean(0, keepdim=True)
        _, group, size = self.segment.unique(return_inverse=True, return_counts=True)
        means: Tensor = torch.zeros_like(size, dtype=values.dtype).index_add(0, group, values) / size
        return means


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
    # Segments drift from visit to visit: only the first is no doing of the strategy's.
    segment, day = here.state.get("segment"), torch.zeros(shoppers, device=world.device)
    visit, pages, clicks = (torch.zeros_like(who) for _ in range(3))
    names = ("clicks", "purchases", "revenue", "ad_income", "ads", "impressions", "pages", "back")
    totals = {name: torch.zeros(shoppers, device=world.device) for name in names}
    exposure, offers = torch.zeros(len(world.bids), device=world.device), torch.zeros(world.offers, device=world.device)
    ended: list[tuple[Tensor, ...]] = []
    while len(who):
        decision = strategy.propose(here.context, generator)
        here, outcome = world.respond(here, decision, generator)
        leave = outcome.gone if outcome.leave is None else outcome.leave
        for name, value in _of_page(world, decision, outcome).items():
            totals[name].index_add_(0, who, value)
        if outcome.return_probability is not None:
            totals["back"].index_add_(0, who, outcome.return_probability * (leave & (visit == 0)))
        shown = decision.slate != EMPTY
        exposure.index_add_(0, decision.slate.clamp(min=0).flatten(), shown.float().flatten())
        tier = torch.zeros_like(who) if decision.offer is None else decision.offer.clamp(max=world.offers - 1)
        offers += torch.bincount(tier, minlength=world.offers)
        pages, clicks = pages + 1, clicks + outcome.clicked.sum(1).long()
        ended.append(tuple(part[leave] for part in (who, visit, pages, clicks)))
        visit, pages, clicks = visit + leave, pages.masked_fill(leave, 0), clicks.masked_fill(leave, 0)
        if outcome.days is not None:
            day = day + outcome.days
        stay = ~outcome.gone & (day < days)
        here = here.take(stay)
        who, day, visit, pages, clicks = (part[stay] for part in (who, day, visit, pages, clicks))
    visits = Visits(*(torch.cat(part) for part in zip(*ended, strict=True)))
    return Totals(**totals, exposure=exposure, offers=offers, visits=visits, segment=segment)


def _of_page(world: World, decision: Decision[Tensor], outcome: Outcome[Tensor]) -> dict[str, Tensor]:
    """Return what one page adds to the totals of its shoppers, each (N,)."""
    click, slate = outcome.click_probability, decision.slate
    none = torch.zeros_like(click[:, 0])
    purchases = none if outcome.conversion_probability is None else (click * outcome.conversion_probability).sum(1)
    ads, income = none, none
    if decision.ad is not None:
        ads, slot = (decision.ad != EMPTY).float(), decision.ad.clamp(min=0)[:, None]
        earned = click * world.bids[slate.clamp(min=0)]
        income = ads * earned.gather(1, slot).squeeze(1)
    return {
        "clicks": click.sum(1),
        "purchases": purchases,
        "revenue": none if outcome.revenue is None else outcome.revenue.sum(1),
        "ad_income": income,
        "ads": ads,
        "impressions": (slate != EMPTY).sum(1).float(),
        "pages": torch.ones_like(none),
    }
