"""What the truth expects of a cohort given what can be observed: the mark that learned shoppers are held against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hawker.benchmarks.fidelity_cohort import Cohort
from hawker.benchmarks.fidelity_heads import Expected, Happened, Swaps
from hawker.benchmarks.fidelity_metrics import within_correlation
from hawker.shop.decision import Decision
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.belief import SHOPPERS, Belief

PARTICLES = 128


@torch.no_grad()
def expected_by_history(
    world: BazaarWorld, cohort: Cohort, seen: Happened, swaps: Swaps, seed: int, particles: int = PARTICLES
) -> tuple[Expected, float]:
    """Run the particle filter along a cohort.

    Args:
        world: The gold world.
        cohort: The cohort.
        seen: What came of it.
        swaps: Other items on some of its pages.
        seed: Of the particles.
        particles: Paths of segments per shopper.

    Returns:
        What it expects, and its correlation with the true P(click) of the swapped items: what ``corr_within`` can
        reach.
    """
    pages, days, generator = cohort.pages, seen.days(), torch.Generator().manual_seed(seed)
    n, size = pages.slate.shape
    click, conversion, leave = torch.zeros(n, size), torch.zeros(n, size), torch.zeros(n)
    away = torch.ones(n, days)
    other = torch.zeros(len(swaps.pages), swaps.variants, size)
    swap_of = torch.full((n,), -1)
    swap_of[swaps.pages] = torch.arange(len(swaps.pages))
    decision, last, gaps = cohort.decision, torch.from_numpy(pages.last), torch.from_numpy(pages.days)
    clicked, converted = torch.from_numpy(pages.clicked), torch.from_numpy(pages.converted)
    first = torch.from_numpy(np.searchsorted(pages.shopper, np.arange(len(pages.features) + 1)))
    for block in torch.arange(len(pages.features)).split(SHOPPERS):
        begin, length = first[block], first[block + 1] - first[block]
        belief = Belief(world, torch.from_numpy(pages.features)[block], particles, generator)
        for step in range(int(length.max())):
            who = (length > step).nonzero().squeeze(1)
            at = begin[who] + step
            page = _of(decision, at)
            click[at], conversion[at] = belief.page(who, page)
            asked = swap_of[at] >= 0
            if asked.any():
                number = swap_of[at[asked]]
                every = number.repeat_interleave(swaps.variants) * swaps.variants
                every += torch.arange(swaps.variants).repeat(len(number))
                found, _ = belief.page(who[asked].repeat_interleave(swaps.variants), _of(swaps.decision, every))
                other[number] = found.reshape(-1, swaps.variants, size)
            belief.see_page(who, page, clicked[at], converted[at])
            leave[at] = belief.leaving(who)
            belief.see_leaving(who, last[at])
            ended = last[at]
            away[at[ended]] = belief.staying_away(who[ended], days)
            back = gaps[at] >= 1  # not so where the log ends first
            belief.see_return(who[back], gaps[at[back]])
    filled, ends = cohort.filled, seen.ends
    before = torch.nn.functional.pad(away[ends], (1, 0), value=1.0)[:, :-1]
    hazard = 1 - away[ends] / before.clamp(min=1e-12)
    expected = Expected(
        *(
            part.double().numpy()
            for part in (click[filled], conversion[filled][seen.bought], leave[seen.closing], hazard.clamp(0, 1))
        )
    )
    reached = swaps.at_position(other.reshape(-1, size)).double().numpy()
    return expected, within_correlation(reached, swaps.truth.double().numpy())


def _of(decision: Decision[Tensor], rows: Tensor) -> Decision[Tensor]:
    parts = (decision.slate, decision.log_prob, decision.ad, decision.offer, decision.copy)
    return Decision(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]
