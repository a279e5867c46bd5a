"""How lines of a copy bank are chosen; kept apart from NumPy, so that the command line can show it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hawker.shop.errors import InputError


@dataclass(frozen=True)
class ChoiceConfig:
    """How lines are chosen.

    Attributes:
        temperature: In units of the effect, above 0: a line whose bound lies this much lower is chosen 1/e as often.
        floor: Share of the choices that is spread evenly over the lines, 0..1.
        caution: Standard deviations of the effect among models that are taken off it, at least 0.
    """

    temperature: float = 0.005
    floor: float = 0.1
    caution: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what gives no distribution."""
        for name, value, fits, expected in (
            ("temperature", self.temperature, 0 < self.temperature < math.inf, "a finite number above 0"),
            ("floor", self.floor, 0 <= self.floor <= 1, "a share, 0..1"),
            ("caution", self.caution, 0 <= self.caution < math.inf, "a finite number of at least 0"),
        ):
            if not fits:
                raise InputError(f"bad {name}", where="copy bank", got=value, expected=expected)
