"""The CDNOW figures: a learned return model beside BG/NBD, on real customers and a time that neither has seen.

Both know the 2,357 customers of the 1/10 sample up to 1997-09-30 (39 weeks) and forecast the 39 weeks after. A purchase
is a customer's day with at least one order; the first one of each customer is given.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import hyp2f1

from hawker.shop.figures import Figure
from hawker.shop.importers import import_cdnow, shipped
from hawker.simulators.histories import Histories
from hawker.simulators.returning import ReturnConfig, fit_returns
from hawker.simulators.scoring import UNITS, FloatArray, bootstrap_figures, score

START, CUT, END = (pd.Timestamp(day, tz="UTC") for day in ("1997-01-01", "1997-10-01", "1998-07-01"))
WEEK = 7
HOLDOUT_WEEKS = 39
REPLICATES = 1000


class Purchases(NamedTuple):
    """The sample, split in time; n = 2,357 customers in order of their ids.

    Attributes:
        known: The first 39 weeks.
        days: The same by days, for BG/NBD.
        bought: Purchases of each customer in the 39 weeks after, (n,).
    """

    known: Histories
    days: Histories
    bought: FloatArray


@dataclass(frozen=True)
class BgNbd:
    """BG/NBD: purchases by a Poisson process with gamma rates, leaving for good after a purchase with beta probability.

    Fader, Hardie and Lee, "Counting your customers" the easy way, Marketing Science 24 (2), 2005.

    Attributes:
        r: Shape of the rates.
        alpha: Their scale, weeks.
        a: First parameter of the probability of leaving, not 1.
        b: Its second parameter.
    """

    r: float
    alpha: float
    a: float
    b: float

    def forecast(
        self, repeats: FloatArray, recency: FloatArray, age: FloatArray, horizon: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return the expected purchases and P(at least one) within ``horizon``, each (n,).

        Args:
            repeats: Purchases after the first, (n,).
            recency: Weeks from the first purchase to the last, (n,).
            age: Weeks from the first purchase to the end of the record, (n,).
            horizon: Weeks to look ahead.
        """
        r, alpha, a, b = self.r, self.alpha, self.a, self.b
        silent = ((alpha + age) / (alpha + age + horizon)) ** (r + repeats)
        curve = hyp2f1(r + repeats, b + repeats, a + b + repeats - 1, horizon / (alpha + age + horizon))
        gone = a / (b + np.maximum(repeats, 1) - 1) * ((alpha + age) / (alpha + recency)) ** (r + repeats)
        alive = 1 / (1 + np.where(repeats > 0, gone, 0.0))
        expected = (a + b + repeats - 1) / (a - 1) * (1 - silent * curve) * alive
        return np.asarray(expected, np.float64), np.asarray((1 - silent) * alive, np.float64)


PUBLISHED = BgNbd(r=0.242595, alpha=4.413603, a=0.792922, b=2.425906)
"""Maximum likelihood on the sample's first 39 weeks: Lifetimes 0.11.3, and .243, 4.414, .793, 2.426 in the paper."""


def cdnow_purchases() -> Purchases:
    """Read the sample that ships with the package."""
    with tempfile.TemporaryDirectory() as folder:
        import_cdnow(shipped("cdnow"), Path(folder) / "logs", sample=True)
        events = pd.read_parquet(Path(folder) / "logs" / "events.parquet")
    whole = Histories.from_events(events, start=START, end=END, period_days=WEEK)
    known = Histories.from_events(events, start=START, end=CUT, period_days=WEEK)
    days = Histories.from_events(events, start=START, end=CUT, period_days=1)
    return Purchases(known, days, whole.count[:, known.periods :].sum(axis=1, dtype=np.float64))


