"""What a shop wants, as one number per page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from hawker.shop.decision import EMPTY, A, Decision, Outcome
from hawker.shop.errors import InputError

RETURN_DAYS = 7
"""Days within which the next visit counts as a return; the last of them counts."""

WEIGHTS = ("click", "conversion", "revenue", "ad_income", "return_visit")
BY_SLOT = ("click", "conversion", "revenue", "ad_income")
"""What each slot earns by itself; the rest belongs to the page."""

DOUBTS = ("disagreement", "support")
COSTS = ("ad", "offer", "repetition", *DOUBTS)


@dataclass(frozen=True)
class RewardSpec:
    """Weights of the reward; one and the same object serves training, metrics and reports.

    Attributes:
        click: Reward of a click.
        conversion: Reward of a conversion, beside its click.
        revenue: Reward per unit of currency.
        ad_income: Reward per unit of currency that a click on an ad earns, its bid.
        return_visit: Reward of a next visit within 7 days, paid once, on the last page of a visit.
        ad: Cost of showing an ad, at least 0.
        offer: Cost of a page with an offer, times its tier, at least 0.
        repetition: Cost of each item that the page before, of the same visit, showed too, at least 0.
        disagreement: Pessimism: cost of each unit of reward in which two models of the same shoppers differ over a
            page (clicks, purchases and ad income, as they expect them), at least 0. At 0.5, a page is worth what the
            less impressed of the two expects, on average over which of them is asked first.
        support: Pessimism: cost of each impression that the logs say nothing of, at least 0.
        response: ``expected`` pays clicks, conversions, ad income and returns their probabilities where the world knows
            them, the exact means of what would be drawn at a given page, so that learning sees the same gradient with
            less noise; ``sampled`` pays what was drawn. Revenue is always what was drawn.
        discount_per_day: What a reward a day later is worth, above 0 and at most 1.
    """

    click: float = 1.0
    conversion: float = 0.0
    revenue: float = 0.0
    ad_income: float = 0.0
    return_visit: float = 0.0
    ad: float = 0.0
    offer: float = 0.0
    repetition: float = 0.0
    disagreement: float = 0.0
    support: float = 0.0
    response: Literal["expected", "sampled"] = "expected"
    discount_per_day: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights that are not finite, negative costs, and a reward that is zero whatever shoppers do."""
        weights = tuple(getattr(self, name) for name in WEIGHTS)
        if not all(map(math.isfinite, weights)):
            raise InputError("a weight is not finite", where="reward", got=weights, expected="finite weights")
        for name in COSTS:
            cost = getattr(self, name)
            if not 0 <= cost < math.inf:  # NaN too
                raise InputError("bad cost", where=f"reward.{name}", got=cost, expected="a finite number of at least 0")
        if not any(weights):
            raise InputError("every weight is 0", where="reward", expected="at least one weight that is not")
        if self.disagreement and not any((self.click, self.conversion, self.ad_income)):
            raise InputError(
                "nothing that models could differ over",
                where="reward.disagreement",
                got=self.disagreement,
                expected="0, or a weight of clicks, conversions or ad income",
            )
        if not 0 < self.discount_per_day <= 1:
            raise InputError(
                "bad discount",
                where="reward.discount_per_day",
                got=self.discount_per_day,
                expected="a number above 0 and at most 1",
            )

    def components(
        self,
        outcome: Outcome[A],
        decision: Decision[A] | None = None,
        bids: A | None = None,
        previous: A | None = None,
    ) -> dict[str, A]:
        """Return the weighted parts of the reward by name, each of shape (B,), costs negative; their sum is the reward.

        Args:
            outcome: How shoppers answered.
            decision: What they saw; needed for ad income and for costs.
            bids: What a click on an item's ad earns, in currency, shape (n_items,); None where the shop has no ads.
            previous: The slate of each shopper's page before in the same visit, shape (B, K), ``EMPTY`` at the first;
                None where there is no such page.

        Raises:
            InputError: A weight is set for something that these shoppers do not have.
        """
        observed, parts = self._observed(outcome, decision, bids, previous), {}
        for name in (*WEIGHTS, *COSTS):
            weight = getattr(self, name)
            if weight == 0.0:
                continue
            values = observed[name]()
            if values is None and name in DOUBTS:
                raise InputError(
                    f"these shoppers tell no doubts, and {name} costs",
                    where=f"reward.{name}",
                    got=weight,
                    expected="0, or learned shoppers that a strategy is trained against",
                )
            if values is None:
                raise InputError(
                    f"the shoppers have no {name} head",
                    where=f"reward.{name}",
                    got=weight,
                    expected="0",
                    remedy=f"their logs recorded no {name}",
                )
            if name in BY_SLOT:
                values = values.sum(-1)
            parts[name] = values * (-weight if name in COSTS else weight)
        return parts

    def slots(self, outcome: Outcome[A], decision: Decision[A], bids: A | None = None) -> A:
        """Return what each slot earns by a click on it, shape (B, K).

        That is what of the reward can be told apart by slot: clicks, conversions, revenue, ad income. Arguments as in
        ``components``, which refuses weights for what there is not.
        """
        observed = self._observed(outcome, decision, bids, None)
        clicked: Any = outcome.clicked
        earned = clicked * 0.0
        for name in BY_SLOT:
            if (weight := getattr(self, name)) and (values := observed[name]()) is not None:
                earned = earned + weight * values
        return earned  # type: ignore[no-any-return]

    @property
    def doubts(self) -> bool:
        """Whether pages cost something for what is not known of them, which a world has to tell."""
        return self.disagreement > 0 or self.support > 0

    @property
    def plain(self) -> RewardSpec:
        """The reward without pessimism: what is measured once a strategy is judged."""
        return replace(self, disagreement=0.0, support=0.0)

    def discount(self, days: A) -> A:
        """Return the factor on rewards ``days`` (B,) later."""
        return self.discount_per_day**days  # type: ignore[operator,no-any-return]

    def _observed(self, outcome: Any, decision: Any, bids: Any, previous: Any) -> dict[str, Any]:
        """Return by name what computes a part before its weight; arrays of both libraries are taken alike."""
        expected = self.response == "expected"
        clicks = outcome.click_probability if expected else outcome.clicked
        nothing = outcome.clicked[:, 0] * 0.0

        def conversion() -> Any:
            if expected and outcome.conversion_probability is not None:
                return clicks * outcome.conversion_probability
            return outcome.converted

        @cache
        def ads() -> Any:
            """1 at the slot of the ad, shape (B, K)."""
            slots = (decision.slate * 0 + 1).cumsum(-1) - 1
            return (slots == decision.ad[:, None]) * (decision.slate != EMPTY)

        def ad_income() -> Any:
            if decision is None or bids is None:
                return None
            return clicks * 0.0 if decision.ad is None else bids[decision.slate.clip(0)] * clicks * ads()

        def return_visit() -> Any:
            last = outcome.gone if outcome.leave is None else outcome.leave
            if expected and outcome.return_probability is not None:
                return outcome.return_probability * last
            return None if outcome.days is None else nothing + last * (outcome.days <= RETURN_DAYS)

        def ad() -> Any:
            return None if decision is None else nothing if decision.ad is None else nothing + ads().sum(-1)

        def offer() -> Any:
            return None if decision is None else nothing if decision.offer is None else nothing + decision.offer

        def repetition() -> Any:
            if decision is None:
                return None
            if previous is None:
                return nothing
            again = (decision.slate[:, :, None] == previous[:, None, :]).any(-1) & (decision.slate != EMPTY)
            return nothing + again.sum(-1)

        def disagreement() -> Any:
            if outcome.second is None:
                return None
            paid = replace(self, revenue=0.0, response="expected")
            one, other = (paid.slots(opinion, decision, bids).sum(-1) for opinion in (outcome, outcome.second))
            return abs(one - other)

        return {
            "click": lambda: clicks,
            "conversion": conversion,
            "revenue": lambda: outcome.revenue,
            "ad_income": ad_income,
            "return_visit": return_visit,
            "ad": ad,
            "offer": offer,
            "repetition": repetition,
            "disagreement": disagreement,
            "support": lambda: outcome.unsupported,
        }
