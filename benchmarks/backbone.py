"""``hawker bench backbone``: does tuning the language model for the choices, by policy gradient, earn anything?

On the logs of the leaderboard, PPO learns whole pages twice from the same seed: through the eyes of a language model as
it is, and through those of the same model under LoRA, which learns from what PPO learns. Everything is learned from
logs, and the judge of the fit says which pages to keep. Then the gold world says who was right: on the items of the
log, and where half of a visit's candidates are new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hawker.agents.backbone import BackboneConfig
from hawker.agents.config import WHOLE_PAGES, TrainConfig
from hawker.agents.page_world import read
from hawker.agents.tuned_pages import Eyes, Trained, tuned_pages
from hawker.benchmarks.embeddings import require_unseen, stock_of
from hawker.benchmarks.fidelity import FidelityConfig, finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.leaderboard import METRICS, metrics
from hawker.benchmarks.restocked import Restocked
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.policies.page_actor import LikeliestPages
from hawker.shop.figures import Figure, figure
from hawker.shop.logs import read_logs
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.store import load_shoppers

ARMS: tuple[Eyes, Eyes] = ("frozen", "tuned")
"""Through which eyes pages see items: those of the language model as it is, and as it was tuned."""

POOLS = ("known", "new")
"""What candidates are drawn from: the items of the log; these and as many that came after it."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BackboneBenchConfig:
    """What is trained and judged.

    Attributes:
        seeds: One log, fit, pair of trainings and judgement each.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that an arm is followed.
        followed: Shoppers of an arm in each pool.
        fit: How shoppers are learned; as for ``hawker bench fidelity``, whose logs and fits these are.
        train: How PPO learns pages, and what they are worth.
        backbone: The language model, and how it learns.
    """

    seeds: tuple[int, ...] = (21, 22, 23)
    shoppers: int = 6_000
    days: int = 56
    horizon: int = int(WHOLE_PAGES.horizon)
    followed: int = 4_000
    fit: FitConfig = field(default_factory=lambda: FidelityConfig().fit)
    train: TrainConfig = WHOLE_PAGES
    backbone: BackboneConfig = field(default_factory=BackboneConfig)


QUICK = BackboneBenchConfig(
    seeds=(31,),
    shoppers=300,
    days=28,
    followed=200,
    fit=FitConfig(members=2, epochs=2),
    train=replace(WHOLE_PAGES, steps=8_192, shoppers=256, pages=8, batch=1024, critic_first=2_048),
)
"""For a look: its figures say that the benchmark runs, not who wins."""


def bench_backbone(config: BackboneBenchConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        config: What is trained and judged.
        told: Called with a line now and then.

    Returns:
        The report: "figures", "seeds", "arms" with the means of every metric by pool, "notes", and "details" by seed:
        what gold and the judge say, which arm the judge keeps, and the steps of the language model.

    Raises:
        InputError: No seeds, no such model, or a fit or training that failed.
    """
    require_seeds(config.seeds, "backbone.seeds")
    world = BazaarWorld(load_bazaar(), _CPU)
    details = []
    for seed in config.seeds:
        told(f"seed {seed}")
        details.append(_one_seed(world, config, seed, told))
    arms = {
        pool: {
            name: {
                metric: float(np.mean([each["pools"][pool][name][metric] for each in details])) for metric in METRICS
            }
            for name in ARMS
        }
        for pool in POOLS
    }
    figures = _figures(details)
    report = {"figures": figures, "seeds": list(config.seeds), "arms": arms, "notes": _notes(details)}
    checked: dict[str, Any] = finite({**report, "details": details})
    return checked


def _one_seed(world: BazaarWorld, config: BackboneBenchConfig, seed: int, told: Told) -> dict[str, Any]:
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    fitted = load_shoppers(cached_fit(logs, replace(config.fit, seed=seed), told).shoppers, _CPU)
    items = read_logs(logs).items
    assert items is not None
    known, some, others = stock_of(world, fresh(seed, 51))
    new = torch.cat([some, others])
    require_unseen(fitted, new)
    train, backbone = replace(config.train, seed=seed), replace(config.backbone, seed=seed)
    found = tuned_pages(fitted, items, train, backbone, _tenths(told))
    half = world.choices // 2
    stocks = {"known": [(known, world.choices)], "new": [(new, half), (known, world.choices - half)]}
    pools: dict[str, dict[str, dict[str, float]]] = {}
    for pool in POOLS:
        gold, pools[pool] = read(fitted, Restocked(world, stocks[pool]), train.reward), {}
        for name in ARMS:
            drawn = torch.Generator().manual_seed(fresh(seed, 52))
            totals = rollout(gold, LikeliestPages(found.pages[name]), config.followed, config.horizon, drawn)
            pools[pool][name] = metrics(totals, train.reward)
            told(f"{name}, {pool} items: reward {pools[pool][name]['reward']:.2f}")
    told(f"the judge keeps the {found.kept} ones")
    return {"seed": seed, "pools": pools, **_told_of(found)}


def _told_of(found: Trained) -> dict[str, Any]:
    """Return what a report says of a training."""
    return {"judged": found.figures, "kept": found.kept, "steps": found.history}


def _figures(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures from what each seed found."""
    figures: dict[str, Figure] = {}
    unit = "reward a shopper"
    for pool in POOLS:
        found = {name: [each["pools"][pool][name]["reward"] for each in details] for name in ARMS}
        figures |= {f"{pool}.{name}": over_seeds(values, unit) for name, values in found.items()}
        gains = np.subtract(found["tuned"], found["frozen"]).tolist()
        figures[f"{pool}.tuned_minus_frozen"] = over_seeds(gains, unit)
    judged = [each["judged"]["reward_per_shopper.gain"]["value"] for each in details]
    figures["judge.tuned_minus_frozen"] = over_seeds(judged, unit)
    kept = float(np.mean([each["kept"] == "tuned" for each in details]))
    figures["judge.kept"] = figure(kept, None, None, len(details), "share of seeds")
    moved = [each["steps"][-1]["moved"] if each["steps"] else 0.0 for each in details]
    figures["moved"] = over_seeds(moved, "of 2, the spread of all texts")
    return figures


def _notes(details: list[dict[str, Any]]) -> list[str]:
    """Say of each seed what the judge found and decided."""
    notes = []
    for each in details:
        gain = each["judged"]["reward_per_shopper.gain"]
        numbers = ", ".join(f"{gain[end]:+.3f}" if gain[end] is not None else "-" for end in ("low", "high"))
        value = "-" if gain["value"] is None else f"{gain['value']:+.3f}"
        verdict = f"tuned - frozen is {value} [{numbers}] reward a shopper: {each['kept']} is kept"
        notes.append(f"seed {each['seed']}: on the judge's shoppers {verdict}")
    return notes


def _tenths(told: Told) -> Callable[[Eyes, int, int, float], None]:
    """Return a callback that tells of every tenth of a training."""
    last = dict.fromkeys(ARMS, 0)

    def progress(eyes: Eyes, done: int, of: int, reward: float) -> None:
        if (tenth := done * 10 // of) > last[eyes]:
            last[eyes] = tenth
            told(f"{eyes}: {done:,} pages, reward a page {reward:.4f}")

    return progress