def forecast_bgnbd(days: Histories, weeks: float, model: BgNbd = PUBLISHED) -> tuple[FloatArray, FloatArray]:
    """Return BG/NBD's forecast from histories by days: expected purchases and P(at least one), each (n,)."""
    last = days.periods - 1 - (days.count[:, ::-1] > 0).argmax(axis=1)
    repeats = days.count.sum(axis=1, dtype=np.float64) - 1
    recency, age = (last - days.birth) / WEEK, (days.periods - 1 - days.birth) / WEEK
    return model.forecast(repeats, recency, age, weeks)


def cdnow_figures(
    seeds: Sequence[int],
    config: ReturnConfig,
    device: torch.device,
    progress: Callable[[str], None],
    draws: int = 100,
    replicates: int = REPLICATES,
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Fit the return model once per seed on the first 39 weeks and hold its forecasts against the 39 weeks after.

    Args:
        seeds: One fit each; a figure is the mean over them.
        config: How to fit.
        device: Where to compute.
        progress: Called with a line now and then.
        draws: Futures simulated for each customer.
        replicates: Bootstrap samples of customers behind the intervals.

    Returns:
        Figures ``cdnow.rmse``, ``.auc``, ``.ece``, ``.bias``, the same of BG/NBD (``cdnow.bgnbd.rmse``, ...), and the
        paired differences ``cdnow.rmse_minus_bgnbd``, ...; and details: scores and seconds by seed, scores by member.
    """
    known, days, bought = cdnow_purchases()
    forecasts, by_seed = [], []
    for seed in seeds:
        began = time.perf_counter()
        model = fit_returns(known, config, seed, device, progress)
        fitted = time.perf_counter() - began
        each = [
            _arrays(model.forecast(known, HOLDOUT_WEEKS, draws=draws, seed=seed, member=i))
            for i in range(len(model.members))
        ]
        expected, chance = (np.mean(field, axis=0) for field in zip(*each, strict=True))
        seconds = {"fit": round(fitted, 1), "forecast": round(time.perf_counter() - began - fitted, 1)}
        members = [
            {"member": type(member).__name__, **score(*forecast, bought)}
            for member, forecast in zip(model.members, each, strict=True)
        ]
        forecasts.append((expected, chance))
        found = score(expected, chance, bought)
        by_seed.append({"seed": seed, **found, "seconds": seconds, "members": members})
        progress(f"CDNOW, seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    reference = forecast_bgnbd(days, HOLDOUT_WEEKS)
    figures = _figures(forecasts, reference, bought, np.random.default_rng(list(seeds)), replicates)
    return figures, {"seeds": by_seed, "customers": len(known), "bought": float(bought.sum())}


def _arrays(forecast: tuple[torch.Tensor, torch.Tensor]) -> tuple[FloatArray, FloatArray]:
    events, active = (field.cpu().double().numpy() for field in forecast)
    return events, active


def _figures(
    forecasts: list[tuple[FloatArray, FloatArray]],
    reference: tuple[FloatArray, FloatArray],
    bought: FloatArray,
    generator: np.random.Generator,
    replicates: int,
) -> dict[str, Figure]:
    keys = {
        key: unit
        for name, unit in UNITS.items()
        for key in (f"cdnow.{name}", f"cdnow.bgnbd.{name}", f"cdnow.{name}_minus_bgnbd")
    }
    scores = partial(_scores, forecasts, reference, bought)
    return bootstrap_figures(scores, keys, len(bought), generator, replicates)


def _scores(
    forecasts: list[tuple[FloatArray, FloatArray]],
    reference: tuple[FloatArray, FloatArray],
    bought: FloatArray,
    rows: npt.NDArray[np.intp],
) -> dict[str, float]:
    ours = [score(expected[rows], chance[rows], bought[rows]) for expected, chance in forecasts]
    theirs = score(reference[0][rows], reference[1][rows], bought[rows])
    scores = {}
    for name in UNITS:
        mean = float(np.mean([one[name] for one in ours]))
        scores[f"cdnow.{name}"], scores[f"cdnow.bgnbd.{name}"] = mean, theirs[name]
        scores[f"cdnow.{name}_minus_bgnbd"] = mean - theirs[name]
    return scores
