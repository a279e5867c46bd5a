"""``hawker bench leaderboard``: strategies trained on logs alone, judged in gold worlds that nothing was trained on.

Zero is the strategy that wrote the logs; one is PPO trained in the gold world itself with nothing hidden from it, on
more pages. PPO's arms show the likeliest of their pages. Every arm meets the same draws of new shoppers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from hawker.agents.config import WHOLE_PAGES, PageTrainConfig
from hawker.agents.myopic import MyopicPages
from hawker.agents.page_ppo import page_ppo
from hawker.agents.page_world import read
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity import FidelityConfig, finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.fidelity_cohort import LOGGED
from hawker.benchmarks.rollout import Totals, rollout
from hawker.benchmarks.side_by_side import Told, gathered, side_by_side
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.benchmarks.truth import TruthWorld
from hawker.envs.page import STOREFRONT, Parts, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.bandits import LinearThompson, LinUCB
from hawker.policies.clicks import ClickModel, ClickRows
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.shopkeeper import Habits, Scores, Shopkeeper
from hawker.shop.figures import Figure
from hawker.shop.logs import read_logs
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import Proposer
from hawker.simulators.store import FittedShoppers, load_shoppers, require_impressions
from hawker.simulators.training import available_cores
from hawker.simulators.world import World

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

CONTROL = "inert"
"""The variant in which nothing moves retention."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LeaderboardConfig:
    """What is trained and judged.

    Attributes:
        seeds: One log, fit, training and judgement each.
        variants: Gold worlds by name; None is the base world.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that an arm is followed.
        followed: Shoppers of an arm.
        fit: How shoppers are learned; as for ``hawker bench fidelity``, whose logs and fits these are.
        train: How PPO learns from them; as ``hawker train`` does.
        privileged: Pages of the privileged PPO for each page of PPO's.
        reward: What a page is worth: the metrics' reward too.
        cautious: The same with pessimism, for a second PPO.
    """

    seeds: tuple[int, ...] = (21, 22, 23, 24, 25)
    variants: tuple[str | None, ...] = (None, CONTROL)
    shoppers: int = 6_000
    days: int = 56
    horizon: int = int(WHOLE_PAGES.horizon)
    followed: int = 4_000
    fit: FitConfig = field(default_factory=lambda: FidelityConfig().fit)
    train: PageTrainConfig = WHOLE_PAGES
    privileged: int = 5
    reward: RewardSpec = WHOLE_PAGES.reward
    cautious: RewardSpec = field(default_factory=lambda: replace(WHOLE_PAGES.reward, disagreement=0.5, support=0.2))


QUICK = LeaderboardConfig(
    seeds=(31,),
    variants=(None,),
    shoppers=300,
    followed=200,
    fit=FitConfig(members=2, epochs=2),
    train=PageTrainConfig(steps=8_192, shoppers=256, pages=8, batch=1024, greedy=4.0),
    privileged=2,
)
"""For a look: its figures say that the benchmark runs, not who wins."""


