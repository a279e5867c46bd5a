"""``hawker ab``: a simulated A/B test of strategies on the shoppers of a world.

Shoppers without a memory are tested by the visit, each of a shopper whom nobody knows; `hawker.benchmarks.abtest_pages`
follows shoppers with a memory over their visits. What may be concluded is said in `hawker.benchmarks.comparison`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.benchmarks.comparison import Metric, compare, judged_by, require_arms
from hawker.policies.protocol import Strategy
from hawker.shop.config import to_dict
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.world import Shoppers, World

COMMON_SHOPPERS = 20_000
"""Fewest shoppers that all arms share for the view of the judge's models."""

CHUNK = 10_000
"""Shoppers simulated at once."""

MAX_PAGES = 1000
"""Pages of a visit after which the world, not the shopper, is at fault."""

METRICS = {
    "ctr": Metric("clicks", "impressions", "probability", "clicks per impression"),
    "clicks_per_visit": Metric("clicks", None, "clicks", "clicks per visit"),
    "reward_per_visit": Metric("reward", None, "reward", "reward per visit", counts=False),
}
"""What is measured; CTR is clicks per impression, as a ratio of sums."""

DECIDING = "clicks_per_visit"
"""The metric that decides: showing fewer items can raise the CTR while it loses clicks."""

COLUMNS = ["pages", "impressions", "clicks", "reward"]
"""What is counted of each visit."""


