"""``hawker bench constraints``: are limits on ads and exposure held by what is trained under them, and at what price?

A strategy is trained against learned shoppers without limits ("free"), then another with an ad load and a provider's
share that the first one misses by far ("trained"); then it is settled on them ("bound"). What training under prices is
good for is seen against the free strategy when it alone is settled ("thinned"): it leaves out ads, but has not learned
which. All are judged by new shoppers in the world that they were trained in, since that is where the limits are
promised, and what becomes of them in the gold world stands beside it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from hawker.agents.config import Constraints, PageTrainConfig, ProviderShare
from hawker.agents.constraints import PROVIDER, Prices
from hawker.agents.page_ppo import page_ppo
from hawker.agents.settling import measure, settle
from hawker.benchmarks.fidelity import finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.side_by_side import Told
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

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ConstraintsConfig:
    """What is trained and judged.

    Attributes:
        seeds: One log, fit, and pair of trainings each.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that a strategy is followed.
        followed: Shoppers of a strategy when it is judged.
        settled: Others, of each simulation when it is settled.
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
    followed: int = 8_000
    settled: int = 8_000
    fit: FitConfig = field(default_factory=lambda: FitConfig(members=2))
    train: PageTrainConfig = field(default_factory=lambda: PageTrainConfig(steps=1_000_000, final_rate=0.1))
    reward: RewardSpec = field(default_factory=lambda: RewardSpec(conversion=5.0, ad_income=15.0))
    ad_load: float = 0.1
    raised: float = 0.1


QUICK = ConstraintsConfig(
    seeds=(61,),
    shoppers=300,
    followed=500,
    settled=500,
    fit=FitConfig(members=2, epochs=2),
    train=PageTrainConfig(steps=32_768, shoppers=256, pages=8, batch=512, final_rate=0.1),
)
"""For a look: its figures say that the benchmark runs, not that limits are held."""


def bench_constraints(config: ConstraintsConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The report: "figures", "seeds", and "details" by seed with what the strategies do in both worlds, how they were
        settled and, of every rollout of the trainings, what was measured and the multipliers.

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
    rules = Rules(horizon=config.horizon)
    free, _, free_curve = _train(learned, fitted, Constraints(), config, seed)
    found = {"free": _judged(learned, free, config, seed)}
    # Who is never shown may have nothing in stock.
    share = {name: part for name, part in found["free"]["shares"].items() if part > 0}
    provider = min(share, key=lambda name: (share[name], name))
    promised = ProviderShare(provider, share[provider] + config.raised)
    told(f"without limits: ad load {found['free']['ad_load']:.3f}, {provider} has {share[provider]:.3f}")
    trained, prices, bound_curve = _train(learned, fitted, Constraints(config.ad_load, (promised,)), config, seed)
    strategies = {"free": free, "trained": trained, "bound": copy.deepcopy(trained), "thinned": copy.deepcopy(free)}
    settled = {
        name: settle(strategies[name], learned, prices, rules, config.settled, fresh(seed, 15))._asdict()
        for name in ("bound", "thinned")
    }
    for name, strategy in strategies.items():
        if name not in found:
            found[name] = _judged(learned, strategy, config, seed)
        found[f"{name}_gold"] = _judged(gold, strategy, config, seed)
        load, own, reward = found[name]["ad_load"], found[name]["shares"][provider], found[name]["reward"]
        told(f"{name}: ad load {load:.3f}, {provider} has {own:.3f} of {promised.least:.3f}, reward {reward:.2f}")
    limits = {"ad_load": config.ad_load, "provider": provider, "share": promised.least}
    curves = {"free": free_curve, "bound": bound_curve}
    return {"seed": seed, "limits": limits, **found, "settled": settled, "curves": curves}


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
) -> tuple[PageStrategy, Prices, list[dict[str, float]]]:
    """Return PPO's strategy under constraints, the prices at the end, and its curve."""
    train = replace(config.train, constraints=constraints, seed=seed)
    rules = Rules(horizon=config.horizon)
    env = StorefrontVecEnv(world, train.shoppers, config.reward, seed, parts=STOREFRONT, rules=rules)
    model = page_ppo(env, train, None if fitted.lines is None else fitted.lines.scaled)
    model.set_logger(Logger(None, []))
    curve = _Curve()
    model.learn(train.steps, callback=curve)
    return (
        PageStrategy(model.policy.actor, world.builder, world.lines, {"seed": seed}),
        model.policy.prices,
        curve.points,
    )


