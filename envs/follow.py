"""Shoppers followed through their visits, one strategy deciding every page: what came of each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hawker.envs.page import Rules
from hawker.envs.storefront import FAR
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RETURN_DAYS, RewardSpec
from hawker.simulators.diary import Proposer
from hawker.simulators.world import Shoppers, World


@dataclass
class Followed:
    """What came of N shoppers, each (N,) float64; all but the reward is counted as it was drawn.

    Attributes:
        member: Which of the world's behaviour models each lived in, (N,) int64.
        reward: Undiscounted sum of what their pages were worth.
        pages: Pages seen.
        visits: Visits begun.
        impressions: Items shown, ads among them.
        clicks: Clicks.
        purchases: Purchases; 0 where the world knows none.
        ads: Pages with an ad.
        offers: Pages with an offer.
        back: 1 where the second visit began within 7 days of the first one's end; 0 where the world knows no returns.
    """

    member: Tensor
    reward: Tensor
    pages: Tensor
    visits: Tensor
    impressions: Tensor
    clicks: Tensor
    purchases: Tensor
    ads: Tensor
    offers: Tensor
    back: Tensor


COUNTED = tuple(name for name in Followed.__dataclass_fields__ if name != "member")


@torch.no_grad()
def follow(
    world: World,
    strategy: Proposer,
    here: Shoppers,
    reward: RewardSpec,
    rules: Rules,
    generator: torch.Generator,
    watch: Callable[[Tensor, Decision[Tensor]], None] | None = None,
) -> Followed:
    """Follow shoppers from the first page of their first visit on, as episodes of ``hawker/Storefront-v0`` go.

    Args:
        world: What answers.
        strategy: What decides; where the rules limit ads, its ``propose`` takes the ``ad_mask`` of `PageStrategy`'s.
        here: N shoppers who have just arrived.
        reward: What a page is worth.
        rules: The horizon, and the limits on ads that the strategy is told of.
        generator: Of everything that is drawn.
        watch: Told of every decision, and of the places of its B shoppers among the N, (B,) int64.

    Raises:
        InputError: The horizon is not finite, a probability is not a number, or a weight is for what there is not.
    """
    if not math.isfinite(rules.horizon):
        raise InputError("no end of days", where="rules.horizon", got=rules.horizon, expected="a finite number of days")
    n, device = len(here.member), world.device
    bids = world.bids if bool((world.bids > 0).any()) else None
    found = Followed(here.member, *torch.zeros(len(COUNTED), n, dtype=torch.float64, device=device).unbind())
    limited = rules.ad_gap > 1 or rules.ad_load < 1
    who, day = torch.arange(n, device=device), torch.zeros(n, device=device)
    since = torch.full((n,), FAR, device=device)
    previous = torch.full((n, world.size), EMPTY, device=device)
    found.visits += 1
    while len(who):
        limits = {}
        if limited:  # some slack, as the storefront's: rounding must not close what an exact share leaves open
            load = found.ads[who] + 1 <= rules.ad_load * (found.pages[who] + 1) + 1e-6
            limits["ad_mask"] = here.context.mask & (load & (since >= rules.ad_gap))[:, None]
        decision = strategy.propose(here.context, generator, **limits)
        if watch is not None:
            watch(who, decision)
        here, outcome = world.respond(here, decision, generator)
        _require_numbers(strategy, decision, outcome)
        left = outcome.gone if outcome.leave is None else outcome.gone | outcome.leave
        days = torch.zeros_like(day) if outcome.days is None else outcome.days.masked_fill(outcome.gone, 0.0)
        day = day + days
        stay = ~outcome.gone & (day < rules.horizon)
        ad = torch.zeros_like(stay) if decision.ad is None else decision.ad != EMPTY
        worth = torch.stack(list(reward.components(outcome, decision, bids, previous).values())).sum(0)
        back = left & ~outcome.gone & (days <= RETURN_DAYS) & (found.visits[who] == 1)
        counts = {
            "reward": worth,
            "pages": torch.ones_like(day),
            "impressions": (decision.slate != EMPTY).sum(1),
            "clicks": outcome.clicked.sum(1),
            "purchases": torch.zeros_like(day) if outcome.converted is None else outcome.converted.sum(1),
            "ads": ad,
            "offers": torch.zeros_like(ad) if decision.offer is None else decision.offer > 0,
            "back": back,
            "visits": left & stay,
        }
        for name, value in counts.items():
            getattr(found, name)[who] += value.double()
        since = torch.where(ad, 1, since + 1)
        previous = decision.slate.masked_fill(left[:, None], EMPTY)
        here, who, day, since, previous = here.take(stay), who[stay], day[stay], since[stay], previous[stay]
    return found


def _require_numbers(strategy: Proposer, decision: Decision[Tensor], outcome: Outcome[Tensor]) -> None:
    """Refuse decisions and answers that are no numbers: those of a strategy or of shoppers that diverged."""
    if not bool(torch.isfinite(decision.log_prob).all()):
        remedy = "train it anew"
        raise InputError("a page's log-probability is not a number", where=f"arm {strategy.name}", remedy=remedy)
    if not bool(torch.isfinite(outcome.click_probability).all()):
        raise InputError("the world's click probability is not a number", where=f"arm {strategy.name}")
