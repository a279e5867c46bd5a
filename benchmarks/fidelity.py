"""``hawker bench fidelity``: how far learned shoppers can be believed, on a gold world whose truth is known.

Seed by seed, the popularity strategy writes a log in the bazaar, shoppers are fitted to it, and what they say of fresh
shoppers, of strategies that never logged and of words that no log holds is held against the truth.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hawker.benchmarks.cdnow import cdnow_figures
from hawker.benchmarks.fidelity_artefacts import Fit, cached_fit, cached_logs
from hawker.benchmarks.fidelity_baselines import expected_by_logistic
from hawker.benchmarks.fidelity_cohort import Cohort, encode_cohort, read_lines, served
from hawker.benchmarks.fidelity_heads import happened, make_swaps, probe_ensemble, reachable
from hawker.benchmarks.fidelity_history import expected_by_history
from hawker.benchmarks.fidelity_texts import cold_items, copy_effects
from hawker.benchmarks.fidelity_value import all_arms, evaluate, value_figures, visit_counts, visit_figures
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.policies.shopkeeper import Shopkeeper
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure
from hawker.shop.language import Encoder, load_encoder
from hawker.shop.models import find_model, home
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.returning import ReturnConfig
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import HEADS
from hawker.simulators.store import FittedShoppers, Role, load_shoppers

LANGUAGE_MODEL = "smollm2-135m"
"""The encoder whose copy effects are reported beside the offline one's, where it has been fetched."""

MILLION = 800_000
"""Impressions from which on the cost of a fit is reported as that of a million, in proportion."""

ITEMS = 20
"""Other items swapped into a position."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class FidelityConfig:
    """What to simulate and fit.

    Attributes:
        variant: The bazaar: a shipped variant's name or a file; None for the base.
        seeds: Logs, each with its own fit and cohorts.
        shoppers: Shoppers of each log.
        days: Length of logs and cohorts.
        cohort: Shoppers of the fresh cohort that predictions are held against.
        pages: Of its pages, into how many other items are swapped.
        followed: Shoppers that each strategy is followed with, in each world.
        readers: Shoppers that new items and lines are shown to.
        fit: How shoppers are learned; the seed is the log's.
        language_model: Whether to fit a second time, for the first seed, with a language model as the encoder.
        returns: How the model of purchases over time is fitted to CDNOW.
        returns_seeds: Of its fits.
    """

    variant: str | Path | None = None
    seeds: tuple[int, ...] = (21, 22, 23)
    shoppers: int = 6_000
    days: int = 56
    cohort: int = 1_500
    pages: int = 2_000
    followed: int = 8_000
    readers: int = 600
    fit: FitConfig = field(default_factory=lambda: FitConfig(shares=(0.55, 0.35, 0.1)))
    language_model: bool = True
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    returns_seeds: tuple[int, ...] = (1, 2, 3)


QUICK = FidelityConfig(
    seeds=(21,),
    shoppers=600,
    cohort=300,
    pages=300,
    followed=400,
    readers=150,
    fit=FitConfig(members=2, epochs=4),
    language_model=False,
    returns=ReturnConfig(of_each=1, steps=10),
    returns_seeds=(1,),
)
"""For a look: its figures say that the benchmark runs, not how good the shoppers are."""


def bench_fidelity(config: FidelityConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        config: What to simulate and fit.
        told: Called with a line now and then.

    Returns:
        ``figures`` over the seeds, ``by_seed``, ``seeds``, ``seconds``, ``notes``, ``details``: each seed's
        reliability bins, curves, losses and values; and ``cdnow``: those of the purchase histories.

    Raises:
        InputError: The variant or the config cannot be used.
    """
    _check(config)
    started = time.perf_counter()
    world = BazaarWorld(load_bazaar(config.variant), _CPU)
    arms = all_arms(world)
    rows, details, notes = [], [], []
    for seed in config.seeds:
        told(f"seed {seed}")
        found, detail = _one_seed(world, arms, config, seed, told)
        told(", ".join(f"{name} {value:.3f}" for name, value in found.items() if name in UNITS))
        rows.append(found)
        details.append(detail)
    if config.language_model:
        extra, note = _with_language_model(world, config, told)
        rows[0] |= extra
        notes += [note] if note else []
    figures = {name: _figure(name, rows, details) for name in UNITS if any(name in row for row in rows)}
    told("CDNOW: fitting the first 39 weeks")
    purchases, purchase_details = cdnow_figures(config.returns_seeds, config.returns, _CPU, told)
    return {
        "figures": figures | purchases,
        "by_seed": finite([{"seed": seed, **row} for seed, row in zip(config.seeds, rows, strict=True)]),
        "seeds": list(config.seeds),
        "seconds": round(time.perf_counter() - started, 1),
        "world": {"variant": world.parameters.name, "parameters": world.digest},
        "notes": notes,
        "details": finite(details),
        "cdnow": finite(purchase_details),
    }


