"""``hawker ab`` for whole pages: a simulated A/B test in which every shopper is followed over weeks of visits.

The unit is a shopper's whole time, not a page: what a page does to the visits that come is part of what it is worth.
Every shopper is assigned to one arm for all of it, and lives in one of the judge's models. What may be concluded is
said in `hawker.benchmarks.comparison`; here the models' view is of the very shoppers that the test followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from hawker.benchmarks.comparison import Metric, Views, compare, judged_by, require_arms
from hawker.envs.follow import COUNTED, follow
from hawker.envs.page import Rules
from hawker.policies.protocol import Strategy
from hawker.shop.config import to_dict
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.reader import ReadWorld
from hawker.simulators.world import World

DECIDING = "reward_per_shopper"
"""The metric that decides: a page's clicks can be won at the cost of the visits that follow."""

METRICS = {
    DECIDING: Metric("reward", None, "reward", "reward per shopper", counts=False),
    "ctr": Metric("clicks", "impressions", "probability", "clicks per impression"),
    "cvr": Metric("purchases", "clicks", "probability", "purchases per click"),
    "d7": Metric("back", None, "probability", "shoppers back within 7 days of their first visit"),
    "visits_per_shopper": Metric("visits", None, "visits", "visits per shopper"),
    "ad_load": Metric("ads", "pages", "probability", "ads per page"),
}
"""What is measured; ratios are of sums."""

CHUNK = 5_000
"""Shoppers followed at once."""


class PageArm(NamedTuple):
    """An arm of whole pages.

    Attributes:
        strategy: What decides.
        world: The judge, read as the strategy was trained to see it; with audiences where the strategy is told them.
        rules: The limits on ads that it holds to.
    """

    strategy: Strategy
    world: ReadWorld | AudienceWorld
    rules: Rules

    @property
    def judge(self) -> World:
        """What answers."""
        world = self.world.world if isinstance(self.world, AudienceWorld) else self.world
        return world.world if isinstance(world, ReadWorld) else world


def ab_pages(arms: Sequence[PageArm], *, shoppers: int, days: float, seed: int, reward: RewardSpec) -> dict[str, Any]:
    """Run a simulated A/B test of whole pages.

    Args:
        arms: Two or more, on one and the same judge; the first is the control.
        shoppers: Shoppers in all; each of them goes to one arm at random.
        days: How long each is followed, from the first visit on.
        seed: Decides shoppers, assignment, pages and answers.
        reward: What a page is worth, pessimism left out.

    Returns:
        A report as `hawker.benchmarks.abtest.ab_test` gives it, with the metrics of ``METRICS`` that the judge knows;
        ``days``; and ``pair.NAME.model_lift`` of the reward per shopper, as each of the judge's models has it over the
        shoppers who lived in it.

    Raises:
        InputError: As in ``ab_test``, or a bad number of days.
    """
    strategies = [arm.strategy for arm in arms]
    require_arms(strategies, arms[0].world.size if arms else 0, shoppers, seed)
    if not 1 <= days <= 365:  # NaN too
        raise InputError("bad number of days", where="days", got=days, expected="a number from 1 to 365")
    names = [strategy.name for strategy in strategies]
    generator = np.random.default_rng(seed)
    rows = []
    for arm, n in zip(arms, generator.multinomial(shoppers, [1 / len(arms)] * len(arms)), strict=True):
        rows.append(_followed(arm, int(n), days, int(generator.integers(2**63)), reward.plain))
    table = pd.concat(rows, ignore_index=True)
    judge = arms[0].judge
    metrics = {name: metric for name, metric in METRICS.items() if name not in _unknown(judge)}
    views = _views(table, names, len(judge.models)) if isinstance(judge, LearnedWorld) else None
    models = len(judge.models) if isinstance(judge, LearnedWorld) else None
    return compare(table, names, metrics, DECIDING, views) | {
        "unit": f"shopper's {days:g} days",
        "days": days,
        "judged_by": judged_by(models),
        "shoppers": shoppers,
        "reward": to_dict(reward.plain),
        "seed": seed,
    }


def _followed(arm: PageArm, shoppers: int, days: float, seed: int, reward: RewardSpec) -> pd.DataFrame:
    """Return one row per shopper of an arm: ``arm``, ``member`` and what was counted."""
    generator = torch.Generator(arm.world.device).manual_seed(seed)
    chunks = []
    for start in range(0, shoppers, CHUNK):
        here = arm.world.arrive(min(CHUNK, shoppers - start), generator)
        found = follow(arm.world, arm.strategy, here, reward, replace(arm.rules, horizon=days), generator)
        chunks.append({name: getattr(found, name).cpu().numpy() for name in ("member", *COUNTED)})
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return pd.DataFrame({"arm": arm.strategy.name} | columns)


def _unknown(judge: object) -> set[str]:
    """Return the metrics of which the judge's log says nothing."""
    if not isinstance(judge, LearnedWorld):
        return set()
    recorded = judge.ensemble.models[0].recorded
    said = {"cvr": recorded.conversions, "d7": recorded.returns, "ad_load": recorded.ads}
    return {name for name, known in said.items() if not known}


def _views(table: pd.DataFrame, names: Sequence[str], members: int) -> Views:
    """Return the lift of each arm over the first in the reward of each model's own shoppers."""
    means = table.groupby(["arm", "member"])["reward"].mean().unstack("member")
    means = means.reindex(index=list(names), columns=range(members))
    with np.errstate(invalid="ignore", divide="ignore"):
        lifts = means.to_numpy() / means.to_numpy()[0] - 1.0
    return dict(zip(names, lifts, strict=True))
