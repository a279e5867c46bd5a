"""``hawker bench constraints``: are limits on ads and exposure held by what is trained under them, and at what price?

A strategy is trained against learned shoppers without limits, then another with an ad load and a provider's share that
the first one misses by far. Both are judged in the world that they were trained in, since that is where the limits are
promised, and what becomes of them in the gold world stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from hawker.agents.config import Constraints, PageTrainConfig, ProviderShare
from hawker.agents.constraints import PROVIDER, items_of
from hawker.agents.page_ppo import page_ppo
from hawker.benchmarks.fidelity import finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.envs.page import STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page_actor import PageStrategy
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.reader import ReadWorld
from hawker.simulators.store import FittedShoppers, load_shoppers

Told = Callable[[str], None]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ConstraintsConfig:
    """What is trained and judged.

    Attributes:
        seeds: One log, fit, and pair of trainings each.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that a strategy is followed.
        followed: Shoppers of a strategy.
        fit: How shoppers are learned.
        train: How PPO learns from them.
        reward: What a page is worth; ads must pay, or nobody would show them.
        ad_load: The limit on ads.
        raised: What is promised to the provider whom the strategy without limits shows least, beyond its share there.
    """

    seeds: tuple[int, ...] = (61, 62, 63)
    shoppers: int = 1_500
    days: int = 42
    horizon: int = 28
    followed: int = 20_000
    fit: FitConfig = field(default_factory=lambda: FitConfig(members=2))
    train: PageTrainConfig = field(default_factory=lambda: PageTrainConfig(steps=1_000_000, final_rate=0.1))
    reward: RewardSpec = field(default_factory=lambda: RewardSpec(conversion=5.0, ad_income=15.0))
    ad_load: float = 0.1
    raised: float = 0.1


QUICK = ConstraintsConfig(
    seeds=(61,),
    shoppers=300,
    followed=500,
    fit=FitConfig(members=2, epochs=2),
    train=PageTrainConfig(steps=32_768, shoppers=256, pages=8, batch=512, final_rate=0.1),
)
"""For a look: its figures say that the benchmark runs, not that limits are held."""


def bench_constraints(config: ConstraintsConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The report: "figures", "seeds", and "details" by seed with what both strategies do in both worlds and, of every
        rollout, what was measured and the multipliers.

    Raises:
        InputError: No seeds, or a fit that failed.
    """
    require_seeds(config.seeds, "constraints.seeds")
    world = BazaarWorld(load_bazaar(), _CPU)
    details = []
    for seed in config.seeds:
        told(f"seed {seed}")
        details.append(_one_seed(world, config, seed, told))
    checked: dict[str, Any] = finite({"figures": _figures(details), "seeds": list(config.seeds), "details": details})
    return checked


def _one_seed(world: BazaarWorld, config: ConstraintsConfig, seed: int, told: Told) -> dict[str, Any]:
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    fitted = load_shoppers(cached_fit(logs, replace(config.fit, seed=seed), told).shoppers, _CPU)
    lines = () if fitted.lines is None else fitted.lines.texts
    learned, gold = (
        ReadWorld(inner, fitted.builder, fitted.ensembles["train"], config.reward, lines)
        for inner in (fitted.world("train"), world)
    )
    free, free_curve = _train(learned, fitted, Constraints(), config, seed)
    found = {"free": _judged(learned, free, config, seed)}
    # Who is never shown may have nothing in stock.
    share = {name: part for name, part in found["free"]["shares"].items() if part > 0}
    provider = min(share, key=lambda name: (share[name], name))
    promised = ProviderShare(provider, share[provider] + config.raised)
    told(f"without limits: ad load {found['free']['ad_load']:.3f}, {provider} has {share[provider]:.3f}")
    bound, bound_curve = _train(learned, fitted, Constraints(config.ad_load, (promised,)), config, seed)
    found |= {
        "bound": _judged(learned, bound, config, seed),
        "free_gold": _judged(gold, free, config, seed),
        "bound_gold": _judged(gold, bound, config, seed),
    }
    held = found["bound"]
    told(
        f"limits {config.ad_load:.3f} and {promised.least:.3f}: ad load {held['ad_load']:.3f}, {provider} has "
        f"{held['shares'][provider]:.3f}, reward {held['reward']:.2f} of {found['free']['reward']:.2f}"
    )
    limits = {"ad_load": config.ad_load, "provider": provider, "share": promised.least}
    return {"seed": seed, "limits": limits, **found, "curves": {"free": free_curve, "bound": bound_curve}}