def finite(value: Any) -> Any:
    """Return nested lists and dicts with None in place of numbers that JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


UNITS = {
    **{f"bazaar.explained.{head}": "share of what can be explained" for head in HEADS},
    "bazaar.relative_calibration": "ratio",
    "bazaar.click.corr_within": "correlation",
    "bazaar.click.corr_within_reachable": "correlation",
    "bazaar.relative_calibration_reachable": "ratio",
    "bazaar.return.ks_worst_reachable": "Kolmogorov-Smirnov",
    "bazaar.return.ks_worst": "Kolmogorov-Smirnov",
    "bazaar.visit_pages.ks": "Kolmogorov-Smirnov",
    "bazaar.visit_clicks.ks": "Kolmogorov-Smirnov",
    "bazaar.spread_against_error": "rank correlation",
    "bazaar.value.median_error": "share of the spread",
    "bazaar.value.sign_errors": "strategies",
    "bazaar.value.spearman": "rank correlation",
    "bazaar.value.gold_error": "share of the spread",
    "bazaar.cold_items.ratio": "ratio",
    "bazaar.copy.corr_unseen": "correlation",
    "bazaar.copy.corr_logged": "correlation",
    "bazaar.copy.corr_unseen_smollm2": "correlation",
    **{f"bazaar.judge.explained.{head}": "share of what can be explained" for head in HEADS},
    "fit.seconds_1m": "seconds",
    "fit.peak_rss_mib_1m": "MiB",
}


REACHABLE = {
    "bazaar.relative_calibration_reachable": "relative_calibration",
    "bazaar.click.corr_within_reachable": "corr_within",
    "bazaar.return.ks_worst_reachable": "ks_worst",
}
"""Figures of the particle filter, which knows the world and every shopper's history."""


def _check(config: FidelityConfig) -> None:
    least = {"shoppers": 50, "days": 14, "cohort": 20, "pages": 2, "followed": 20, "readers": 20}
    for name, low in least.items():
        if getattr(config, name) < low:
            raise InputError("too few", where=f"fidelity.{name}", got=getattr(config, name), expected=f"at least {low}")
    require_seeds(config.seeds, "fidelity.seeds")


def _figure(name: str, rows: list[dict[str, float]], details: list[dict[str, Any]]) -> Figure:
    """Return the mean over seeds; of a single seed with its own interval over shoppers, where it has one."""
    values = [row[name] for row in rows if name in row]
    if len(rows) == 1 and name in details[0]["intervals"]:
        own: Figure = details[0]["intervals"][name]
        return own
    return over_seeds(values, UNITS[name])


