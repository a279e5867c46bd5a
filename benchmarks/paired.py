"""Strategies that have met the same shoppers of a world whose truth is known: what each earned, and what differs.

All arms get the same new shoppers, so that what differs between two arms is measured shopper by shopper, and that some
shoppers are worth more than others stands in neither's way. Only the drawing of shoppers is uncertain here: another
log, or another seed of training, would give other strategies, and no interval says how other they would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from hawker.benchmarks.rollout import Totals
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""

DECIDING = "reward"

UNITS = {
    DECIDING: "reward per shopper",
    "ctr": "clicks per impression",
    "cvr": "purchases per click",
    "d7": "share of shoppers back within 7 days",
}
"""What is measured, and its unit; the reward decides."""


class _Seen(NamedTuple):
    """A metric of an arm: its value, and how far each of the N shoppers moves it, (N,), of mean 0."""

    value: float
    moved: Floats


def compare_paired(arms: Mapping[str, Totals], pairs: Sequence[tuple[str, str]], reward: RewardSpec) -> dict[str, Any]:
    """Compare arms that have met the same shoppers.

    Args:
        arms: What came of the same N shoppers, at least 2, by arm.
        pairs: Names of treatment and control; each pair's difference is treatment minus control.
        reward: What a click and a purchase are worth.

    Returns:
        ``figures``: ``arm.NAME.METRIC`` and ``pair.TREATMENT - CONTROL.METRIC`` for each metric of ``UNITS``, with 95%
        intervals over shoppers, those of rates by the delta method; ``pairs``: by pair ``treatment``, ``control``,
        ``p`` of the reward's difference, ``p_corrected`` by Holm's method over the pairs, ``distinguishable`` at 5%,
        and the ``verdict`` in words; ``shoppers``, N.

    Raises:
        ValueError: The arms have met different shoppers.
    """
    for one, other in pairwise(arms.values()):
        apart = len(one.clicks) != len(other.clicks)
        if apart or (one.segment is not None and not torch.equal(one.segment, _segment(other))):
            raise ValueError("arms are paired where they have met the same shoppers")
    seen = {name: _metrics(totals, reward) for name, totals in arms.items()}
    figures = {f"arm.{name}.{key}": _figure(each[key], UNITS[key]) for name, each in seen.items() for key in UNITS}
    differences = [{key: _minus(seen[a][key], seen[b][key]) for key in UNITS} for a, b in pairs]
    p = [_p_value(each[DECIDING]) for each in differences]
    told = []
    for (treatment, control), each, plain, corrected in zip(pairs, differences, p, holm(p), strict=True):
        found = {key: _figure(difference, UNITS[key]) for key, difference in each.items()}
        figures |= {f"pair.{treatment} - {control}.{key}": value for key, value in found.items()}
        apart = corrected < 1 - LEVEL
        told.append(
            {
                "treatment": treatment,
                "control": control,
                "p": plain,
                "p_corrected": corrected,
                "distinguishable": apart,
                "verdict": _verdict(treatment, control, found[DECIDING], apart),
            }
        )
    return {"figures": figures, "pairs": told, "shoppers": len(next(iter(arms.values())).clicks)}


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for there being several (Holm 1979): with n of them, the i-th least times n + 1 - i.

    >>> holm([0.03, 0.01, 0.5])
    [0.06, 0.03, 0.5]
    """
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    found = np.empty(len(p))
    found[order] = np.maximum.accumulate(raised).clip(max=1.0)
    return [float(value) for value in found]


def _segment(totals: Totals) -> torch.Tensor:
    return torch.empty(0) if totals.segment is None else totals.segment


def _metrics(totals: Totals, reward: RewardSpec) -> dict[str, _Seen]:
    clicks, purchases, impressions, back = (
        part.double().cpu().numpy() for part in (totals.clicks, totals.purchases, totals.impressions, totals.back)
    )
    worth = totals.reward(reward.click, reward.conversion).double().cpu().numpy()
    one = np.ones_like(clicks)
    parts = {DECIDING: (worth, one), "ctr": (clicks, impressions), "cvr": (purchases, clicks), "d7": (back, one)}
    return {name: _ratio(*part) for name, part in parts.items()}


def _ratio(above: Floats, below: Floats) -> _Seen:
    """Return the ratio of two sums over shoppers, and to the first order what each shopper does to it."""
    mean = float(below.mean())
    if mean == 0:
        return _Seen(np.nan, np.full_like(above, np.nan))
    value = float(above.mean()) / mean
    return _Seen(value, (above - value * below) / mean)


def _minus(a: _Seen, b: _Seen) -> _Seen:
    return _Seen(a.value - b.value, a.moved - b.moved)


def _error(seen: _Seen) -> float:
    return float(seen.moved.std(ddof=1) / np.sqrt(len(seen.moved)))


def _figure(seen: _Seen, unit: str) -> Figure:
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * _error(seen)
    return figure(seen.value, seen.value - half, seen.value + half, len(seen.moved), unit)


def _p_value(seen: _Seen) -> float:
    """Return the two-sided p-value of no difference; 1 where nothing differs."""
    error = _error(seen)
    return float(2 * stats.norm.sf(abs(seen.value) / error)) if error > 0 else 1.0


def _verdict(treatment: str, control: str, difference: Figure, apart: bool) -> str:
    value = difference["value"]
    assert value is not None  # a mean over shoppers has a value
    seen = f"{value:+.2f} of reward a shopper [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    if not apart:
        return f"{treatment} is not distinguishable from {control}: {seen}"
    return f"{treatment} earns {'more' if value > 0 else 'less'} than {control} among these shoppers: {seen}"
