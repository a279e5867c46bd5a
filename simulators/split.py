"""The three-way split: shoppers to train against, shoppers to judge with, and rows for off-policy estimates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.errors import InputError

PARTS = ("train", "judge", "estimate")


def three_way(
    impressions: pd.DataFrame, shares: tuple[float, float, float], seed: int
) -> tuple[npt.NDArray[np.int8], str]:
    """Assign every row of a log to a part: 0 train, 1 judge, 2 estimate.

    Never by row: whole shoppers are dealt out where the log knows them, and stretches of time where it does not.

    Args:
        impressions: Rows in order of time.
        shares: Share of the shoppers, or of the rows, for each part; positive, sum 1.
        seed: Decides which shoppers go where.

    Returns:
        The part of each row, shape (n,), and "shopper" or "time".

    Raises:
        InputError: The shares are not positive or do not sum to 1; a part would be empty.
    """
    if len(shares) != 3 or not min(shares) > 0 or not abs(sum(shares) - 1) <= 1e-6:  # so that NaN is refused
        raise InputError("bad shares", where="shares", got=shares, expected="three positive numbers that sum to 1")
    bounds = np.cumsum(shares)[:2]
    if impressions["shopper_id"].notna().all():
        code, ids = pd.factorize(impressions["shopper_id"], sort=True)
        rank = np.random.default_rng(seed).permutation(len(ids))
        part, unit, n_units = np.searchsorted(bounds, (rank + 0.5) / len(ids))[code], "shopper", len(ids)
    else:
        n_units = len(impressions)
        part, unit = np.searchsorted(bounds, (np.arange(n_units) + 0.5) / n_units), "time"
    counts = np.bincount(part, minlength=3)
    if counts.min() == 0:
        what = "shoppers" if unit == "shopper" else "rows"
        raise InputError(f"too few {what} to split in three", where="impressions", got=n_units)
    return part.astype(np.int8), unit


def later_rows(impressions: pd.DataFrame, share: float) -> npt.NDArray[np.bool_]:
    """Mark the last ``share`` of the rows in order of time, shape (n,): kept from fitting for calibration."""
    rank = impressions["timestamp"].rank(method="first").to_numpy()
    return np.asarray(rank > (1.0 - share) * len(impressions))


def bootstrap_rows(
    impressions: pd.DataFrame, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw as many shoppers, or rows where shoppers are unknown, with replacement.

    Returns:
        Row numbers of the draw, with repeats, and the numbers of the rows that were left out.
    """
    n = len(impressions)
    if impressions["shopper_id"].notna().all():
        code, ids = pd.factorize(impressions["shopper_id"])
        times = np.bincount(generator.integers(len(ids), size=len(ids)), minlength=len(ids))[code]
    else:
        times = np.bincount(generator.integers(n, size=n), minlength=n)
    return np.repeat(np.arange(n), times), np.flatnonzero(times == 0)