def _judged(world: ReadWorld, strategy: PageStrategy, config: ConstraintsConfig, seed: int) -> dict[str, Any]:
    """Return what a strategy, drawing its pages as it would be served, does in a world.

    ``reward`` is a mean over shoppers of the whole time, ``ad_load`` ads a page, ``shares`` are of all impressions, by
    provider; each with its standard errors over shoppers.
    """
    catalog = world.builder.catalog
    providers = catalog.features.categories[PROVIDER]
    nothing = tuple(ProviderShare(provider, 1e-6) for provider in providers)
    prices, rules = Prices(Constraints(1.0, nothing), catalog), Rules(horizon=config.horizon)
    measured = measure(strategy, world, prices, config.reward, rules, config.followed, fresh(seed, 13))
    (load, *shares), (load_error, *share_errors), found = measured[0].tolist(), measured[1].tolist(), measured[2]
    return {
        "reward": float(found.reward.mean()),
        "reward_error": float(found.reward.std()) / config.followed**0.5,
        "ad_load": load,
        "ad_load_error": load_error,
        "pages": float(found.pages.mean()),
        "shares": dict(zip(providers, shares, strict=True)),
        "share_errors": dict(zip(providers, share_errors, strict=True)),
    }


def _figures(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures; by how much limits are broken is the worst seed's, with the interval of its shoppers."""

    def each(arm: str, metric: str) -> list[float]:
        if metric.startswith("share"):
            return [row[arm][f"{metric}s"][row["limits"]["provider"]] for row in details]
        return [row[arm][metric] for row in details]

    def lost(before: str, after: str) -> Figure:
        values = [1 - b / f for b, f in zip(each(after, "reward"), each(before, "reward"), strict=True)]
        return over_seeds(values, "share of the reward")

    def worst(values: list[float], errors: list[float], of: str) -> Figure:
        value, error = max(zip(values, errors, strict=True))
        half = 1.96 * error
        return figure(value, value - half, value + half, len(values), f"share of {of}, worst seed")

    def excess(arm: str) -> Figure:
        values = [got - row["limits"]["ad_load"] for got, row in zip(each(arm, "ad_load"), details, strict=True)]
        return worst(values, each(arm, "ad_load_error"), "pages")

    def deficits(arm: str) -> list[float]:
        return [row["limits"]["share"] - got for got, row in zip(each(arm, "share"), details, strict=True)]

    def deficit(arm: str) -> Figure:
        return worst(deficits(arm), each(arm, "share_error"), "impressions")

    pages, shown = "share of pages", "share of impressions"
    return {
        "constraint.ad_load_excess": excess("bound"),
        "constraint.share_deficit": deficit("bound"),
        "constraint.price": lost("free", "bound"),
        "constraint.ad_load": over_seeds(each("bound", "ad_load"), pages),
        "constraint.share": over_seeds(each("bound", "share"), shown),
        "unconstrained.ad_load": over_seeds(each("free", "ad_load"), pages),
        "unconstrained.share": over_seeds(each("free", "share"), shown),
        "unconstrained.share_deficit": over_seeds(deficits("free"), shown),
        "unsettled.ad_load_excess": excess("trained"),
        "unsettled.share_deficit": deficit("trained"),
        "settling.price": lost("trained", "bound"),
        "thinned.ad_load_excess": excess("thinned"),
        "thinned.share_deficit": deficit("thinned"),
        "thinned.price": lost("free", "thinned"),
        "gold.ad_load_excess": excess("bound_gold"),
        "gold.share_deficit": deficit("bound_gold"),
        "gold.ad_load": over_seeds(each("bound_gold", "ad_load"), pages),
        "gold.share": over_seeds(each("bound_gold", "share"), shown),
        "gold.unsettled_ad_load": over_seeds(each("trained_gold", "ad_load"), pages),
        "gold.price": lost("free_gold", "bound_gold"),
        "gold.settling_price": lost("trained_gold", "bound_gold"),
        "gold.thinned_price": lost("free_gold", "thinned_gold"),
    }