def bench_leaderboard(config: LeaderboardConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The report: "figures", "seeds", "arms" with the means of every metric, and "details" by variant and seed.

    Raises:
        InputError: No seeds, a bad variant, or a fit that failed.
    """
    require_seeds(config.seeds, "leaderboard.seeds")
    jobs = []
    for variant in config.variants:
        world = BazaarWorld(load_bazaar(variant), _CPU)
        for seed in config.seeds:
            told(f"{variant or 'base'}, seed {seed}")
            logs = cached_logs(world, config.shoppers, config.days, seed, told)
            shoppers = cached_fit(logs, replace(config.fit, seed=seed), told).shoppers
            jobs.append(_Job(config, variant, seed, logs, shoppers))
    with side_by_side(min(available_cores(), len(jobs)), told) as start:
        details: list[dict[str, Any]] = gathered([start(_one_seed, job) for job in jobs])
    figures: dict[str, Figure] = {}
    table: dict[str, Any] = {}
    for variant in dict.fromkeys(detail["variant"] for detail in details):
        rows = [detail for detail in details if detail["variant"] == variant]
        figures |= _figures(rows, control=variant == CONTROL)
        table[variant] = {
            name: {metric: float(np.mean([row["arms"][name][metric] for row in rows])) for metric in METRICS}
            for name in rows[0]["arms"]
        }
    report = {"figures": figures, "seeds": list(config.seeds), "arms": table, "details": details}
    checked: dict[str, Any] = finite(report)
    return checked


@dataclass(frozen=True)
class _Job:
    """What is trained and judged on one log."""

    config: LeaderboardConfig
    variant: str | None
    seed: int
    logs: Path
    shoppers: Path


def _one_seed(job: _Job, to: Told) -> dict[str, Any]:
    config, seed, logs, variant = job.config, job.seed, job.logs, job.variant or "base"

    def told(line: str) -> None:
        to(f"{variant}, seed {seed}: {line}")

    world, fitted = BazaarWorld(load_bazaar(job.variant), _CPU), load_shoppers(job.shoppers, _CPU)
    lines = () if fitted.lines is None else fitted.lines.texts
    gold = read(fitted, world, config.reward)
    train = replace(config.train, seed=seed)
    shown = torch.arange(len(lines)) if lines else None
    contestants: dict[str, tuple[World, Proposer]] = _baselines(world, fitted, logs, config, seed)
    curves = {}
    for name, reward in (("ppo", config.reward), ("cautious ppo", config.cautious)):
        proxy = read(fitted, fitted.world("train", reward.doubts), config.reward)
        strategy, curves[name] = learn_pages(proxy, fitted, reward, train, config.horizon, told, name)
        contestants[name] = (gold, strategy)
    if variant != CONTROL:  # there nothing moves retention: it would have nothing to show
        truth = TruthWorld(world, config.reward, lines)
        longer = replace(train, steps=train.steps * config.privileged)
        strategy, curves["privileged"] = learn_pages(
            truth, fitted, config.reward, longer, config.horizon, told, "privileged"
        )
        contestants["privileged"] = (truth, strategy)
    arms = {}
    for name, (where, proposer) in contestants.items():
        totals = rollout(where, proposer, config.followed, config.horizon, _seeded(fresh(seed, 11)))
        arms[name] = metrics(totals, config.reward)
        told(f"{name}: reward {arms[name]['reward']:.2f}, CTR {arms[name]['ctr']:.4f}, D7 {arms[name]['d7']:.3f}")
    judge, judged = read(fitted, fitted.world("judge"), config.reward), {}
    # The judge knows the lines of the log alone, by numbers of their own.
    habits = logging_strategy(world, LOGGED).habits
    strategies: dict[str, Proposer] = {"logging": keeper(world, "logging", habits, shown)}
    strategies |= {name: contestants[name][1] for name in ("myopic", "ppo", "cautious ppo")}
    for name, proposer in strategies.items():
        totals = rollout(judge, proposer, config.followed, config.horizon, _seeded(fresh(seed, 12)))
        judged[name] = float(totals.reward(config.reward.click, config.reward.conversion).mean())
    return {"variant": variant, "seed": seed, "arms": arms, "judged": judged, "curves": curves}


def _baselines(
    world: BazaarWorld, fitted: FittedShoppers, logs: Path, config: LeaderboardConfig, seed: int
) -> dict[str, tuple[World, Proposer]]:
    """Return the strategies to beat by name, each with the gold world in the form that it sees."""
    lines = () if fitted.lines is None else fitted.lines.texts
    gold = read(fitted, world, config.reward)
    shown = torch.arange(len(lines)) if lines else None
    habits = logging_strategy(world, LOGGED).habits
    # The bazaar's contexts are those that its logs are encoded into.
    clicks = ClickModel.fit(
        ClickRows.from_impressions(require_impressions(read_logs(logs)), fitted.builder), fitted.builder
    )
    bandit = LinUCB(clicks, world.size)
    return {
        "logging": (world, logging_strategy(world, LOGGED)),
        "random items": (world, keeper(world, "random items", replace(habits, exploration=1.0))),
        "popularity alone": (world, keeper(world, "popularity alone", Habits(exploration=0.0))),
        "linucb": (world, keeper(world, "linucb", replace(habits, exploration=0.0), score=bandit.bound)),
        "thompson": (world, LinearThompson(clicks, world.size, seed=seed)),
        "greedy on clicks": (gold, MyopicPages("greedy on clicks", gold, RewardSpec(), shown)),
        "myopic": (gold, MyopicPages("myopic", gold, config.reward, shown)),
    }


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keeper(
    world: BazaarWorld, name: str, habits: Habits, lines: torch.Tensor | None = None, score: Scores | None = None
) -> Shopkeeper:
    """Return a strategy by rules that ranks by popularity and says the logs' lines, unless others are given."""
    popularity, bids = (
        torch.tensor(world.items.table[column].to_numpy(), dtype=torch.float32) for column in ("popularity", "bid")
    )
    lines = world.logged_lines.nonzero().squeeze(1) if lines is None else lines
    return Shopkeeper(name, world.size, popularity if score is None else score, habits, bids, lines)


class _Curve(BaseCallback):
    """Keeps the reward per page of every rollout."""

    def __init__(self, told: Told, name: str, steps: int) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []
        self._told, self._name, self._steps = told, name, steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.points.append((self.num_timesteps, float(self.logger.name_to_value["rollout/reward"])))
        tenth = max(self._steps // 10, 1)
        if self.num_timesteps // tenth > (self.points[-2][0] if len(self.points) > 1 else 0) // tenth:
            self._told(f"{self._name}: {self.num_timesteps:,} pages, reward a page {self.points[-1][1]:.4f}")


def learn_pages(
    world: World,
    fitted: FittedShoppers,
    reward: RewardSpec,
    train: PageTrainConfig,
    horizon: float,
    told: Told,
    name: str,
    parts: Parts = STOREFRONT,
) -> tuple[LikeliestPages, list[tuple[int, float]]]:
    """Return PPO's likeliest pages and its learning curve: pages seen, and reward a page."""
    rules = Rules(horizon=horizon)
    env = StorefrontVecEnv(world, train.shoppers, reward, train.seed, parts=parts, rules=rules)
    vectors = None if fitted.lines is None else fitted.lines.scaled
    model = page_ppo(env, train, vectors)
    model.set_logger(Logger(None, []))
    curve = _Curve(told, name, train.steps)
    started = time.perf_counter()
    model.learn(train.steps, callback=curve)
    told(f"{name}: {model.num_timesteps / (time.perf_counter() - started):,.0f} pages a second")
    trained = PageStrategy(model.policy.actor, world.builder, world.lines, {"seed": train.seed})
    return LikeliestPages(trained), curve.points


METRICS = (
    "reward",
    "worst_segment",
    "visits",
    "pages",
    "ctr",
    "cvr",
    "d7",
    "revenue",
    "ad_income",
    "ad_load",
    "items",
    "gini",
)


def metrics(totals: Totals, reward: RewardSpec) -> dict[str, float]:
    """Return what shoppers did, by name of ``METRICS``.

    ``reward``, ``visits``, ``pages``, ``revenue`` and ``ad_income`` are means over shoppers of the whole time (reward:
    clicks and purchases by their weights); ``worst_segment`` is the least reward of a hidden segment of shoppers, as a
    share of the mean; ``ctr`` is clicks an impression, ``cvr`` purchases a click, ``d7`` the share who come back within
    7 days of their first visit, ``ad_load`` ads a page, ``items`` how many items the impressions would be spread over
    evenly (the exponential of their entropy), ``gini`` of exposure over all items.
    """
    clicks, purchases, impressions = (
        float(part.sum()) for part in (totals.clicks, totals.purchases, totals.impressions)
    )
    share = totals.exposure.double() / totals.exposure.sum().clamp(min=1)
    ranked = share.sort().values
    n, rewards = len(ranked), totals.reward(reward.click, reward.conversion)
    gini = float(((2 * torch.arange(1, n + 1) - n - 1) * ranked).sum()) / n
    return {
        "reward": float(rewards.mean()),
        "worst_segment": float(totals.by_segment(rewards).min() / rewards.mean().clamp(min=1e-9)),
        "visits": len(totals.visits.shopper) / len(totals.clicks),
        "pages": float(totals.pages.mean()),
        "ctr": clicks / max(impressions, 1.0),
        "cvr": purchases / max(clicks, 1e-9),
        "d7": float(totals.back.mean()),
        "revenue": float(totals.revenue.mean()),
        "ad_income": float(totals.ad_income.mean()),
        "ad_load": float(totals.ads.sum() / totals.pages.sum()),
        "items": float((-(share * share.clamp(min=1e-30).log()).sum()).exp()),
        "gini": gini,
    }


BASELINES = ("random items", "popularity alone", "linucb", "thompson", "greedy on clicks", "myopic")


def _figures(rows: list[dict[str, Any]], control: bool) -> dict[str, Figure]:
    """Return the figures of one variant from its seeds; those of the negative control are named so."""

    def of(name: str, metric: str) -> Floats:
        return np.array([row["arms"][name][metric] for row in rows])

    def mean(values: Floats, unit: str) -> Figure:
        return over_seeds(values.tolist(), unit)

    variant = rows[0]["variant"]
    if control:
        return {"control.d7": mean(of("ppo", "d7") - of("myopic", "d7"), "difference of shares")}
    prefix = "" if variant == "base" else f"{variant}."
    ppo, cautious, logging, myopic = (of(name, "reward") for name in ("ppo", "cautious ppo", "logging", "myopic"))
    best = np.max([of(name, "reward") for name in BASELINES], axis=0)
    gap = of("privileged", "reward") - logging
    unit, difference = "reward a shopper", "difference of shares"

    def proxy_gap(name: str) -> Figure:
        lift = of(name, "reward") - logging
        judged = np.array([row["judged"][name] - row["judged"]["logging"] for row in rows])
        return mean(np.abs(judged - lift) / np.abs(lift), "share of the lift")

    found = {
        "ppo.gap_closed": mean((ppo - logging) / gap, "share of the gap"),
        "ppo.cautious_gap_closed": mean((cautious - logging) / gap, "share of the gap"),
        "myopic.gap_closed": mean((myopic - logging) / gap, "share of the gap"),
        "gap": mean(gap, unit),
        "ppo_minus_logging.reward": mean(ppo - logging, unit),
        "ppo_minus_best_baseline.reward": mean(ppo - best, unit),
        "ppo_minus_myopic.ltv": mean(ppo - myopic, unit),
        "ppo_minus_myopic.d7": mean(of("ppo", "d7") - of("myopic", "d7"), difference),
        "ppo_minus_greedy.ltv": mean(ppo - of("greedy on clicks", "reward"), unit),
        "ppo_minus_greedy.d7": mean(of("ppo", "d7") - of("greedy on clicks", "d7"), difference),
        "cautious_minus_ppo.ltv": mean(cautious - ppo, unit),
        "proxy_gap.plain": proxy_gap("ppo"),
        "proxy_gap.pessimistic": proxy_gap("cautious ppo"),
    }
    return {prefix + name: value for name, value in found.items()}
