"""``hawker fit`` where logs record events and no exposure: when shoppers come back, and how far to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from hawker.shop.artefacts import find_directory, refuse_others, verify_directory, write_directory, write_json
from hawker.shop.config import save_config
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure
from hawker.shop.logs import read_logs
from hawker.shop.tables import find_table
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import check_config
from hawker.simulators.histories import Histories
from hawker.simulators.returning import Progress, ReturnConfig, ReturnModel, fit_returns, load_returns
from hawker.simulators.scoring import UNITS, FloatArray, bootstrap_figures, score

KIND = "returns"
"""What the artefact is called in its checksums."""

PREFERRED = "purchase"
"""The kind of event that is learned where a log has it; else the commonest kind."""

WEEKS = 12
"""A record of so many weeks or more is cut into weeks, a shorter one into days."""

REPLICATES = 200
"""Bootstrap samples of shoppers behind each interval."""

Known = tuple[FloatArray, FloatArray]
"""A forecast: expected days with an event, and the probability of at least one, each (n,)."""


def events_alone(logs_path: Path) -> bool:
    """Say whether a logs directory has events and no impressions."""
    path = find_directory(Path(logs_path))
    return find_table(path, "impressions") is None and find_table(path, "events") is not None


def fit_events(
    logs_path: Path, out: Path, config: FitConfig, progress: Progress, returns: ReturnConfig | None = None
) -> tuple[ReturnModel, dict[str, Any]]:
    """Learn from a log's events when shoppers come back, and write the model, whole or not at all.

    The model is measured first: fitted to all but the last third of the record's periods, it forecasts that third.
    What is written is fitted to the whole record.

    Args:
        logs_path: A logs directory with events.
        out: Directory to write; a previous return model is replaced.
        config: Seed and device; its other options are for impressions.
        progress: Called with a line now and then.
        returns: How to fit; as `ReturnConfig` says unless told.

    Returns:
        The model as read back from ``out``, and its fidelity report (``fidelity.json``).

    Raises:
        InputError: The logs or the config cannot be used, or nobody comes back in the part that is fitted.
    """
    check_config(config)
    refuse_others(out, KIND)
    device, returns = resolve_device(config.device), returns or ReturnConfig()
    logs = read_logs(logs_path)
    if logs.events is None:
        raise InputError("the log has no events", where=logs.path, remedy="return models learn from the table events")
    whole, kind = _histories(logs.events, logs.path)
    held_out = whole.periods // 3
    known = whole.until(whole.periods - held_out)
    progress(f"{len(known):,} shoppers, {known.periods} periods of {whole.period_days} days; {held_out} held out")
    measured = fit_returns(known, returns, config.seed, device, progress)
    events, active = measured.forecast(known, held_out, seed=config.seed)
    forecasts = baselines(known, held_out) | {"model": (_array(events), _array(active))}
    figures = forecast_figures(forecasts, happened(whole, known.periods), config.seed)
    report = {
        "figures": figures,
        "record": {
            "event": kind,
            "shoppers": len(whole),
            "events": int(whole.count.sum()),
            "period_days": whole.period_days,
            "periods": whole.periods,
            "to": str(whole.end),
            "unknown_shopper": whole.unknown,
        },
        "held_out": {"shoppers": len(known), "periods": held_out, "from": str(known.end)},
        "heads": {
            "return": "learned",
            **dict.fromkeys(("click", "examination", "conversion"), "absent: the log records no impressions"),
        },
    }
    progress("fitting to the whole record")
    model = fit_returns(whole, returns, config.seed, device, progress)
    with write_directory(out, KIND) as scratch:
        model.save(scratch)
        save_config(config, scratch / "config.yaml")
        write_json(scratch / "fidelity.json", report)
    return load_returns(verify_directory(out, KIND), device), report


def _histories(events: pd.DataFrame, path: Path) -> tuple[Histories, str]:
    """Return the histories of the log's main kind of event, in weeks or days, and that kind."""
    kinds = events["kind"].value_counts()
    kind = PREFERRED if PREFERRED in kinds.index else str(kinds.index[0])
    days = (events["timestamp"].max().floor("D") - events["timestamp"].min().floor("D")).days + 1
    found = Histories.from_events(events, kind=kind, period_days=7 if days >= 7 * WEEKS else 1)
    if found.periods < 3:
        raise InputError(
            "too short a record to hold a part of it out", where=path, got=f"{found.periods} days", expected="3 or more"
        )
    return found, kind


