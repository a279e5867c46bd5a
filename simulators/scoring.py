"""How good forecasts of shoppers' purchases are: the figures that reports give, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from hawker.shop.figures import Figure, figure

FloatArray = npt.NDArray[np.float64]

UNITS = {"rmse": "purchases", "auc": "probability", "ece": "probability", "bias": "ratio"}
"""What ``score`` measures, and the unit of each."""


def auc(chance: FloatArray, happened: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a customer who bought was ranked above one who did not; NaN without both."""
    positive = int(happened.sum())
    negative = len(happened) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    return float((rankdata(chance)[happened].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(chance: FloatArray, happened: npt.NDArray[np.bool_]) -> float:
    """Return the mean of |mean chance - share that happened| over deciles of the chance, weighted by their sizes."""
    edges = np.unique(np.quantile(chance, np.linspace(0, 1, 11)))
    decile = np.clip(np.searchsorted(edges, chance, side="left") - 1, 0, max(len(edges) - 2, 0))
    return float(np.abs(np.bincount(decile, chance) - np.bincount(decile, happened)).sum() / len(chance))


def score(expected: FloatArray, chance: FloatArray, bought: FloatArray) -> dict[str, float]:
    """Return rmse (purchases), auc, ece (calibration error) and bias (total forecast / total bought - 1)."""
    happened = bought > 0
    return {
        "rmse": float(np.sqrt(np.mean((expected - bought) ** 2))),
        "auc": auc(chance, happened),
        "ece": calibration_error(chance, happened),
        "bias": float(expected.sum() / bought.sum() - 1) if bought.any() else float("nan"),
    }


def bootstrap_figures(
    scores: Callable[[npt.NDArray[np.intp]], Mapping[str, float]],
    units: Mapping[str, str],
    n: int,
    generator: np.random.Generator,
    replicates: int,
) -> dict[str, Figure]:
    """Return the figures named in ``units`` with basic bootstrap intervals.

    A sample drawn with replacement looks worse calibrated than the customers it was drawn from; the basic interval
    (twice the value less the quantiles) takes that off, where percentiles would double it. It is widened to the value
    where that lies outside, as it may with few customers.

    Args:
        scores: Returns the figures of some of the customers, by their numbers; NaN where they cannot be told. A figure
            that never varies has no interval.
        units: The unit of each figure.
        n: Customers.
        generator: Draws them.
        replicates: How often.
    """
    rows = np.arange(n)
    value = scores(rows)
    drawn = [scores(generator.choice(rows, n)) for _ in range(replicates)]
    figures = {}
    for name, unit in units.items():
        found = np.array([one[name] for one in drawn])
        found = found[np.isfinite(found)]
        if math.isfinite(value[name]) and found.size and np.ptp(found) > 0:
            low, high = 2 * value[name] - np.quantile(found, [0.975, 0.025])
            figures[name] = figure(value[name], min(low, value[name]), max(high, value[name]), n, unit)
        else:
            figures[name] = figure(value[name], None, None, n, unit)
    return figures
