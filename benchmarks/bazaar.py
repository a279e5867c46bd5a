"""The strategies that write the logs of the gold world `bazaar`."""

from __future__ import annotations

import torch

from hawker.policies.shopkeeper import Habits, Scores, Shopkeeper
from hawker.shop.errors import InputError, did_you_mean
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.search_bazaar import SearchBazaar

EXPLORATION = {"popularity": 0.1, "random": 1.0}
"""The logging strategies by name, with how often they draw a slot's item uniformly instead of by popularity."""

AD_SHARE = 0.4
OFFERED = 0.3  # of the pages, evenly over the tiers
COPY_SHARE = 0.6


def logging_strategy(world: BazaarWorld, name: str) -> Shopkeeper:
    """Return a strategy that ranks by popularity, explores, and leaves ads, offers and lines to chance.

    It shows only lines that may occur in logs.

    Raises:
        InputError: There is no such logging strategy.
    """
    if name not in EXPLORATION:
        raise InputError(
            "unknown logging strategy", where="--strategy", got=name, remedy=did_you_mean(name, EXPLORATION)
        )
    tiers = len(world.parameters.discounts) - 1
    offers = (1 - OFFERED, *[OFFERED / tiers] * tiers) if tiers else (1.0,)
    table = world.items.table
    popularity, bids = (
        torch.tensor(table[column].to_numpy(), dtype=torch.float32, device=world.device)
        for column in ("popularity", "bid")
    )
    lines = world.logged_lines.nonzero().squeeze(1)
    habits = Habits(EXPLORATION[name], AD_SHARE, offers, COPY_SHARE if len(lines) else 0.0)
    scores = searching(popularity) if isinstance(world, SearchBazaar) else popularity
    return Shopkeeper(name, world.size, scores, habits, bids, lines)


def searching(popularity: torch.Tensor) -> Scores:
    """Return scores by which a shop's own search ranks: BM25, which contexts tell as affinity, then popularity (I,)."""
    second = popularity / popularity.max().clamp(min=1e-9) * 1e-3
    return lambda context: context.affinity + second.to(context.affinity.device)[context.candidates]
