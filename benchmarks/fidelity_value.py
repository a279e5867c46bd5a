"""What strategies that never logged anything are worth: as learned shoppers say, and in truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity_cohort import LOGGED, column, shopkeeper
from hawker.benchmarks.fidelity_metrics import Bools, Floats, distance_figure, spearman
from hawker.benchmarks.rollout import Totals, rollout
from hawker.policies.shopkeeper import Shopkeeper
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.world import World

DAYS = 28
"""From a shopper's first visit on."""

CLEAR = 0.05
"""A difference from logging above this has to have the right sign."""


MOST = 20
"""Pages or clicks of a visit that are told apart."""


def strategies(world: BazaarWorld) -> list[Shopkeeper]:
    """Return ten strategies by rules that never logged anything; they know what a shop knows, and no hidden state.

    They keep the habits of the logging strategy (its exploration, ads, offers and lines) but for what their name says.
    Chosen once, in the gold world alone, so that they differ from it by -30% to +30% and more.

    Raises:
        InputError: The world has no lines of a kind that one of them says.
    """
    usual = logging_strategy(world, LOGGED).habits
    popular, price = column(world, "popularity"), column(world, "price")
    favourite = torch.stack([popular[world.category == c].log().mean() for c in world.category.unique()]).argmax()

    chatty = replace(usual, copy_share=1.0)
    always_off = (*[0.0] * (len(usual.offers) - 1), 1.0)
    by_habit = {
        "random items": replace(usual, exploration=1.0),
        "no ads": replace(usual, ad_share=0.0),
        "always an ad": replace(usual, ad_share=1.0),
        "always the largest offer": replace(usual, offers=always_off),
    }
    by_score = {
        "cheapest first": -price,
        "best made first": _made(world) + 0.01 * popular.log(),
        "one category first": popular.log() + 100.0 * (world.category == favourite),
    }
    by_line = {
        "spam everywhere": _lines(world, "spam"),
        "plain facts everywhere": _lines(world, "plain"),
        "urgency everywhere": _lines(world, "urgency"),
    }
    return [
        *(shopkeeper(world, name, popular, habits) for name, habits in by_habit.items()),
        *(shopkeeper(world, name, scores, usual) for name, scores in by_score.items()),
        *(shopkeeper(world, name, popular, chatty, lines) for name, lines in by_line.items()),
    ]


def _made(world: BazaarWorld) -> Tensor:
    """Return how well made each item is by the words of its description, from 0."""
    words = world.parameters.qualities
    described = world.items.table["description"]
    return torch.tensor(
        [max((i for i, texts in enumerate(words) if any(t in d for t in texts)), default=0) for d in described]
    ).float()


def _lines(world: BazaarWorld, cue: str) -> Bools:
    """Return which lines of the logs say a cue, shape (L,)."""
    names = [known.name for known in world.parameters.lexicon.cues]
    if cue not in names:
        raise InputError(f"no lines of the cue {cue!r}", where=f"variant {world.parameters.name}", got=names)
    return np.asarray(world.bank.logged & world.bank.cues[:, names.index(cue)])


@dataclass(frozen=True)
class Values:
    """What strategies earn a shopper in one world, the logging one first.

    Attributes:
        names: The strategies, s of them.
        mean: Reward of a shopper over ``DAYS``, shape (s,).
        error: Its standard error, shape (s,).
    """

    names: tuple[str, ...]
    mean: Floats
    error: Floats

    @property
    def difference(self) -> Floats:
        """Relative difference from the logging strategy, shape (s - 1,)."""
        return np.asarray(self.mean[1:] / self.mean[0] - 1)

    @property
    def difference_error(self) -> Floats:
        """Its standard error, as if nothing random were shared between strategies, shape (s - 1,)."""
        relative = self.error / self.mean
        return np.asarray(self.mean[1:] / self.mean[0] * np.hypot(relative[1:], relative[0]))


def evaluate(
    world: World, arms: list[Shopkeeper], shoppers: int, seed: int, told: Callable[[str], None]
) -> tuple[Values, Totals]:
    """Return what strategies earn, and what came of the first one's shoppers; all see the same random numbers.

    Args:
        world: Where.
        arms: The strategies, the logging one first.
        shoppers: How many follow each.
        seed: Decides everything that is drawn.
        told: Called with a line after each.
    """
    means, errors, first = [], [], None
    for arm in arms:
        totals = rollout(world, arm, shoppers, DAYS, torch.Generator(world.device).manual_seed(seed))
        first = first or totals
        reward = totals.reward().double()
        means.append(float(reward.mean()))
        errors.append(float(reward.std() / len(reward) ** 0.5))
        told(f"{arm.name}: {means[-1]:.3f} ± {errors[-1]:.3f}")
    assert first is not None
    return Values(tuple(arm.name for arm in arms), np.array(means), np.array(errors)), first


def all_arms(world: BazaarWorld) -> list[Shopkeeper]:
    """Return the logging strategy and the ten others."""
    return [logging_strategy(world, LOGGED), *strategies(world)]


def value_figures(judged: Values, gold: Values) -> dict[str, float]:
    """Return how well the differences from logging agree.

    ``median_error`` is the median distance of the judge's differences from gold's as a share of gold's range;
    ``sign_errors`` how many have the wrong sign among those that differ by more than 5% in gold; ``gold_error`` the
    largest standard error of a gold difference, as a share of the range too.
    """
    said, true = judged.difference, gold.difference
    spread = float(np.ptp(true))
    clear = np.abs(true) > CLEAR
    return {
        "median_error": float(np.median(np.abs(said - true))) / spread,
        "sign_errors": float((np.sign(said) != np.sign(true))[clear].sum()),
        "spearman": spearman(said, true),
        "gold_error": float(gold.difference_error.max()) / spread,
        "judge_error": float(judged.difference_error.max()) / spread,
    }


def visit_figures(learned: Totals, gold: Totals, seed: int) -> dict[str, Figure]:
    """Return the distances of visit lengths and of clicks per visit, of first visits and of all."""
    generator = np.random.default_rng(seed)
    found = {}
    for which in ("first", "all"):
        parts = []
        for totals in (learned, gold):
            visits = totals.visits
            keep = visits.number == 0 if which == "first" else torch.ones_like(visits.number, dtype=torch.bool)
            parts.append((visits.shopper[keep].numpy(), visits.pages[keep].numpy(), visits.clicks[keep].numpy()))
        (who, pages, clicks), (gold_who, gold_pages, gold_clicks) = parts
        unit = "Kolmogorov-Smirnov"
        found[f"pages.{which}"] = distance_figure(pages, who, gold_pages, gold_who, generator, unit)
        found[f"clicks.{which}"] = distance_figure(clicks, who, gold_clicks, gold_who, generator, unit)
    many, many_gold = (np.bincount(totals.visits.shopper.numpy()) for totals in (learned, gold))  # everybody has one
    everyone, everyone_gold = np.arange(len(many)), np.arange(len(many_gold))
    found["visits"] = distance_figure(many, everyone, many_gold, everyone_gold, generator, "Kolmogorov-Smirnov")
    return found


def visit_counts(totals: Totals) -> dict[str, list[float]]:
    """Return the shares of visits with 0, 1, ... ``MOST`` or more pages and clicks."""
    found = {}
    for name in ("pages", "clicks"):
        count = np.bincount(getattr(totals.visits, name).clamp(max=MOST).numpy(), minlength=MOST + 1)
        found[name] = (count / count.sum()).tolist()
    return found
