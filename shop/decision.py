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

    A part that a strategy does not decide is None: no ads, no offers, no copy.

    Attributes:
        slate: Catalog indices of the items shown, in order, shape (B, K); ``EMPTY`` marks an empty slot.
        log_prob: Natural logarithm of the probability of the whole ordered slate, shape (B,).
        ad: The slot whose item is an ad, shape (B,); ``EMPTY`` where the page has none.
        offer: Discount tier of the page, shape (B,); 0 is none.
        copy: The line shown with each item, shape (B, K), as a number in the shop's bank of lines; ``EMPTY`` is none.
        log_probs: Log-probabilities of further parts by name ("ad", "offer", "copy"), each (B,), where they are known.
        propensity: P(this item at this position given what stands above it), shape (B, K), where it is known.
    """

    slate: A
    log_prob: A
    ad: A | None = None
    offer: A | None = None
    copy: A | None = None
    log_probs: dict[str, A] | None = None
    propensity: A | None = None


@dataclass(frozen=True)
class Outcome(Generic[A]):
    """How shoppers answered a batch of B decisions; a head that the world does not have is None.

    Attributes:
        clicked: 1 where the item at a position was clicked, else 0, shape (B, K).
        click_probability: The world's probability of that click, shape (B, K).
        gone: True where the shopper left for good, shape (B,).
        converted: 1 where the click led to a purchase, shape (B, K), or None.
        revenue: Currency earned at each position, shape (B, K), or None.
        conversion_probability: The world's probability that a click leads to a purchase, shape (B, K), or None.
        leave: True where the visit ended with this page, shape (B,), or None.
        leave_probability: The world's probability that the visit ends with this page, given what was clicked and
            bought, shape (B,), or None.
        days: Days until the shopper's next visit where this one ended, else 0; inf where there is none; (B,), or None.
        return_probability: The world's probability that the next visit begins within 7 days of this page (a return on
            the seventh day counts) if the visit ends with it, whatever was drawn, shape (B,), or None.
        second: The same answers with the probabilities that another model of the same shoppers gives them, or None.
        unsupported: How many of the page's impressions the logs say nothing of, where one that they hardly know counts
            in part, shape (B,), or None.
    """

    clicked: A
    click_probability: A
    gone: A
    converted: A | None = None
    revenue: A | None = None
    conversion_probability: A | None = None
    leave: A | None = None
    days: A | None = None
    return_probability: A | None = None
    leave_probability: A | None = None
    second: Outcome[A] | None = None
    unsupported: A | None = None