def happened(whole: Histories, period: int) -> FloatArray:
    """Return the days with an event from ``period`` on, of the shoppers who had appeared by then, (n,)."""
    return np.asarray(whole.count[whole.birth < period, period:].sum(axis=1), np.float64)


def baselines(known: Histories, horizon: int) -> dict[str, Known]:
    """Return the forecasts of two plain models, learned from the last ``horizon`` periods that are known.

    "constant" expects of everybody what came in those periods of the shoppers known before. "frequency" regresses it
    (Poisson and logistic regression of scikit-learn, alpha = 1e-3 and C = 1) on how often a shopper came before, in the
    logarithm of days with an event per period, on the share of her time that has passed since the last one, and on the
    logarithm of that time: in shares and rates, so that they mean the same after a longer record.

    Args:
        known: What is known, of more than ``horizon`` periods.
        horizon: How far they look, in periods.
    """
    before = known.until(max(known.periods - horizon, int(known.birth.min()) + 1))
    came = happened(known, before.periods) * horizon / (known.periods - before.periods)
    active, n = came > 0, len(known)
    found: dict[str, Known] = {"constant": (np.full(n, came.mean()), np.full(n, active.mean()))}
    if active.all() or not active.any():
        return found | {"frequency": found["constant"]}
    features, now = _features(before), _features(known)
    centre, spread = features.mean(0), features.std(0)
    spread[spread < 1e-9] = 1.0
    features, now = (features - centre) / spread, (now - centre) / spread
    expected = PoissonRegressor(alpha=1e-3, max_iter=1000).fit(features, came).predict(now)
    chance = LogisticRegression(C=1.0, max_iter=1000).fit(features, active).predict_proba(now)[:, 1]
    return found | {"frequency": (np.asarray(expected, np.float64), np.asarray(chance, np.float64))}


def _features(known: Histories) -> FloatArray:
    last = known.periods - 1 - (known.count[:, ::-1] > 0).argmax(axis=1)
    age = np.asarray(known.periods - known.birth, np.float64)
    often = (known.count.sum(axis=1, dtype=np.float64) - 0.5) / age
    return np.stack([np.log(often), (known.periods - 1 - last) / age, np.log(age)], axis=1)


def forecast_figures(forecasts: dict[str, Known], came: FloatArray, seed: int) -> dict[str, Figure]:
    """Return rmse, auc, ece and bias of each forecast, and how the model's differ from the others', with intervals.

    Args:
        forecasts: Forecasts by name, one of them "model", each (n,).
        came: What happened, (n,).
        seed: Of the bootstrap over shoppers.
    """
    others = [name for name in forecasts if name != "model"]
    units = {f"{metric}.{name}": unit for metric, unit in UNITS.items() for name in forecasts}
    units |= {f"{metric}.model_minus_{name}": UNITS[metric] for metric in ("rmse", "auc", "ece") for name in others}

    def scores(rows: npt.NDArray[np.intp]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, (expected, chance) in forecasts.items():
            each = score(expected[rows], chance[rows], came[rows])
            found |= {f"{metric}.{name}": value for metric, value in each.items()}
        for metric in ("rmse", "auc", "ece"):
            for name in others:
                found[f"{metric}.model_minus_{name}"] = found[f"{metric}.model"] - found[f"{metric}.{name}"]
        return found

    units = {name: "days" if name.startswith("rmse") else unit for name, unit in units.items()}
    return bootstrap_figures(scores, units, len(came), np.random.default_rng(seed), REPLICATES)


def _array(tensor: Any) -> FloatArray:
    return np.asarray(tensor.cpu().numpy(), np.float64)
