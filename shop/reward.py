"""What a shop wants, as one number per page."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from hawker.shop.decision import A, Outcome
from hawker.shop.errors import InputError


@dataclass(frozen=True)
class RewardSpec:
    """Weights of the reward; one and the same object serves training, metrics and reports.

    Attributes:
        click: Reward of a click.
        conversion: Reward of a conversion, beside its click.
        revenue: Reward per unit of currency.
        response: ``expected`` pays a click its probability, the exact mean of the sampled reward at a given page, so
            that learning sees the same gradient with less noise; ``sampled`` pays the click that was drawn.
    """

    click: float = 1.0
    conversion: float = 0.0
    revenue: float = 0.0
    response: Literal["expected", "sampled"] = "expected"

    def __post_init__(self) -> None:
        """Refuse weights that are not finite, and a reward that is zero whatever shoppers do."""
        weights = (self.click, self.conversion, self.revenue)
        if not all(map(math.isfinite, weights)):
            raise InputError("a weight is not finite", where="reward", got=weights, expected="finite weights")
        if not any(weights):
            raise InputError("every weight is 0", where="reward", expected="at least one weight that is not")

    def components(self, outcome: Outcome[A]) -> dict[str, A]:
        """Return the weighted parts of the reward by name, each of shape (B,); their sum is the reward.

        Raises:
            InputError: A weight is set for something that these shoppers do not have.
        """
        clicks = outcome.click_probability if self.response == "expected" else outcome.clicked
        observed = {"click": clicks, "conversion": outcome.converted, "revenue": outcome.revenue}
        parts = {}
        for field in fields(self):
            weight = getattr(self, field.name)
            if field.name not in observed or weight == 0.0:
                continue
            values = observed[field.name]
            if values is None:
                raise InputError(
                    f"the shoppers have no {field.name} head",
                    where=f"reward.{field.name}",
                    got=weight,
                    expected="0",
                    remedy=f"their logs recorded no {field.name}",
                )
            parts[field.name] = values.sum(-1) * weight  # type: ignore[attr-defined]
        return parts
