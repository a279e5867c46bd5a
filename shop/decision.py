"""What a strategy decides at a page, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

A = TypeVar("A")

EMPTY = -1
"""In a slate: a slot without an item, because too few candidates were eligible."""


@dataclass(frozen=True)
class Decision(Generic[A]):
    """Decisions for a batch of B pages. ``A`` is a NumPy array in serving and a torch tensor in training.

    Attributes:
        slate: Catalog indices of the items shown, in order, shape (B, K); ``EMPTY`` marks an empty slot.
        log_prob: Natural logarithm of the probability of the whole ordered slate, shape (B,).
    """

    slate: A
    log_prob: A


@dataclass(frozen=True)
class Outcome(Generic[A]):
    """How shoppers answered a batch of B decisions; a head that the world does not have is None.

    Attributes:
        clicked: 1 where the item at a position was clicked, else 0, shape (B, K).
        click_probability: The world's probability of that click, shape (B, K).
        gone: True where the shopper left for good, shape (B,).
        converted: 1 where the click led to a purchase, shape (B, K), or None.
        revenue: Currency earned at each position, shape (B, K), or None.
    """

    clicked: A
    click_probability: A
    gone: A
    converted: A | None = None
    revenue: A | None = None
