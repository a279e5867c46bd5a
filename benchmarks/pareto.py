"""``hawker bench pareto``: what CTR, conversion and retention cost each other, by sweeping the weights of the reward.

PPO learns from learned shoppers once for each weighting of clicks, purchases and returns within 7 days: all divisions
of one reward among them in equal parts. An outcome is weighed in units of how often pages bring it, so that a weight
says what one per cent more of it is worth. Each strategy, showing the likeliest of its pages, meets shoppers of the
judge and of the gold world. A weighting is on the front where no other strategy is at least as good in CTR (clicks an
impression), CVR (purchases a click) and D7 and better in one.

The volume is the hypervolume indicator of Zitzler and Thiele (1999), Multiobjective Evolutionary Algorithms, IEEE
Transactions on Evolutionary Computation 3(4), with the strategy that wrote the logs as the reference point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hawker.agents.config import WHOLE_PAGES, TrainConfig
from hawker.agents.page_world import myopic, parts_of, read
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity import finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.fidelity_cohort import LOGGED
from hawker.benchmarks.leaderboard import QUICK as QUICK_LEADERBOARD
from hawker.benchmarks.leaderboard import Floats, LeaderboardConfig, keeper, learn_pages, metrics
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.shop.figures import Figure
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import Proposer
from hawker.simulators.store import FittedShoppers, load_shoppers
from hawker.simulators.world import World

AIMS = {"ctr": "CTR", "cvr": "CVR", "d7": "D7"}
"""What is traded, by name in `hawker.benchmarks.leaderboard.metrics`, and what people call it."""

OUTCOMES = {"click": "clicks", "conversion": "purchases", "return_visit": "returns"}
"""What is weighed, by name in ``RewardSpec``."""

_CPU = torch.device("cpu")
_BASE = LeaderboardConfig()


@dataclass(frozen=True)
class ParetoConfig:
    """What is trained and judged; logs and fits are those of ``hawker bench leaderboard``.

    Attributes:
        seeds: One log, fit and sweep each.
        parts: Equal parts of the reward that are divided among the outcomes: 3 make 10 weightings.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        followed: Shoppers of a strategy, in each world.
        fit: How shoppers are learned.
        train: How PPO learns from them, but for its reward.
    """

    seeds: tuple[int, ...] = (21, 22, 23)
    parts: int = 3
    shoppers: int = _BASE.shoppers
    days: int = _BASE.days
    followed: int = _BASE.followed
    fit: FitConfig = _BASE.fit
    train: TrainConfig = WHOLE_PAGES


QUICK = ParetoConfig(
    seeds=(31,),
    parts=1,
    shoppers=QUICK_LEADERBOARD.shoppers,
    followed=100,
    fit=QUICK_LEADERBOARD.fit,
    train=replace(WHOLE_PAGES, steps=4_096, shoppers=256, pages=8, batch=1024, critic_first=0),
)
"""For a look: its figures say that the benchmark runs, not what anything costs."""


def bench_pareto(config: ParetoConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The report: "figures", "seeds", "notes" (what the trade-offs cost, in words), "arms" with each strategy's CTR,
        CVR and D7 in both worlds as figures, whether it is on the front, and in how many seeds, and "details" by seed.

    Raises:
        InputError: No seeds, or a fit that failed.
    """
    require_seeds(config.seeds, "pareto.seeds")
    world, details = BazaarWorld(load_bazaar(), _CPU), []
    for seed in config.seeds:
        told(f"seed {seed}")
        logs = cached_logs(world, config.shoppers, config.days, seed, told)
        fitted = load_shoppers(cached_fit(logs, replace(config.fit, seed=seed), told).shoppers, _CPU)
        habits = logging_strategy(world, LOGGED).habits
        # The judge knows the lines of the log alone, by numbers of their own.
        shown = None if fitted.lines is None else torch.arange(len(fitted.lines.texts))
        places: dict[str, tuple[World, Proposer]] = {
            "judge": (read(fitted, fitted.world("judge"), RewardSpec()), keeper(world, "logging", habits, shown)),
            "gold": (world, logging_strategy(world, LOGGED)),
        }
        train = replace(config.train, seed=seed)
        logging = {name: _met(where, strategy, config.followed, train) for name, (where, strategy) in places.items()}
        swept = sweep(fitted, train, config.parts, config.followed, told, world)
        details.append({"seed": seed, "arms": {"logging": logging, **swept}})
    report = {"seeds": list(config.seeds), **summary(details), "details": details}
    checked: dict[str, Any] = finite(report)
    return checked