def ab_test(
    arms: Sequence[Strategy], world: World, *, shoppers: int, seed: int, reward: RewardSpec | None = None
) -> dict[str, Any]:
    """Run a simulated A/B test and report what it can and cannot tell.

    Args:
        arms: Two or more strategies with different names; the first is the control.
        world: The shoppers; learned ones should be the judge's, which no strategy was trained on.
        shoppers: Shoppers in all; each of them goes to one arm at random, as in a real test.
        seed: Decides shoppers, assignment, slates and clicks.
        reward: What the shop wants, for the metric ``reward_per_visit``; by default expected clicks.

    Returns:
        A report of JSON values.

        - ``figures``: ``arm.NAME.METRIC`` for every metric of ``METRICS``, with its interval over shoppers; for every
          arm but the control ``pair.NAME.METRIC_lift`` (relative to the control), ``pair.NAME.METRIC_difference`` and
          ``pair.NAME.model_lift``: the lift of clicks per visit as the judge's models see it, with
          `hawker.benchmarks.comparison.model_interval` (its ``n`` counts models; absent where the truth is known).
        - ``pairs``: for every arm but the control, p-values by metric, raw and corrected (Holm over the arms, for each
          metric by itself), the sample ratio's p-value, ``distinguishable``, the ``doubts`` why not, and a ``verdict``.
        - ``verdict``, ``cautions``, ``judged_by``, and what the test was asked for.

    Raises:
        InputError: Fewer than two arms, names that repeat, arms that do not fit the world's pages, too few shoppers,
            probabilities that are not numbers.
    """
    require_arms(arms, world.size, shoppers, seed)
    reward = reward or RewardSpec()
    names = [arm.name for arm in arms]
    play_seed, *common_seeds = (int(word) for word in np.random.SeedSequence(seed).generate_state(3, np.uint64))
    visits = play(arms, world, shoppers, play_seed, reward)
    expected = member_views(arms, world, max(shoppers // len(arms), COMMON_SHOPPERS), *common_seeds)
    views = None
    if expected is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            lifts = expected / expected[0] - 1.0
        views = dict(zip(names, lifts, strict=True))
    models = None if expected is None else expected.shape[1]
    return compare(visits, names, METRICS, DECIDING, views) | {
        "unit": "visit",
        "judged_by": judged_by(models),
        "shoppers": shoppers,
        "reward": to_dict(reward),
        "seed": seed,
    }


def play(arms: Sequence[Strategy], world: World, shoppers: int, seed: int, reward: RewardSpec) -> pd.DataFrame:
    """Let shoppers arrive, assign each to an arm at random, and play their visits to the end.

    Args:
        arms: The strategies.
        world: The shoppers.
        shoppers: Shoppers in all.
        seed: Decides everything that is drawn.
        reward: What a page is worth.

    Returns:
        One row per visit: ``arm`` (name), and its sums of ``pages``, ``impressions``, ``clicks``, ``reward``.

    Raises:
        InputError: A probability is not a number.
    """
    generator = torch.Generator(world.device).manual_seed(seed)
    codes, sums = [], []
    with torch.no_grad():
        for start in range(0, shoppers, CHUNK):
            arrived = world.arrive(min(CHUNK, shoppers - start), generator)
            assigned = torch.randint(len(arms), arrived.member.shape, generator=generator, device=world.device)
            counted = torch.zeros(len(assigned), len(COLUMNS), dtype=torch.float64, device=world.device)
            for i, arm in enumerate(arms):
                rows = (assigned == i).nonzero().squeeze(1)
                if len(rows):
                    counted[rows] = _visit(arm, world, arrived.take(rows), reward, generator)
            codes.append(assigned.cpu())
            sums.append(counted.cpu())
    visits = pd.DataFrame(torch.cat(sums).numpy(), columns=COLUMNS)
    visits.insert(0, "arm", np.array([arm.name for arm in arms], dtype=object)[torch.cat(codes).numpy()])
    return visits.astype({"pages": np.int64, "impressions": np.int64, "clicks": np.int64})


def _visit(arm: Strategy, world: World, shoppers: Shoppers, reward: RewardSpec, generator: torch.Generator) -> Tensor:
    """Play the visits of n shoppers to their end; return what is counted of each, shape (n, len(COLUMNS))."""
    n = len(shoppers.member)
    counted = torch.zeros(n, len(COLUMNS), dtype=torch.float64, device=world.device)
    there = torch.arange(n, device=world.device)
    previous = torch.full((n, world.size), EMPTY, device=world.device)
    for _ in range(MAX_PAGES):
        decision = _propose(arm, shoppers.context, generator)
        after, outcome = world.respond(shoppers, decision, generator)
        if not bool(torch.isfinite(outcome.click_probability).all()):
            raise InputError("the world's click probability is not a number", where=f"arm {arm.name}")
        worth = torch.zeros(len(decision.slate), dtype=torch.float64, device=world.device)
        for part in reward.components(outcome, decision, world.bids, previous).values():
            worth = worth + part
        shown = (decision.slate != EMPTY).sum(1)
        counted[there] += torch.stack([torch.ones_like(worth), shown, outcome.clicked.sum(1), worth], 1)
        ended = outcome.gone if outcome.leave is None else outcome.gone | outcome.leave
        if bool(ended.all()):
            return counted
        stay = (~ended).nonzero().squeeze(1)
        there, shoppers, previous = there[stay], after.take(stay), decision.slate[stay]
    raise RuntimeError(f"after {MAX_PAGES} pages {len(there)} of {n} shoppers are still there")


def _propose(arm: Strategy, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
    """Return the arm's decisions; a strategy whose training diverged is stopped here."""
    decision = arm.propose(context, generator)
    if not bool(torch.isfinite(decision.log_prob).all()):
        raise InputError("a slate's log-probability is not a number", where=f"arm {arm.name}", remedy="train it anew")
    return decision


def member_views(
    arms: Sequence[Strategy], world: World, shoppers: int, arrival_seed: int, slate_seed: int
) -> npt.NDArray[np.float64] | None:
    """Return the clicks per page that each of the world's models expects of each arm, shape (n_arms, M).

    All arms meet the same shoppers and draw their slates once, for all models, from the same random numbers, so that
    what differs between two arms is the arms, and what differs between two models is the models. A world without
    models, whose click probabilities are the truth, has no such views: None.

    Args:
        arms: The strategies.
        world: The shoppers.
        shoppers: How many of them, each at the first page of a visit.
        arrival_seed: Decides who arrives.
        slate_seed: Decides the slates.
    """
    if not isinstance(world, LearnedWorld):
        return None
    arrivals = torch.Generator(world.device).manual_seed(arrival_seed)
    slates = [torch.Generator(world.device).manual_seed(slate_seed) for _ in arms]
    expected = torch.zeros(len(arms), len(world.ensemble.members), dtype=torch.float64, device=world.device)
    with torch.no_grad():
        for start in range(0, shoppers, CHUNK):
            context = world.arrive(min(CHUNK, shoppers - start), arrivals).context
            for i, arm in enumerate(arms):
                probability = world.click_probabilities(context, _propose(arm, context, slates[i]).slate)  # (M, n, K)
                expected[i] += probability.sum((1, 2), dtype=torch.float64)
    views: npt.NDArray[np.float64] = (expected / shoppers).cpu().numpy()
    return views
