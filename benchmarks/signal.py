"""``hawker bench signal``: on logs of a shop's own shape with planted effects, is a signal found that is there?

Everything but the clicks comes from a real log. The click probabilities are planted and known, so that the whole line
(fit, train, estimate) can be held against the truth. Nothing is trained on the planted world, only on logs it writes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score

from hawker.agents.config import TrainConfig
from hawker.agents.train import train
from hawker.benchmarks.crossfit import crossfit_q
from hawker.benchmarks.evaluation import DRAWS
from hawker.benchmarks.ope import estimate
from hawker.policies.baselines import RandomStrategy
from hawker.policies.protocol import slate_of
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import write_directory
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.logs import read_logs
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig, PlantedEffects
from hawker.simulators.fidelity import predict
from hawker.simulators.fit import fit
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.rows import Rows
from hawker.simulators.store import FittedShoppers, load_shoppers, require_impressions, whole_catalog

COVERED = ("dr", "snips", "ips")
"""Estimators whose intervals are counted against the truth."""

LEAST_ROWS = 100
"""Fewest rows of a planted log: three parts and their bootstraps have to hold something."""

PROBES = 200_000
"""Impressions that the click model is held against the truth on."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SignalConfig:
    """What to plant and how often.

    Attributes:
        impressions: Rows of each planted log.
        seeds: Planted worlds, each with its own effects, log, shoppers and strategy.
        repeats: Logs drawn from the first world to count how often intervals cover the truth.
        effects: Sizes of the effects.
        fit: How shoppers are learned.
        train: How strategies are trained.
    """

    impressions: int = 200_000
    seeds: tuple[int, ...] = (11, 12, 13)
    repeats: int = 100
    effects: PlantedEffects = field(default_factory=PlantedEffects)
    fit: FitConfig = field(default_factory=FitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def bench_signal(logs: Path, config: SignalConfig, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the whole line on planted logs and compare it with the truth.

    Args:
        logs: A logs directory that gives shoppers, items and times.
        config: What to plant and how often.
        progress: Called with a line now and then.

    Returns:
        Figures over the seeds, and each seed's own values.

    Raises:
        InputError: The logs or the config cannot be used.
    """
    _check(config)
    tables = read_logs(logs)
    impressions = require_impressions(tables)
    assert tables.items is not None
    started = time.perf_counter()
    builder = ContextBuilder.fit(impressions, tables.items)
    context = builder.from_impressions(impressions)
    bank = whole_catalog(torch.from_numpy(context.shopper), torch.from_numpy(context.affinity))
    size = int(impressions["position"].max()) + 1
    rows: list[dict[str, float]] = []
    coverage: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in config.seeds:
            world = PlantedWorld(builder, bank, size, config.effects, seed)
            log = world.write_log(config.impressions, impressions, seed)
            run = Run(Path(scratch) / f"run-{seed}")
            write_log(Path(scratch) / f"logs-{seed}", log, tables.items)
            progress(f"seed {seed}: {int(log['clicked'].sum()):,} clicks planted")
            fit(Path(scratch) / f"logs-{seed}", run.shoppers, config.fit, lambda _: None)
            train(run, config.train, resume=False, progress=lambda *_: None)
            # Both may have used a GPU; the planted world is on the CPU.
            shoppers, strategy = load_shoppers(run.shoppers, _CPU), TrainedStrategy.load(run.policy, _CPU)
            # The fitted shoppers have their own schema: the same rows of the log, as they and the strategy see them.
            seen = shoppers.builder.from_impressions(impressions)
            contexts = whole_catalog(torch.from_numpy(seen.shopper), torch.from_numpy(seen.affinity))
            found = click_figures(shoppers, world, contexts, seed) | strategy_figures(strategy, world, contexts, seed)
            progress(", ".join(f"{name} {value:.4f}" for name, value in found.items()))
            rows.append({"seed": seed, **found})
            if not coverage:
                coverage = count_coverage(strategy, world, contexts, shoppers, config, progress)
    figures = {name: over_seeds([row[name] for row in rows], unit) for name, unit in UNITS.items()}
    return {
        "figures": figures | coverage,
        "by_seed": rows,
        "seeds": list(config.seeds),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _check(config: SignalConfig) -> None:
    for name, value, low in (("impressions", config.impressions, LEAST_ROWS), ("repeats", config.repeats, 1)):
        if value < low:
            raise InputError("too few", where=f"signal.{name}", got=value, expected=f"at least {low}")
    require_seeds(config.seeds, "signal.seeds", 62)
    if not 0 < config.effects.ctr < 1:  # NaN too
        raise InputError("not a click rate", where="signal.ctr", got=config.effects.ctr, expected="between 0 and 1")


UNITS = {
    "click.auc": "probability",
    "click.auc_truth": "probability",
    "click.auc_gap": "probability",
    "click.calibration": "ratio",
    "click.calibration_worst_decile": "ratio",
    "ppo.share_of_best": "ratio",
    "ppo.greedy_share_of_best": "ratio",
    "random.share_of_best": "ratio",
}


def write_log(path: Path, impressions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write impressions and items as a logs directory."""
    with write_directory(path, "logs") as scratch:
        impressions.to_parquet(scratch / "impressions.parquet")
        items.to_parquet(scratch / "items.parquet")


def click_figures(
    shoppers: FittedShoppers, world: PlantedWorld, contexts: Context[torch.Tensor], seed: int
) -> dict[str, float]:
    """Hold the click model against the truth on fresh impressions of the uniform strategy.

    Areas under the ROC curve are expected ones: every probe counts as a click with its true probability and as none
    with the rest, which leaves no noise of drawn clicks. Calibration is predicted over true clicks.
    """
    drawn = world.draw(PROBES, torch.Generator().manual_seed(seed + 1))
    truth = drawn.probability.numpy()
    affinity = contexts.affinity[drawn.row, drawn.item]
    page = torch.arange(len(drawn.row))
    probes = Rows(contexts.shopper[drawn.row], page, drawn.item, drawn.position, affinity, drawn.clicked)
    predicted = predict(shoppers.ensembles["train"], probes)
    auc, auc_truth = expected_auc(predicted, truth), expected_auc(truth, truth)
    decile = np.array_split(np.argsort(predicted), 10)
    ratios = [float(predicted[rows].mean() / truth[rows].mean()) for rows in decile]
    return {
        "click.auc": auc,
        "click.auc_truth": auc_truth,
        "click.auc_gap": auc_truth - auc,
        "click.calibration": float(predicted.mean() / truth.mean()),
        "click.calibration_worst_decile": max(ratios, key=lambda ratio: abs(float(np.log(ratio)))),
    }


def expected_auc(score: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]) -> float:
    """Return the area under the ROC curve of a score where clicks have known probabilities, both (n,)."""
    label = np.repeat([1, 0], len(score))
    weight = np.concatenate([probability, 1 - probability])
    return float(roc_auc_score(label, np.tile(score, 2), sample_weight=weight))


def strategy_figures(
    strategy: TrainedStrategy, world: PlantedWorld, contexts: Context[torch.Tensor], seed: int
) -> dict[str, float]:
    """Return a strategy's true expected clicks per page as a share of the best possible slates'."""
    row = torch.arange(len(contexts.shopper))
    generator = torch.Generator().manual_seed(seed + 2)

    def value(slate: torch.Tensor) -> float:
        return float(world.click_probability(row, slate).sum(1).mean())

    best = value(world.best_slate(row))
    greedy = slate_of(contexts, strategy.distribution(contexts).mode())
    return {
        "ppo.share_of_best": value(strategy.propose(contexts, generator).slate) / best,
        "ppo.greedy_share_of_best": value(greedy) / best,
        "random.share_of_best": value(RandomStrategy(world.size).propose(contexts, generator).slate) / best,
    }


def count_coverage(
    strategy: TrainedStrategy,
    world: PlantedWorld,
    contexts: Context[torch.Tensor],
    shoppers: FittedShoppers,
    config: SignalConfig,
    progress: Callable[[str], None],
) -> dict[str, Figure]:
    """Count how often the 95% intervals of fresh logs hold the strategy's true click rate per impression.

    Every repeat is a new log of the uniform strategy, as long as the part that a run keeps for estimates, with its own
    cross-fitted model and bootstrap.
    """
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        marginals = strategy.distribution(contexts).marginals(DRAWS, generator).probability.double()
    every = torch.arange(marginals.shape[2]).expand(len(marginals), -1)
    attraction = world.attraction(torch.arange(len(marginals)), every)
    truth = float((marginals * attraction[:, None] * world.examination[:, None]).sum(2).mean())
    n, catalog = round(config.impressions * config.fit.shares[2]), shoppers.builder.catalog
    covered = dict.fromkeys(COVERED, 0)
    ess = []
    for repeat in range(config.repeats):
        drawn = world.draw(n, torch.Generator().manual_seed(1_000_000 + repeat))
        context = contexts.map(lambda array, row=drawn.row: array[row].numpy())  # type: ignore[misc]
        item, clicked, position = drawn.item.numpy(), drawn.clicked.double().numpy(), drawn.position.numpy()
        q = crossfit_q(
            context.shopper,
            item,
            clicked,
            position,
            len(catalog),
            catalog.vectors,
            affinity=context.affinity,
            seed=repeat,
        )
        target = marginals[drawn.row, drawn.position].numpy()
        propensity = np.full(n, 1.0 / len(catalog))
        for name, found in estimate(clicked, item, propensity, target, q, COVERED, seed=repeat).items():
            covered[name] += found.low <= truth <= found.high
            ess.append(found.ess)
        if (repeat + 1) % 10 == 0:
            counts = ", ".join(f"{name} {count}" for name, count in covered.items())
            progress(f"{repeat + 1} logs, intervals that hold the truth: {counts}")
    figures = {f"coverage.{name}": share_figure(count, config.repeats) for name, count in covered.items()}
    low, high = np.quantile(ess, (0.025, 0.975))
    return figures | {"coverage.ess": figure(float(np.mean(ess)), low, high, n, "rows")}


def share_figure(count: int, n: int) -> Figure:
    """Return a share with its exact binomial interval (Clopper and Pearson, 1934)."""
    interval = scipy.stats.binomtest(count, n).proportion_ci()
    return figure(count / n, interval.low, interval.high, n, "share of repeats")


def require_seeds(seeds: tuple[int, ...], where: str, bits: int = 31) -> None:
    """Refuse seeds that a benchmark cannot use.

    Raises:
        InputError: There are none, or one is below 0 or has more bits.
    """
    if not seeds or not all(0 <= seed < 2**bits for seed in seeds):
        raise InputError("bad seeds", where=where, got=seeds, expected=f"one or more, 0 to 2**{bits} - 1")


def over_seeds(values: list[float], unit: str) -> Figure:
    """Return the mean over seeds with its t-interval; no interval from one seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return figure(mean, None, None, n, unit)
    half = float(scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return figure(mean, mean - half, mean + half, n, unit)