def sweep(
    shoppers: FittedShoppers, train: TrainConfig, parts: int, followed: int, told: Told, gold: World | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Train a strategy for each weighting against fitted shoppers, and see what it does to others.

    Args:
        shoppers: With a memory; a run's, too.
        train: How to train; its reward does not count.
        parts: Of the reward, see ``ParetoConfig``; outcomes that the shoppers do not know get none.
        followed: Shoppers of a strategy in each world.
        told: Called with a line now and then.
        gold: A world that sells the same items, to judge in too.

    Returns:
        By weighting and world ("judge", "gold") what `hawker.benchmarks.leaderboard.metrics` tells.
    """
    rates = outcome_rates(shoppers, train, followed)
    arms = {}
    for name, reward in weightings(rates, parts).items():
        # What pays nothing at once tells nothing apart: then candidates are told by their clicks.
        seen = reward if reward.click or reward.conversion else RewardSpec()
        proxy = read(shoppers, shoppers.world("train"), seen)
        learned = parts_of(shoppers, reward)
        strategy, _ = learn_pages(proxy, shoppers, reward, train, train.horizon, told, name, learned)
        worlds = {"judge": shoppers.world("judge")} | ({} if gold is None else {"gold": gold})
        arms[name] = {
            where: _met(read(shoppers, world, seen), strategy, followed, train) for where, world in worlds.items()
        }
        for where, met in arms[name].items():
            told(f"{name}, {where}: " + ", ".join(f"{said} {met[aim]:.4f}" for aim, said in AIMS.items()))
    return arms


def outcome_rates(shoppers: FittedShoppers, train: TrainConfig, followed: int) -> dict[str, float]:
    """Return how much a page of the strategy that is greedy on clicks brings of each outcome in the learned world."""
    world, spec = read(shoppers, shoppers.world("train"), RewardSpec()), RewardSpec()
    generator = torch.Generator().manual_seed(fresh(train.seed, 16))
    totals = rollout(world, myopic(world, spec), followed, int(train.horizon), generator)
    pages, visits = float(totals.pages.sum()), len(totals.visits.shopper)
    found = (float(totals.clicks.sum()), float(totals.purchases.sum()), float(totals.back.mean()) * visits)
    return {name: amount / pages for name, amount in zip(OUTCOMES, found, strict=True)}


def weightings(rates: dict[str, float], parts: int) -> dict[str, RewardSpec]:
    """Return the rewards by name: all divisions of parts among outcomes that occur, each in units of its rate."""
    known = [name for name, rate in rates.items() if rate > 0]
    found = {}
    for shares in sorted(itertools.product(range(parts + 1), repeat=len(known)), reverse=True):
        if sum(shares) == parts:
            some = {name: share for name, share in zip(known, shares, strict=True) if share}
            said = [OUTCOMES[n] if share in (1, parts) else f"{share} {OUTCOMES[n]}" for n, share in some.items()]
            weight = dict.fromkeys(OUTCOMES, 0.0) | {name: share / parts / rates[name] for name, share in some.items()}
            found[" + ".join(said)] = RewardSpec(
                click=weight["click"], conversion=weight["conversion"], return_visit=weight["return_visit"]
            )
    return found


def _met(world: World, strategy: Proposer, followed: int, train: TrainConfig) -> dict[str, float]:
    """Return what new shoppers of a world do; those of all strategies begin with the same draws."""
    generator = torch.Generator().manual_seed(fresh(train.seed, 17))
    return metrics(rollout(world, strategy, followed, int(train.horizon), generator), RewardSpec())


def summary(details: list[dict[str, Any]]) -> dict[str, Any]:
    """Return "figures", "notes" and "arms" of a report from its seeds."""
    names = list(details[0]["arms"])
    tried = [name for name in names if name != "logging"]
    # By world: every strategy's aims, shape (seeds, strategies, 3), logging first.
    values = {
        where: np.array([[[row["arms"][n][where][a] for a in AIMS] for n in names] for row in details])
        for where in ("judge", "gold")
    }
    front = {where: non_dominated(found.mean(0)) for where, found in values.items()}
    often = np.array([non_dominated(found) for found in values["gold"]]).sum(0)
    arms = {
        name: {
            "front": bool(front["gold"][i]),
            "front_seeds": int(often[i]),
            "front_by_judge": bool(front["judge"][i]),
            **{
                where: {aim: over_seeds(found[:, i, j].tolist(), "probability") for j, aim in enumerate(AIMS)}
                for where, found in values.items()
            },
        }
        for i, name in enumerate(names)
    }
    figures: dict[str, Figure] = {}
    for where, found in values.items():
        volumes = [hypervolume(rows[1:], rows[0]) for rows in found]
        name = "pareto.hypervolume" if where == "gold" else "pareto.judge_hypervolume"
        figures[name] = over_seeds(volumes, "product of gains over logging, each a share of it")
    on = 1 + np.flatnonzero(front["gold"][1:])  # of the weightings
    figures["pareto.front"] = over_seeds(
        [non_dominated(rows)[1:].sum().item() for rows in values["gold"]], "weightings"
    )
    for j, aim in enumerate(AIMS):
        spread = np.ptp(values["gold"][:, on, j], axis=1) / values["gold"][:, 0, j] if len(on) else [0.0] * len(details)
        figures[f"pareto.spread.{aim}"] = over_seeds(list(map(float, spread)), "share of logging's")
    judged = front["judge"][1:]
    figures["pareto.front_agreement"] = over_seeds(
        [float((judged & non_dominated(rows)[1:]).sum() / max(judged.sum(), 1)) for rows in values["gold"]],
        "share of the judge's front that is on gold's",
    )
    notes = []
    for paid, bought in (("ctr", "d7"), ("ctr", "cvr"), ("cvr", "d7")):
        traded, note = trade(values["gold"][:, 1:], tried, paid, bought)
        figures |= traded
        notes.append(note)
    return {"figures": figures, "notes": notes, "arms": arms}


def trade(values: Floats, names: list[str], paid: str, bought: str) -> tuple[dict[str, Figure], str]:
    """Return what it costs of one aim to get the most of another, between the strategies that are best in each.

    Args:
        values: CTR, CVR and D7 by seed and strategy, shape (seeds, strategies, 3).
        names: Of the strategies.
        paid: The aim that is given up.
        bought: The aim that is got for it.

    Returns:
        The gain in one and the cost in the other, by name, and both in words.
    """
    pay, buy = (list(AIMS).index(aim) for aim in (paid, bought))
    mean = values.mean(0)
    here, there = int(mean[:, pay].argmax()), int(mean[:, buy].argmax())
    gain = values[:, there, buy] - values[:, here, buy]
    cost = 1 - values[:, there, pay] / values[:, here, pay]
    figures = {
        f"trade.{bought}_for_{paid}.gain": over_seeds(gain.tolist(), "difference of shares"),
        f"trade.{bought}_for_{paid}.cost": over_seeds(cost.tolist(), f"share of the {AIMS[paid]}"),
    }
    one, other = AIMS[paid], AIMS[bought]
    if here == there:
        return figures, f"{names[here]} has both the highest {one} and the highest {other}: nothing is traded."
    said = (
        f"From the highest {one} ({names[here]}) to the highest {other} ({names[there]}): {other} "
        f"{mean[here, buy]:.2%} to {mean[there, buy]:.2%}, {one} {mean[here, pay]:.2%} to {mean[there, pay]:.2%}: "
    )
    low = figures[f"trade.{bought}_for_{paid}.gain"]["low"]
    if low is None or low <= 0:
        return figures, f"{said}whether {other} gains is not shown."
    return figures, f"{said}one point of {other} costs {cost.mean() / gain.mean() / 100:.1%} of {one}."


def non_dominated(points: Floats) -> npt.NDArray[np.bool_]:
    """Return which points (n, d) no other one reaches in every coordinate and exceeds in one, shape (n,)."""
    reached, exceeded = (points[None] >= points[:, None]).all(2), (points[None] > points[:, None]).any(2)
    return np.asarray(~np.logical_and(reached, exceeded).any(1))


def hypervolume(points: Floats, reference: Floats) -> float:
    """Return the volume that points (n, d) dominate beyond a reference (d,), in gains as shares of the reference."""
    gains = np.clip(points / reference - 1, 0, None)
    edges = [np.unique(np.append(gains[:, j], 0.0)) for j in range(gains.shape[1])]
    # A cell between neighbouring edges is dominated where its far corner is.
    corners = np.stack(np.meshgrid(*(edge[1:] for edge in edges), indexing="ij"), -1)
    dominated = (corners[..., None, :] <= gains).all(-1).any(-1)
    sizes = np.stack(np.meshgrid(*map(np.diff, edges), indexing="ij"), -1).prod(-1)
    return float((dominated * sizes).sum())
