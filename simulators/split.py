"""The three-way split: shoppers to train against, shoppers to judge with, and rows for off-policy estimates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.errors import InputError

PARTS = ("train", "judge", "estimate")


def shopper_codes(impressions: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Number the shoppers of a log, and the visits of those it does not know; rows of one number belong together.

    Returns:
        The number of each row, shape (n,), from 0 without gaps; unknown shoppers' visits in order of appearance.
    """
    code, ids = pd.factorize(impressions["shopper_id"], sort=True)  # -1 where unknown
    unknown = code < 0
    visit, _ = pd.factorize(impressions["visit_id"][unknown])
    code = code.astype(np.int64)
    code[unknown] = len(ids) + visit
    return code


def three_way(
    impressions: pd.DataFrame, shares: tuple[float, float, float], seed: int
) -> tuple[npt.NDArray[np.int8], str]:
    """Assign every row of a log to a part: 0 train, 1 judge, 2 estimate.

    Never by row: whole shoppers are dealt out where the log knows them, and stretches of time, with whole visits,
    where it knows none.

    Args:
        impressions: Rows in order of time.
        shares: Share of the shoppers, or of the visits, for each part; positive, sum 1.
        seed: Decides which shoppers go where.

    Returns:
        The part of each row, shape (n,), and "shopper" or "time".

    Raises:
        InputError: The shares are not positive or do not sum to 1; a part would be empty.
    """
    code = shopper_codes(impressions)
    unit = "shopper" if impressions["shopper_id"].notna().any() else "time"
    return deal(int(code.max(initial=-1)) + 1, unit, shares, seed)[code], unit


def deal(n_units: int, unit: str, shares: tuple[float, float, float], seed: int) -> npt.NDArray[np.int8]:
    """Deal out shoppers, or visits in order of time, to the three parts.

    Args:
        n_units: How many there are, numbered as ``shopper_codes`` does.
        unit: "shopper", dealt out at random, or "time", of which each part is a stretch.
        shares: As ``three_way`` takes them.
        seed: Decides which shoppers go where.

    Returns:
        The part of each, shape (n_units,).

    Raises:
        InputError: The shares are not positive or do not sum to 1; a part would be empty.
    """
    if len(shares) != 3 or not min(shares) > 0 or not abs(sum(shares) - 1) <= 1e-6:  # so that NaN is refused
        raise InputError("bad shares", where="shares", got=shares, expected="three positive numbers that sum to 1")
    rank = np.random.default_rng(seed).permutation(n_units) if unit == "shopper" else np.arange(n_units)
    part = np.searchsorted(np.cumsum(shares)[:2], (rank + 0.5) / max(n_units, 1)).astype(np.int8)
    if np.bincount(part, minlength=3).min() == 0:
        what = "shoppers" if unit == "shopper" else "visits"
        raise InputError(f"too few {what} to split in three", where="impressions", got=n_units)
    return part


def bootstrap_shoppers(
    owner: npt.NDArray[np.int64], generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw as many shoppers, or visits where shoppers are unknown, with replacement.

    Args:
        owner: Whom each unit (a shopper's timeline, or a page) belongs to, from ``shopper_codes``, shape (m,).
        generator: Source of the draw.

    Returns:
        Numbers of the units drawn, with repeats, and of those left out.
    """
    n_units = int(owner.max(initial=-1)) + 1
    times = np.bincount(generator.integers(n_units, size=n_units), minlength=n_units)[owner]
    return np.repeat(np.arange(len(owner)), times), np.flatnonzero(times == 0)