def _one_seed(
    world: BazaarWorld, arms: list[Shopkeeper], config: FidelityConfig, seed: int, told: Told
) -> tuple[dict[str, float], dict[str, Any]]:
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    made = cached_fit(logs, _seeded(config.fit, seed), told)
    fitted = load_shoppers(made.shoppers, _CPU)
    encoder = load_encoder(fitted.config.encoder, _CPU, home() / "vectors")
    cohort = served(world, config.cohort, config.days, fresh(seed, 1))
    probed = probe_shoppers(world, fitted, encoder, cohort, config.pages, fresh(seed, 2))
    train = read_lines(fitted.ensembles["train"], world, fitted, encoder)
    judge = read_lines(fitted.ensembles["judge"], world, fitted, encoder)
    told("strategies that never logged, in truth")
    gold, gold_totals = evaluate(world, arms, config.followed, fresh(seed, 3), told)
    told("strategies that never logged, as the judge sees them")
    learned = LearnedWorld(fitted.builder, judge, fitted.arrivals["judge"], fitted.size)
    judged, totals = evaluate(learned, arms, config.followed, fresh(seed, 4), told)
    value = value_figures(judged, gold)
    visits = visit_figures(totals, gold_totals, seed)
    counts = {"learned": visit_counts(totals), "gold": visit_counts(gold_totals)}
    cold = cold_items(world, fitted, train, encoder, config.readers, config.days // 2, fresh(seed, 5))
    rows = encode_cohort(world, cohort, fitted, encoder)
    copy = copy_effects(world, cohort, rows, train, config.readers, seed) if fitted.lines is not None else {}
    main, side = probed["train"], probed["judge"]
    found: dict[str, float] = {
        **{f"bazaar.explained.{head}": f["value"] for head, f in main["explained"].items()},
        "bazaar.relative_calibration": main["relative_calibration"],
        "bazaar.click.corr_within": main["corr_within"],
        **{name: main["reachable"][key] for name, key in REACHABLE.items()},
        "bazaar.return.ks_worst": main["ks_worst"],
        "bazaar.visit_pages.ks": visits["pages.all"]["value"] or 0.0,
        "bazaar.visit_clicks.ks": visits["clicks.all"]["value"] or 0.0,
        **{f"bazaar.value.{name}": number for name, number in value.items()},
        "bazaar.cold_items.ratio": cold["ratio"],
        **{f"bazaar.copy.corr_{lines}": copy[lines] for lines in ("unseen", "logged") if lines in copy},
        **{f"bazaar.judge.explained.{head}": f["value"] for head, f in side["explained"].items()},
        **_costs(made),
    }
    if main["spread_error"] is not None:
        found["bazaar.spread_against_error"] = main["spread_error"]
    intervals = {f"bazaar.explained.{head}": f for head, f in main["explained"].items()}
    intervals |= {f"bazaar.judge.explained.{head}": f for head, f in side["explained"].items()}
    intervals |= {"bazaar.visit_pages.ks": visits["pages.all"], "bazaar.visit_clicks.ks": visits["clicks.all"]}
    strategies = [
        {"strategy": name, "gold": a, "gold_error": b, "judge": c, "judge_error": d}
        for name, a, b, c, d in zip(
            gold.names[1:],
            gold.difference.tolist(),
            gold.difference_error.tolist(),
            judged.difference.tolist(),
            judged.difference_error.tolist(),
            strict=True,
        )
    ]
    detail = {
        "seed": seed,
        "intervals": intervals,
        "probe": probed,
        "strategies": strategies,
        "logging": {"gold": gold.mean[0], "judge": judged.mean[0]},
        "visits": visits,
        "visit_counts": counts,
        "cold_items": cold,
        "copy": copy,
        "fit": asdict(made) | {"shoppers": made.shoppers.parent.name},
    }
    return found, detail


def _costs(made: Fit) -> dict[str, float]:
    """Return what a fit of a million impressions costs; nothing where the log is much smaller."""
    if made.impressions < MILLION:
        return {}
    times = 1e6 / made.impressions
    return {"fit.seconds_1m": made.seconds * times, "fit.peak_rss_mib_1m": made.peak_mib}


def _seeded(config: FitConfig, seed: int, **changes: Any) -> FitConfig:
    return replace(config, seed=seed, **changes)


def fresh(seed: int, number: int) -> int:
    """Return a seed for the benchmark's own draws, far from those of logs and fits."""
    return 1_000_000_007 + 1_000 * seed + number


def probe(
    directory: Path,
    seed: int,
    variant: str | Path | None = None,
    shoppers: int = 1_500,
    days: int = 56,
    pages: int = 2_000,
) -> dict[str, dict[str, Any]]:
    """Hold fitted shoppers against the truth on a fresh cohort of the world that their log was drawn from.

    Args:
        directory: What ``hawker fit`` wrote, from a log of the bazaar's popularity strategy that is still there.
        seed: Decides the cohort.
        variant: The world of the log.
        shoppers: Size of the cohort.
        days: Its length.
        pages: On how many of its pages other items are swapped in.

    Returns:
        What ``probe_shoppers`` returns.

    Raises:
        InputError: The shoppers, their log or the variant cannot be read.
    """
    fitted, world = load_shoppers(directory, _CPU), BazaarWorld(load_bazaar(variant), _CPU)
    encoder = load_encoder(fitted.config.encoder, _CPU, home() / "vectors")
    cohort = served(world, shoppers, days, seed)
    return probe_shoppers(world, fitted, encoder, cohort, pages, seed)


def probe_shoppers(
    world: BazaarWorld, fitted: FittedShoppers, encoder: Encoder, cohort: Cohort, pages: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Hold both ensembles against the truth on a fresh cohort.

    Args:
        world: The world of the log.
        fitted: The shoppers; their log must stand where it was.
        encoder: Of texts, the one they were fitted with.
        cohort: Shoppers whom no log knows.
        pages: On how many of their pages other items are swapped in.
        seed: Decides those and the bootstrap.

    Returns:
        What ``probe_ensemble`` returns, by role, and ``reachable``: what the particle filter reaches.

    Raises:
        InputError: The log has changed or is gone.
    """
    rows = encode_cohort(world, cohort, fitted, encoder)
    swaps = make_swaps(world, cohort, pages, ITEMS, seed)
    seen = happened(cohort, rows)
    history, within = expected_by_history(world, cohort, seen, swaps, seed)
    best = {**reachable(world, cohort, rows, seen, history), "corr_within": within}
    roles: tuple[Role, ...] = ("train", "judge")
    found: dict[str, dict[str, Any]] = {}
    for role in roles:
        ensemble = read_lines(fitted.ensembles[role], world, fitted, encoder)
        train: Rows = encode_log(fitted.read_part(role), fitted.builder, fitted.lines, _CPU).rows
        logistic = expected_by_logistic(train, rows, seen, fitted, seed) if role == "train" else None
        found[role] = probe_ensemble(world, cohort, rows, ensemble, train, swaps, seed, history, logistic)
        found[role]["reachable"] = best
    return found


def _with_language_model(world: BazaarWorld, config: FidelityConfig, told: Told) -> tuple[dict[str, float], str]:
    """Return the correlation of copy effects with a language model as the encoder, or why there is none."""
    seed = config.seeds[0]
    try:
        find_model(LANGUAGE_MODEL)
    except InputError:
        return (
            {},
            f"{LANGUAGE_MODEL} has not been fetched: no copy effects with it (hawker model fetch {LANGUAGE_MODEL})",
        )
    told(f"a second fit, with {LANGUAGE_MODEL}")
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    made = cached_fit(logs, _seeded(config.fit, seed, encoder=LANGUAGE_MODEL, members=2), told)
    fitted = load_shoppers(made.shoppers, _CPU)
    encoder = load_encoder(LANGUAGE_MODEL, _CPU, home() / "vectors")
    cohort = served(world, config.readers, config.days, fresh(seed, 6))
    rows = encode_cohort(world, cohort, fitted, encoder)
    ensemble = read_lines(fitted.ensembles["train"], world, fitted, encoder)
    copy = copy_effects(world, cohort, rows, ensemble, config.readers, seed)
    note = f"{LANGUAGE_MODEL}: one log, ensembles of 2; on lines of the logs {copy['logged']:.3f}"
    return {"bazaar.copy.corr_unseen_smollm2": copy["unseen"]}, note
