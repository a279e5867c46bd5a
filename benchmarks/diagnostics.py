"""Can this log say anything about that strategy? Figures to read before any off-policy estimate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hawker.shop.errors import InputError

MIN_EFFECTIVE_ROWS = 100.0  # below this effective sample size an estimate is refused
MAX_WEIGHT_SHARE = 0.10  # above this share of all weight on one row an estimate is refused


class Diagnostics(NamedTuple):
    """How well a log covers a strategy.

    Attributes:
        n: Rows of the log.
        ess: Kish effective sample size ``(sum w)^2 / sum w^2``, 0 .. n: as many rows logged by the strategy itself
            would weigh as much. Rows of one shopper count as independent here: with few shoppers it flatters.
        largest_weight_share: Largest weight over the sum of weights, 0 .. 1.
        mean_weight: Mean weight: 1 in expectation where propensities are right and nothing lacks support.
        mean_weight_error: Standard error of `mean_weight`.
        unsupported_mass: Share of the strategy's probability on actions that the logging strategy never took,
            0 .. 1; None where the support was not given. No weighting can make up for it.
    """

    n: int
    ess: float
    largest_weight_share: float
    mean_weight: float
    mean_weight_error: float
    unsupported_mass: float | None


def effective_rows(weight: npt.NDArray[np.floating]) -> float:
    """Return Kish's effective sample size ``(sum w)^2 / sum w^2`` of weights >= 0; 0 where all weights are 0."""
    largest = float(weight.max(initial=0.0))
    if largest == 0.0:
        return 0.0
    scaled = weight / largest  # squares of large weights would overflow
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def diagnose(
    weight: npt.ArrayLike, target: npt.ArrayLike | None = None, logged_support: npt.ArrayLike | None = None
) -> Diagnostics:
    """Measure how well a log covers a strategy.

    Args:
        weight: Importance weight of each row, target over logging probability, (n,), >= 0.
        target: The strategy's probability of each action, (n, n_actions).
        logged_support: True for the actions that the logging strategy takes at all, (n_actions,) or (n, n_actions);
            needs `target`.

    Raises:
        InputError: No rows, weights negative or not finite, shapes that do not agree.
    """
    w = np.asarray(weight, dtype=np.float64)
    if w.ndim != 1 or len(w) == 0:
        raise InputError("no weights to diagnose", where="weight", got=w.shape, expected="shape (n,), n >= 1")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        row = int(np.argmin(np.isfinite(w) & (w >= 0)))
        raise InputError("not a weight", where=f"weight, row {row}", got=float(w[row]), expected="a finite number >= 0")
    total, n = float(w.sum()), len(w)
    return Diagnostics(
        n=n,
        ess=effective_rows(w),
        largest_weight_share=float(w.max()) / total if total > 0 else 0.0,
        mean_weight=total / n,
        mean_weight_error=float(w.std(ddof=1)) / n**0.5 if n > 1 else float("inf"),
        unsupported_mass=_unsupported(n, target, logged_support),
    )


def refusal(diagnostics: Diagnostics) -> str | None:
    """Say in one line why no estimate should be given (`MIN_EFFECTIVE_ROWS`, `MAX_WEIGHT_SHARE`), or return None."""
    d = diagnostics
    reasons = []
    if d.ess < MIN_EFFECTIVE_ROWS:
        reasons.append(f"the effective sample size is {d.ess:.1f} of {d.n} rows, under {MIN_EFFECTIVE_ROWS:.0f}")
    if d.largest_weight_share > MAX_WEIGHT_SHARE:
        reasons.append(f"one row holds {d.largest_weight_share:.1%} of the weight, over {MAX_WEIGHT_SHARE:.0%}")
    return " and ".join(reasons) or None


def _unsupported(n: int, target: npt.ArrayLike | None, logged_support: npt.ArrayLike | None) -> float | None:
    if logged_support is None:
        return None
    if target is None:
        raise InputError("logged_support is given without target", where="diagnose", expected="both")
    probability, support = np.asarray(target), np.asarray(logged_support, dtype=bool)
    if probability.ndim != 2 or len(probability) != n:
        raise InputError("shape", where="target", got=probability.shape, expected=f"({n}, n_actions)")
    if support.shape not in (probability.shape, probability.shape[1:]):
        expected = f"{probability.shape[1:]} or {probability.shape}"
        raise InputError("shape", where="logged_support", got=support.shape, expected=expected)
    if support.ndim == 1:
        return float(probability[:, ~support].sum(axis=1, dtype=np.float64).mean())
    return float(np.where(support, 0.0, probability).sum(axis=1, dtype=np.float64).mean())
