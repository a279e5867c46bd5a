"""Measures of how close predictions come to a known truth."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt
import scipy.stats

from hawker.benchmarks.signal import expected_auc
from hawker.shop.figures import Figure, figure
from hawker.simulators.fidelity import LEAST

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

REPLICATES = 400
"""Bootstrap replicates behind an interval over shoppers."""

LEAST_SHARE = 0.01
"""Share of the data below which a bin of probabilities is not judged."""


def losses(probability: Floats, happened: Floats) -> Floats:
    """Return the negative log-likelihood of events in nats, elementwise."""
    p = probability.clip(LEAST, 1 - LEAST)
    return np.asarray(-(happened * np.log(p) + (1 - happened) * np.log1p(-p)))


def hazard_losses(hazard: Floats, wait: Floats, returned: Floats) -> Floats:
    """Return the negative log-likelihood of each wait, shape (n,), in nats.

    Args:
        hazard: P(return on day d | not before), d = 1..D, shape (n, D).
        wait: Whole days until the return, or whole days that passed without one, at most D, shape (n,).
        returned: 1 where there was a return, on day ``wait``; 0 where the wait is censored: the days before day
            ``wait`` have passed in vain, that day itself is not known. Shape (n,).
    """
    h = hazard.clip(LEAST, 1 - LEAST)
    day = np.arange(1, hazard.shape[1] + 1)
    passed = day < wait[:, None]
    came = (day == wait[:, None]) & (returned[:, None] > 0)
    return np.asarray(-(passed * np.log1p(-h) + came * np.log(h)).sum(1))


def by_shopper(values: Floats, shopper: Ints, n: int) -> Floats:
    """Return each shopper's sum, shape (n,)."""
    return np.bincount(shopper, values, minlength=n).astype(np.float64)


def explained(constant: Floats, model: Floats, truth: Floats, generator: np.random.Generator) -> Figure:
    """Return (constant - model) / (constant - truth) with a bootstrap interval over shoppers.

    Args:
        constant, model, truth: Each shopper's total loss, shape (S,).
        generator: Draws the shoppers.
    """
    totals = np.stack([constant - model, constant - truth], 1)
    drawn = resample(len(totals), generator) @ totals
    value = float(totals[:, 0].sum() / totals[:, 1].sum())
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return figure(value, float(low), float(high), len(totals), "share of what can be explained")


def resample(n: int, generator: np.random.Generator) -> Floats:
    """Return how often each of n shoppers is in each replicate, shape (REPLICATES, n)."""
    return generator.multinomial(n, np.full(n, 1 / n), size=REPLICATES).astype(np.float64)


class Bin(TypedDict):
    """Some predictions: ``kind`` "count" or "width", their share, their mean, the mean truth and what happened."""

    kind: str
    share: float
    predicted: float
    true: float
    observed: float
    error: float


def reliability(predicted: Floats, truth: Floats, observed: Floats) -> list[Bin]:
    """Return the bins of a reliability diagram: deciles of the predictions, and tenths of 0..1 that hold enough.

    Args:
        predicted, truth, observed: Predicted and true probabilities and what happened, shape (n,).
    """
    n = len(predicted)
    groups = [("count", rows) for rows in np.array_split(np.argsort(predicted, kind="stable"), 10)]
    tenth = (predicted * 10).astype(np.int64).clip(0, 9)
    groups += [("width", np.flatnonzero(tenth == i)) for i in range(10)]
    bins = []
    for kind, rows in groups:
        if not len(rows) or len(rows) < LEAST_SHARE * n:
            continue
        said, true = float(predicted[rows].mean()), float(truth[rows].mean())
        bins.append(
            Bin(
                kind=kind,
                share=len(rows) / n,
                predicted=said,
                true=true,
                observed=float(observed[rows].mean()),
                error=abs(said / true - 1),
            )
        )
    return bins


def worst_error(bins: list[Bin]) -> float:
    """Return the largest relative error of the bins."""
    return max(entry["error"] for entry in bins)


def by_group(predicted: Floats, truth: Floats, group: Ints) -> dict[str, float]:
    """Return predicted over true mean of each group, by its number."""
    return {str(g): float(predicted[group == g].mean() / truth[group == g].mean()) for g in np.unique(group).tolist()}


def within_correlation(predicted: Floats, truth: Floats) -> float:
    """Return the correlation of two (m, c) tables after every row's mean is taken off."""
    a, b = (table - table.mean(1, keepdims=True) for table in (predicted, truth))
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def returned_by(hazard: Floats) -> Floats:
    """Return P(return by day d), shape (..., D), from the hazards of days 1..D."""
    return np.asarray(1 - np.cumprod(1 - hazard, axis=-1))


def tercile_means(values: Floats, score: Floats) -> list[Floats]:
    """Return the column means of a (n, D) table in each tercile of a score (n,), from low to high."""
    return [values[rows].mean(0) for rows in np.array_split(np.argsort(score, kind="stable"), 3)]


def distance(a: Ints, b: Ints, a_weight: Floats | None = None, b_weight: Floats | None = None) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples of counts, (n,) and (m,), 0 and up."""
    size = int(max(a.max(), b.max())) + 1
    one, two = np.bincount(a, a_weight, size), np.bincount(b, b_weight, size)
    return float(np.abs(one.cumsum() / one.sum() - two.cumsum() / two.sum()).max())


def distance_figure(
    a: Ints, a_shopper: Ints, b: Ints, b_shopper: Ints, generator: np.random.Generator, unit: str
) -> Figure:
    """Return the distance of two samples of counts with a bootstrap interval over the shoppers they come from."""
    value = distance(a, b)
    drawn = []
    for _ in range(REPLICATES // 2):
        weights = []
        for shopper in (a_shopper, b_shopper):
            n = int(shopper.max()) + 1
            weights.append(np.bincount(generator.integers(n, size=n), minlength=n)[shopper].astype(np.float64))
        drawn.append(distance(a, b, *weights))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return figure(value, float(low), float(high), len(a), unit)


def auc_within(score: Floats, probability: Floats, position: Ints) -> float:
    """Return the mean over positions of the expected area under the ROC curve at a position; all (n,)."""
    rows = [np.flatnonzero(position == k) for k in np.unique(position)]
    return float(np.mean([expected_auc(score[r], probability[r]) for r in rows]))


def spearman(a: Floats, b: Floats) -> float:
    """Return the rank correlation of two samples, NaN where one does not vary."""
    return float(scipy.stats.spearmanr(a, b).statistic)


def correlation(a: Floats, b: Floats) -> float:
    """Return the correlation of two samples, (n,)."""
    return float(np.corrcoef(a, b)[0, 1])
