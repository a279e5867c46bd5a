"""Numbers as reports give them: a value never stands without its interval, its sample size and its unit."""

from __future__ import annotations

import math
from typing import TypedDict


class Figure(TypedDict):
    """One reported number.

    Attributes:
        value: The number; None where it is not defined.
        low: Lower end of its 95% interval; None where there is none.
        high: Upper end.
        n: What it was measured on: rows, pages or shoppers, as the report says.
        unit: "probability", "nats", "clicks", "ratio", "seconds", ...
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str


def figure(value: float | None, low: float | None, high: float | None, n: int, unit: str) -> Figure:
    """Return a figure; what is not finite becomes None, since JSON has no other way to say so."""
    return Figure(value=_finite(value), low=_finite(low), high=_finite(high), n=int(n), unit=unit)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
