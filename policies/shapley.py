"""Shapley values of games of a few players, exactly: every coalition is played.

References:
    Shapley (1953), A Value for n-Person Games; Strumbelj and Kononenko (2014), Explaining Prediction Models and
    Individual Predictions with Feature Contributions, Knowledge and Information Systems 41 (3).
"""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 12
"""Players that a game may have: there are two to their power of coalitions."""

Array = npt.NDArray[Any]


def coalitions(players: int) -> npt.NDArray[np.bool_]:
    """Return who is in each coalition, shape (2^n, n): player j is in coalition c where bit j of c is set.

    Raises:
        ValueError: There are more than ``MOST`` players.
    """
    if not 0 <= players <= MOST:
        raise ValueError(f"{players} players, must be from 0 to {MOST}")
    numbers = np.arange(2**players)[:, None]
    return np.asarray(numbers >> np.arange(players) & 1, bool)


def shapley_values(worth: Array) -> npt.NDArray[np.float64]:
    """Return what each player adds to what coalitions are worth, averaged over all orders of joining.

    The values of a game sum to what all players are worth together beyond what nobody is.

    Args:
        worth: Of every coalition in the order of ``coalitions``, shape (..., 2^n).

    Returns:
        Shape (..., n).

    Raises:
        ValueError: The last axis is not as long as there are coalitions of some number of players.
    """
    players = worth.shape[-1].bit_length() - 1
    if worth.shape[-1] != 2**players:
        raise ValueError(f"{worth.shape[-1]} coalitions, must be a power of 2")
    there = coalitions(players)
    size = there.sum(1)[:, None]
    # A coalition of s players counts for each of them as joined last, and against each of the rest as not joined yet.
    shares = np.array([1.0 / (players * comb(players - 1, s)) for s in range(players)] + [0.0])
    weight = np.where(there, shares[size - 1], -shares[size])
    found: npt.NDArray[np.float64] = worth @ weight
    return found
