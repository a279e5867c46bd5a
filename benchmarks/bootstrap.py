"""Bootstrap-t limits for off-policy estimates, made for rewards that are rare (clicks) and weights that are uneven.

An estimate here is a function of four totals over the log's rows, ``base / rows + term / norm``; `GroupSums` is the
array of those totals per group of rows that is drawn together (a row, or all rows of one shopper).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hawker.shop.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
# (n_groups, n_estimates, 4): the totals ROWS, BASE, TERM, NORM of each group for each estimate.
GroupSums = npt.NDArray[np.float64]

REPLICATES = 1_000  # bootstrap replicates behind every interval
LEVEL = 0.95  # coverage that the interval aims at
# Above this many rows (or shoppers), rows are first gathered at random into so many groups, which are then resampled.
# Random groups keep the mean, variance and skewness of the estimate's error; the variance is measured with a relative
# error of sqrt(2 / MAX_GROUPS) = 1%, under the 2% of 1,000 replicates; time and memory stop growing with the log.
MAX_GROUPS = 20_000

_CHUNK = 50  # replicates whose counts are held at once
_UPPER = np.triu_indices(4)  # a symmetric 4 x 4 matrix is kept as its upper triangle ...
_TWICE = np.where(_UPPER[0] == _UPPER[1], 1.0, 2.0)  # ... whose entries off the diagonal count twice


def assign_groups(n: int, cluster: npt.NDArray[np.generic] | None, generator: np.random.Generator) -> IntArray:
    """Say which group each row is drawn with.

    Args:
        n: Number of rows.
        cluster: Label of each row's shopper, (n,), any type that sorts; None where rows are independent.
        generator: Source of the random grouping; used only above `MAX_GROUPS` rows or shoppers.

    Returns:
        Group of each row, (n,), 0 .. number of groups - 1, none of them empty.

    Raises:
        InputError: Labels that are NaN or cannot be compared with each other.
    """
    if cluster is None:
        unit, count = np.arange(n), n
    else:
        if cluster.dtype.kind == "f" and np.isnan(cluster).any():
            raise InputError(
                "cluster holds NaN",
                where=f"row {int(np.argmax(np.isnan(cluster)))}",
                expected="a label per row",
                remedy="give each row of an unknown shopper a label of its own",
            )
        try:
            labels, unit = np.unique(cluster, return_inverse=True)
        except TypeError:
            raise InputError("cluster labels cannot be compared", expected="labels of one type, none missing") from None
        count = len(labels)
    if count <= MAX_GROUPS:
        return unit
    return (generator.permutation(count) % MAX_GROUPS)[unit]


def limits(
    sums: GroupSums, low_row: FloatArray, high_row: FloatArray, generator: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return the 95% limits of each estimate, as differences from the estimate.

    Studentised ("bootstrap-t") limits: each replicate draws the groups with replacement and divides its error by its
    own standard error, so that the skewness of rare clicks under uneven weights reaches the interval (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5). A log whose heaviest rows happen to hold no
    click would still seem precise. Each limit is therefore that of the log *and one more row, with the most adverse
    reward that was seen*; that row always counts once in a replicate's standard error, which keeps it above zero.
    Among many clicks it changes nothing; with thirteen clicks, and weights that leave 7% of the rows effective, it
    lifts the coverage of `dr` from 74% to over 95% (percentile limits: 70%).

    Args:
        sums: Totals per group, (n_groups, n_estimates, 4).
        low_row: The added row of the lower limit, (n_estimates, 4).
        high_row: The added row of the upper limit, (n_estimates, 4).
        generator: Source of the replicates.

    Returns:
        Lower (<= 0) and upper (>= 0) differences, each (n_estimates,).
    """
    n_groups, n_estimates, _ = sums.shape
    # Centred, every estimate is 0: the limits come out as differences, and nothing cancels in the variance.
    rows, base, term, norm = np.moveaxis(sums.sum(axis=0), 1, 0)
    shift = np.zeros((n_estimates, 4, 4))
    shift[:, 0, 1], shift[:, 3, 2] = base / rows, term / norm
    centred, low_added, high_added = (
        _with_products(x - np.einsum("...ei,eij->...ej", x, shift)) for x in (sums, low_row, high_row)
    )
    columns = centred.reshape(n_groups, -1)  # (n_groups, n_estimates * 14)
    drawn = np.empty((REPLICATES, columns.shape[1]))
    added = np.empty(REPLICATES)
    for start in range(0, REPLICATES, _CHUNK):
        draws = generator.integers(n_groups + 1, size=(min(_CHUNK, REPLICATES - start), n_groups + 1))
        counts = np.stack([np.bincount(row, minlength=n_groups + 1) for row in draws]).astype(np.float64)
        drawn[start : start + len(draws)] = counts[:, :n_groups] @ columns
        added[start : start + len(draws)] = counts[:, n_groups]
    totals = columns.sum(axis=0).reshape(n_estimates, 14)
    replicates = drawn.reshape(REPLICATES, n_estimates, 14)
    low = _limit(totals, replicates, added, low_added, (1 + LEVEL) / 2)
    high = _limit(totals, replicates, added, high_added, (1 - LEVEL) / 2)
    return np.minimum(low, 0.0), np.maximum(high, 0.0)


def _limit(totals: FloatArray, drawn: FloatArray, added: FloatArray, row: FloatArray, quantile: float) -> FloatArray:
    """Return the bootstrap-t limit of the log with one more row: centre - quantile of t * standard error."""
    centre, error = _value_and_error(totals + row)
    replicate = drawn + added[:, None, None] * row
    replicate[..., 4:] = drawn[..., 4:] + np.maximum(added, 1.0)[:, None, None] * row[:, 4:]
    # A self-normalised replicate that drew no weight at all, or one without any variation, has no t: it is left out.
    with np.errstate(divide="ignore", invalid="ignore"):
        value, value_error = _value_and_error(replicate)
        t = (value - centre) / value_error
    t = np.where(np.isfinite(t), t, np.nan)
    t[0] = np.where(np.isnan(t).all(axis=0), 0.0, t[0])  # no variation in any replicate: the limit is the centre
    return np.asarray(centre - np.nanquantile(t, quantile, axis=0) * error, dtype=np.float64)


def _with_products(sums: FloatArray) -> FloatArray:
    """Append to the four totals (..., 4) their ten pairwise products: (..., 14)."""
    return np.concatenate([sums, sums[..., _UPPER[0]] * sums[..., _UPPER[1]]], axis=-1)


def _value_and_error(totals: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the estimate and its standard error by the delta method from totals and their products (..., 14)."""
    rows, base, term, norm = np.moveaxis(totals[..., :4], -1, 0)
    slope = np.stack([-base / rows**2, 1 / rows, 1 / norm, -term / norm**2], axis=-1)
    variance = (totals[..., 4:] * slope[..., _UPPER[0]] * slope[..., _UPPER[1]] * _TWICE).sum(axis=-1)
    return base / rows + term / norm, np.sqrt(np.maximum(variance, 0.0))
