"""Off-policy estimation: what a strategy would have earned, from a log that another strategy wrote.

Every estimator is a mean over the log's rows of ``base + shrunk weight * residual``; ESTIMATORS lists them, with w the
importance weight (target over logging probability of the logged action), r the reward, q a model of the reward given
context and action, and v the model's reward averaged over the target:

| name | base | weight | residual | divided by | source |
|---|---|---|---|---|---|
| `dm` | v | 0 | | rows | Beygelzimer and Langford 2009 |
| `ips` | 0 | w | r | rows | Horvitz and Thompson 1952 |
| `snips` | 0 | w | r | sum of w | Swaminathan and Joachims 2015 |
| `dr` | v | w | r - q | rows | Dudik, Langford and Li 2011 |
| `sndr` | v | w | r - q | sum of w | Thomas and Brunskill 2016 |
| `ips_clip(c)`, `dr_clip(c)` | as `ips`, `dr` | min(w, c) | | rows | Ionides 2008; Su et al. 2020 |
| `switch-dr(c)` | v | w where w <= c, else 0 | r - q | rows | Wang, Agarwal and Dudik 2017 |
| `dr-os(c)` | v | c w / (w^2 + c) | r - q | rows | Su et al. 2020 |
| `sg-ips(c)`, `sg-dr(c)` | as `ips`, `dr` | w / (1 - c + c w), c < 1 | | rows | Metelli, Russo and Restelli 2021 |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hawker.benchmarks.bootstrap import FloatArray, assign_groups, limits
from hawker.benchmarks.diagnostics import effective_rows
from hawker.shop.errors import InputError, did_you_mean

# The parameters are those of the published reference; `estimate` takes any other.
ESTIMATORS = (
    "dm", "ips", "snips", "dr", "sndr", "ips_clip(5)", "dr_clip(5)", "switch-dr(5)", "dr-os(10)",
    "sg-ips(0.1)", "sg-dr(0.1)",
)  # fmt: skip
SUM_TOLERANCE = 1e-4  # how far a row of target may sum from 1: targets come as float32 and from Monte Carlo


class Estimate(NamedTuple):
    """An estimated mean reward per row (per page, for slate weights).

    Attributes:
        value: The estimate, in units of the reward (a click-through rate, where the reward is the click).
        low: Lower limit of the 95% bootstrap interval (`hawker.benchmarks.bootstrap`), <= value.
        high: Upper limit, >= value. The interval covers the chance of the log, not the bias of an estimator: that of
            `dm` leaves out the error of its model, and those of clipped or shrunk weights what they clip or shrink.
        ess: Kish effective sample size ``(sum w)^2 / sum w^2`` of the weights this estimator uses, after clipping or
            shrinking, 0 .. n; n for `dm`, which uses none.
    """

    value: float
    low: float
    high: float
    ess: float


class _Family(NamedTuple):
    """How an estimator turns rows into terms; its weight is `shrink(w, parameter)`."""

    model: bool  # base is v and the residual r - q; else 0 and r
    shrink: Callable[[FloatArray, float], FloatArray]
    normalised: bool = False  # divided by the sum of weights; else by the rows
    limit: float | None = None  # the parameter lies between 0 and this; None: takes no parameter


def _plain(w: FloatArray, _: float) -> FloatArray:
    return w


_FAMILIES: dict[str, _Family] = {
    "dm": _Family(True, lambda w, _: np.zeros_like(w)),
    "ips": _Family(False, _plain),
    "snips": _Family(False, _plain, normalised=True),
    "dr": _Family(True, _plain),
    "sndr": _Family(True, _plain, normalised=True),
    "ips_clip": _Family(False, np.minimum, limit=np.inf),
    "dr_clip": _Family(True, np.minimum, limit=np.inf),
    "switch-dr": _Family(True, lambda w, c: np.where(w <= c, w, 0.0), limit=np.inf),
    "dr-os": _Family(True, lambda w, c: c * w / (w**2 + c), limit=np.inf),
    "sg-ips": _Family(False, lambda w, c: w / (1 - c + c * w), limit=1.0),
    "sg-dr": _Family(True, lambda w, c: w / (1 - c + c * w), limit=1.0),
}


def estimate(
    reward: npt.ArrayLike,
    action: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    q_hat: npt.ArrayLike,
    estimators: Sequence[str],
    *,
    cluster: npt.ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate the mean reward of a strategy from the log of another.

    Args:
        reward: Observed reward of each row, (n,).
        action: Logged action, (n,), integers in [0, n_actions).
        propensity: Probability of the logged action under the logging strategy, (n,), in (0, 1].
        target: Probability of each action under the strategy to value, (n, n_actions), rows sum to 1.
        q_hat: Modelled reward of each action, (n, n_actions), best from a model that never saw the row (`crossfit_q`).
        estimators: Names as in `ESTIMATORS`; the number in parentheses may be any positive one.
        cluster: Shopper of each row, (n,): rows of one shopper are resampled together. None: rows are independent.
        seed: Of the bootstrap; the same input and seed give the same interval.

    Returns:
        An `Estimate` per name, in the order of `estimators`.

    Raises:
        InputError: An unknown name, or arrays that break the rules above; one line says which, where and what was
            expected.
    """
    wanted, model = _numbers("target", target), _numbers("q_hat", q_hat)
    if wanted.ndim != 2 or 0 in wanted.shape:
        raise InputError("shape", where="target", got=wanted.shape, expected="(n, n_actions), both at least 1")
    n, n_actions = wanted.shape
    taken, chance = _column("action", action, n), _column("propensity", propensity, n)
    if taken.dtype.kind not in "iu":
        raise InputError("actions are not integers", where="action", got=str(taken.dtype), expected="an integer type")
    if model.shape != wanted.shape:
        raise InputError("shape", where="q_hat", got=model.shape, expected=f"{wanted.shape}, as target")
    _every("action", taken, (taken >= 0) & (taken < n_actions), f"an action in [0, {n_actions})")
    _every("propensity", chance, (chance > 0) & (chance <= 1), "a probability in (0, 1]")
    # Sums over a row tell of NaN and infinity without another array of the size of target; 0 * inf is NaN too.
    total = wanted.sum(axis=1, dtype=np.float64)
    _every("target", wanted, (wanted.min(axis=1) >= 0) & np.isfinite(total), "probabilities >= 0")
    _every("target", total, np.abs(total - 1) <= SUM_TOLERANCE, "probabilities that sum to 1", what="sum is off")
    with np.errstate(invalid="ignore"):
        v_target = np.einsum("na,na->n", wanted, model, dtype=np.float64)
    _every("q_hat", model, np.isfinite(v_target), "finite numbers")
    row = np.arange(n)
    with np.errstate(over="ignore"):
        weight = wanted[row, taken] / chance
    return estimate_from_weights(weight, reward, model[row, taken], v_target, estimators, cluster=cluster, seed=seed)