class _Curve(BaseCallback):
    """Keeps of every rollout the pages so far, the reward a page, and what constraints measured and cost."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        logged = self.logger.name_to_value
        kept = {name: float(logged[name]) for name in logged if name.startswith("constraint/")}
        names = ("rollout/reward", "rollout/penalty")
        self.points.append({"pages": self.num_timesteps} | {name: float(logged[name]) for name in names} | kept)


def _train(
    world: ReadWorld, fitted: FittedShoppers, constraints: Constraints, config: ConstraintsConfig, seed: int
) -> tuple[PageStrategy, list[dict[str, float]]]:
    """Return PPO's strategy under constraints, and its curve."""
    train = replace(config.train, constraints=constraints, seed=seed)
    rules = Rules(horizon=config.horizon)
    env = StorefrontVecEnv(world, train.shoppers, config.reward, seed, parts=STOREFRONT, rules=rules)
    model = page_ppo(env, train, None if fitted.lines is None else fitted.lines.scaled)
    model.set_logger(Logger(None, []))
    curve = _Curve()
    model.learn(train.steps, callback=curve)
    return PageStrategy(model.policy.actor, world.builder, world.lines, {"seed": seed}), curve.points


def _judged(world: ReadWorld, strategy: PageStrategy, config: ConstraintsConfig, seed: int) -> dict[str, Any]:
    """Return what a strategy, drawing its pages as it would be served, does in a world.

    ``reward`` is a mean over shoppers of the whole time, ``ad_load`` ads a page, both with their standard errors over
    shoppers; ``shares`` are of all impressions, by provider.
    """
    generator = torch.Generator().manual_seed(fresh(seed, 13))
    totals, spec = rollout(world, strategy, config.followed, config.horizon, generator), config.reward
    reward = totals.reward(spec.click, spec.conversion) + spec.ad_income * totals.ad_income
    load = float(totals.ads.sum() / totals.pages.sum())
    root = len(reward) ** 0.5
    catalog, shown = world.builder.catalog, totals.exposure.double()
    shares = {
        provider: float(shown[torch.from_numpy(items_of(provider, catalog))].sum() / shown.sum())
        for provider in catalog.features.categories[PROVIDER]
    }
    return {
        "reward": float(reward.mean()),
        "reward_error": float(reward.std()) / root,
        "ad_load": load,
        "ad_load_error": float((totals.ads - load * totals.pages).std() / totals.pages.mean()) / root,
        "pages": float(totals.pages.mean()),
        "shares": shares,
    }


def _figures(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures; what is promised is that of the worst seed."""

    def each(arm: str, metric: str) -> list[float]:
        if metric == "share":
            return [row[arm]["shares"][row["limits"]["provider"]] for row in details]
        return [row[arm][metric] for row in details]

    def price(free: str, bound: str) -> list[float]:
        return [1 - b / f for b, f in zip(each(bound, "reward"), each(free, "reward"), strict=True)]

    def worst(values: list[float], unit: str) -> Figure:
        return figure(max(values), None, None, len(values), unit)

    limits = [row["limits"] for row in details]
    excess = [got - limit["ad_load"] for got, limit in zip(each("bound", "ad_load"), limits, strict=True)]
    deficit = [limit["share"] - got for got, limit in zip(each("bound", "share"), limits, strict=True)]
    missed = [limit["share"] - got for got, limit in zip(each("free", "share"), limits, strict=True)]
    pages, shown, lost = "share of pages", "share of impressions", "share of the reward"
    return {
        "constraint.ad_load_excess": worst(excess, f"{pages}, worst seed"),
        "constraint.share_deficit": worst(deficit, f"{shown}, worst seed"),
        "constraint.price": over_seeds(price("free", "bound"), lost),
        "constraint.ad_load": over_seeds(each("bound", "ad_load"), pages),
        "constraint.share": over_seeds(each("bound", "share"), shown),
        "unconstrained.ad_load": over_seeds(each("free", "ad_load"), pages),
        "unconstrained.share": over_seeds(each("free", "share"), shown),
        "unconstrained.share_deficit": over_seeds(missed, shown),
        "gold.ad_load": over_seeds(each("bound_gold", "ad_load"), pages),
        "gold.share": over_seeds(each("bound_gold", "share"), shown),
        "gold.price": over_seeds(price("free_gold", "bound_gold"), lost),
    }
