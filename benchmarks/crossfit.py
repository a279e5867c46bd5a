"""A model of the reward for off-policy estimation: click probabilities of all items, learned from other rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, hstack
from scipy.special import expit

from hawker.benchmarks.bootstrap import FloatArray, IntArray
from hawker.shop.errors import InputError

# Inverse penalty of the logistic regression = variance of the Gaussian prior on each coefficient: features are scaled
# to unit variance, so that a step of one standard deviation is taken to move the log-odds by about 0.3, which keeps
# items with a handful of clicks near the mean. Chosen on held-out rows of the shipped logs and of planted ones.
PRIOR_VARIANCE = 0.1

_CHUNK = 65_536  # rows predicted at once


def crossfit_q(
    features: npt.ArrayLike,
    action: npt.ArrayLike,
    reward: npt.ArrayLike,
    position: npt.ArrayLike,
    n_actions: int,
    item_features: npt.ArrayLike,
    *,
    affinity: npt.ArrayLike | None = None,
    folds: int = 3,
    seed: int = 0,
    cluster: npt.ArrayLike | None = None,
) -> FloatArray:
    """Model the click probability of every item in every row, each row by a model that never saw it.

    Logistic regression, additive in shopper features, position, item, item features and the row's affinity with the
    item; fitted per fold on the other folds (cross-fitting: Chernozhukov et al. 2018), so that `dr` owes nothing to
    a model that has learned its own rows by heart. Where the other folds hold no click, or nothing but clicks, their
    smoothed mean (clicks + 1/2) / (rows + 1) stands for every item.

    Args:
        features: Shopper features of each row, (n, d), finite; d may be 0.
        action: Logged item, (n,), integers in [0, n_actions).
        reward: Clicked, (n,), 0 or 1.
        position: Position of the item on the page, (n,), integers from 0.
        n_actions: Number of items.
        item_features: Features of each item, (n_actions, f), finite; f may be 0.
        affinity: Affinity of each row's shopper with each item, (n, n_actions), finite; None where unknown.
        folds: Number of folds, 2 or more.
        seed: Of the folds.
        cluster: Shopper of each row, (n,): all rows of a shopper are in one fold. None: rows are independent.

    Returns:
        Click probability, (n, n_actions), float64, at each row's own position.

    Raises:
        InputError: Arrays that break the rules above, fewer shoppers (rows) than folds.
    """
    shopper, item = _matrix("features", features), _matrix("item_features", item_features)
    n = len(shopper)
    taken, place = _indices("action", action, n, n_actions), _indices("position", position, n, None)
    clicked = np.asarray(reward)
    if clicked.shape != (n,) or not np.isin(clicked, (0, 1)).all():
        raise InputError("not a click", where="reward", got=_shape_or_value(clicked, n), expected=f"({n},) of 0 or 1")
    if len(item) != n_actions:
        raise InputError("shape", where="item_features", got=item.shape, expected=f"({n_actions}, f), a row per item")
    liking = None if affinity is None else _matrix("affinity", affinity)
    if liking is not None and liking.shape != (n, n_actions):
        raise InputError("shape", where="affinity", got=liking.shape, expected=f"({n}, {n_actions})")
    fold = _folds(n, cluster, folds, np.random.Generator(np.random.PCG64(seed)))

    # The score is row part + item part (+ affinity): no (n * n_actions)-row design is ever built.
    scale = 1.0 if liking is None else float(liking.std()) or 1.0
    by_row = hstack([csr_array(_standardised(shopper)), _one_hot(place, int(place.max()) + 1)], format="csr")
    by_item = hstack([csr_array(_standardised(item)), _one_hot(np.arange(n_actions), n_actions)], format="csr")
    logged = [by_row, by_item[taken]]
    if liking is not None:
        logged.append(csr_array((liking[np.arange(n), taken] / scale)[:, None]))
    design = hstack(logged, format="csr")

    q = np.empty((n, n_actions))
    for k in range(folds):
        rest, held_out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        clicks = int(clicked[rest].sum())
        if clicks in (0, len(rest)):
            q[held_out] = (clicks + 0.5) / (len(rest) + 1)
            continue
        weights, intercept = _logistic(design[rest], clicked[rest])
        row_weights, item_weights, affinity_weight = np.split(
            weights, [by_row.shape[1], by_row.shape[1] + by_item.shape[1]]
        )
        row_score, item_score = by_row @ row_weights + intercept, by_item @ item_weights
        for start in range(0, len(held_out), _CHUNK):
            rows = held_out[start : start + _CHUNK]
            score = row_score[rows, None] + item_score
            if liking is not None:
                score += liking[rows] * (affinity_weight / scale)
            q[rows] = expit(score)
    return q


def _logistic(design: csr_array, clicked: npt.NDArray[np.generic]) -> tuple[FloatArray, float]:
    from sklearn.linear_model import LogisticRegression  # not needed to read or serve: imported where it is used

    fitted = LogisticRegression(C=PRIOR_VARIANCE, max_iter=1_000).fit(design, clicked)
    return np.asarray(fitted.coef_[0]), float(fitted.intercept_[0])


def _folds(n: int, cluster: npt.ArrayLike | None, folds: int, generator: np.random.Generator) -> IntArray:
    """Deal shoppers (rows) into folds of nearly equal number; return each row's fold, (n,)."""
    labels = np.arange(n) if cluster is None else np.asarray(cluster)
    if labels.shape != (n,):
        raise InputError("shape", where="cluster", got=labels.shape, expected=f"({n},), one label per row")
    unique, unit = np.unique(labels, return_inverse=True)
    if not 2 <= folds <= len(unique):
        raise InputError("folds", where="crossfit_q", got=folds, expected=f"2 .. {len(unique)} (rows or shoppers)")
    return np.asarray(generator.permutation(len(unique)) % folds, dtype=np.intp)[unit]


def _standardised(matrix: FloatArray) -> FloatArray:
    """Scale columns to mean 0 and variance 1, but leave those of 0 and 1: a rare category is not a wide number."""
    spread = matrix.std(axis=0)
    plain = ((matrix == 0) | (matrix == 1)).all(axis=0) | (spread == 0)
    return np.where(plain, matrix, (matrix - matrix.mean(axis=0)) / np.where(plain, 1.0, spread))


def _one_hot(index: IntArray, width: int) -> csr_array:
    n = len(index)
    return csr_array((np.ones(n), index, np.arange(n + 1)), shape=(n, width))


def _matrix(name: str, values: npt.ArrayLike) -> FloatArray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) == 0:
        raise InputError("shape", where=name, got=matrix.shape, expected="two dimensions, at least one row")
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise InputError("not finite", where=f"{name}, row {int(np.argmin(finite))}", expected="finite numbers")
    return matrix


def _indices(name: str, values: npt.ArrayLike, n: int, size: int | None) -> IntArray:
    index = np.asarray(values)
    rule = "integers >= 0" if size is None else f"integers in [0, {size})"
    if index.shape != (n,) or index.dtype.kind not in "iu":
        raise InputError("not an index per row", where=name, got=index.shape, expected=f"({n},) {rule}")
    good = (index >= 0) & (index < (np.inf if size is None else size))
    if not good.all():
        row = int(np.argmin(good))
        raise InputError("out of range", where=f"{name}, row {row}", got=int(index[row]), expected=rule)
    return index.astype(np.intp)


def _shape_or_value(clicked: npt.NDArray[np.generic], n: int) -> object:
    return clicked.shape if clicked.shape != (n,) else clicked[~np.isin(clicked, (0, 1))][0].item()