def estimate_from_weights(
    weight: npt.ArrayLike,
    reward: npt.ArrayLike,
    q_logged: npt.ArrayLike,
    v_target: npt.ArrayLike,
    estimators: Sequence[str],
    *,
    cluster: npt.ArrayLike | None = None,
    seed: int = 0,
    unseen: tuple[float, float] | None = None,
) -> dict[str, Estimate]:
    """Estimate from what the estimators need of each row; a row may be a page, whose action is the whole slate.

    Args:
        weight: Probability of the logged action under the target over that under the logging strategy, (n,), >= 0.
        reward: Observed reward, (n,).
        q_logged: Modelled reward of the logged action, (n,).
        v_target: Modelled reward of the target: of each action, averaged over the target's probabilities, (n,).
        estimators: As in `estimate`.
        cluster: As in `estimate`.
        seed: As in `estimate`.
        unseen: Least and greatest reward of a row that the log may not hold yet, which the limits reckon with; by
            default those it holds.

    Returns:
        An `Estimate` per name, in the order of `estimators`.

    Raises:
        InputError: As in `estimate`.
    """
    families = _parse(estimators)
    n = _numbers("weight", weight).size
    w, r, q, v = (
        _column(name, values, n).astype(np.float64, copy=False)
        for name, values in (("weight", weight), ("reward", reward), ("q_logged", q_logged), ("v_target", v_target))
    )
    for name, array in (("weight", w), ("reward", r), ("q_logged", q), ("v_target", v)):
        _every(name, array, np.isfinite(array), "a finite number")
    _every("weight", w, w >= 0, "a weight >= 0")
    labels = None if cluster is None else np.asarray(cluster)
    if labels is not None and labels.shape != (n,):
        raise InputError("shape", where="cluster", got=labels.shape, expected=f"({n},), one label per row")
    generator = np.random.Generator(np.random.PCG64(seed))
    group = assign_groups(n, labels, generator)
    n_groups = int(group.max(initial=0)) + 1
    if n_groups < 2:
        unit = "rows" if labels is None else "shoppers"
        raise InputError(f"too few {unit} for an interval", where="estimate", got=n_groups, expected="at least 2")

    unseen_low, unseen_high = unseen or (float(r.min()), float(r.max()))
    if unseen_low == unseen_high:  # no click at all, or nothing but clicks: the unseen row is of the other kind
        unseen_low, unseen_high = min(unseen_low, 0.0), max(unseen_high, 1.0)
    sums = np.empty((n_groups, len(families), 4))
    low_row, high_row = np.empty((2, len(families), 4))
    values, ess = [], []
    for i, (name, (family, parameter)) in enumerate(families.items()):
        shrunk = family.shrink(w, parameter)
        base = v if family.model else np.zeros(n)
        norm = shrunk if family.normalised else np.ones(n)
        term = shrunk * (r - q if family.model else r)
        if not norm.any():
            remedy = "the log cannot say anything about this strategy"
            raise InputError("the target never takes a logged action", where=f"estimator {name}", remedy=remedy)
        values.append(float(base.mean() + term.sum() / norm.sum()))
        ess.append(float(n) if name == "dm" else effective_rows(shrunk))
        for column, per_row in enumerate((np.ones(n), base, term, norm)):
            sums[:, i, column] = np.bincount(group, per_row, minlength=n_groups)
        # One more row (see `limits`), typical of the target: weight and model are means in which rows count by weight.
        share = shrunk / max(float(shrunk.sum()), np.finfo(np.float64).tiny)
        typical_weight, typical_q = float(share @ shrunk), float(share @ q) if family.model else 0.0
        for row, adverse in ((low_row, unseen_low), (high_row, unseen_high)):
            row[i] = 1.0, base.mean(), typical_weight * (adverse - typical_q), 1.0
            if family.normalised:
                row[i, 3] = typical_weight
    low, high = limits(sums, low_row, high_row, generator)
    return {
        name: Estimate(value, value + float(below), value + float(above), rows)
        for name, value, below, above, rows in zip(families, values, low, high, ess, strict=True)
    }


def _parse(estimators: Sequence[str]) -> dict[str, tuple[_Family, float]]:
    """Return each name's family and parameter (0 where it takes none)."""
    if isinstance(estimators, str):
        raise InputError("one name instead of a list", where="estimators", got=estimators, expected="a list of names")
    families = {}
    for name in estimators:
        stem, bracket, number = str(name).partition("(")
        if stem not in _FAMILIES:
            remedy = did_you_mean(stem, _FAMILIES)
            raise InputError("unknown estimator", where="estimators", got=name, remedy=remedy)
        limit = _FAMILIES[stem].limit
        if limit is None and bracket:
            raise InputError("takes no parameter", where="estimators", got=name, expected=stem)
        families[name] = (_FAMILIES[stem], 0.0 if limit is None else _parameter(name, stem, number, limit))
    return families


def _parameter(name: str, stem: str, number: str, limit: float) -> float:
    try:
        value = float(number.removesuffix(")"))
    except ValueError:
        value = np.nan
    if not (number.endswith(")") and 0 < value < limit):
        rule = f"{stem}(c), c a positive number" + ("" if limit == np.inf else f" under {limit:g}")
        raise InputError("not an estimator", where="estimators", got=name, expected=rule)
    return value


def _numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the values as an array, which is not copied if it is one."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal length
        raise InputError("rows differ in length", where=name, expected="an array") from None
    if array.dtype.kind not in "fiub":
        raise InputError("not an array of numbers", where=name, got=str(array.dtype), expected="numbers")
    return array


def _column(name: str, values: npt.ArrayLike, n: int) -> npt.NDArray[Any]:
    """Return the values as an array of shape (n,)."""
    array = _numbers(name, values)
    if array.shape != (n,) or n == 0:
        raise InputError("shape", where=name, got=array.shape, expected=f"({n or 'n'},), one per row")
    return array


def _every(name: str, array: npt.NDArray[Any], good: npt.NDArray[np.bool_], expected: str, what: str = "") -> None:
    """Raise an `InputError` that names the first row that is not good, (n,), and its value or worst value."""
    if good.all():
        return
    row = int(np.argmin(good))
    values = np.atleast_1d(array[row])
    finite = np.isfinite(values)
    worst = values.min() if finite.all() else values[~finite][0]
    raise InputError(what or "bad value", where=f"{name}, row {row}", got=worst.item(), expected=expected)
