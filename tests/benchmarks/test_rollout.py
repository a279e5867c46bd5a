from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.truth import TruthWorld
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import Decision, Outcome
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.world import Shoppers

CPU = torch.device("cpu")


@dataclass
class Clockwork:
    """Visits of two pages, ten days apart; shopper 0 never comes back."""

    builder: ContextBuilder
    leaves: bool = True
    size: int = 2
    device: torch.device = field(default_factory=lambda: CPU)
    offers: int = 1
    lines: tuple[str, ...] = ()
    bids: Tensor = field(default_factory=lambda: torch.tensor([0.4, 0.0, 0.0]))

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        context = Context(torch.zeros(n, 1), torch.zeros(n, 2).long(), torch.ones(n, 2).bool(), torch.zeros(n, 2))
        return Shoppers(context, torch.zeros(n).long(), {"page": torch.zeros(n), "number": torch.arange(n)})

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        n = len(shoppers.member)
        clicked, half = torch.tensor([[1.0, 0.0]]).expand(n, 2), torch.full((n, 2), 0.5)
        if not self.leaves:
            return shoppers, Outcome(clicked, half, torch.ones(n).bool())
        leave = shoppers.state["page"] == 1
        lost = shoppers.state["number"] == 0
        days = torch.where(leave, torch.where(lost, torch.inf, 10.0), 0.0)
        state = shoppers.state | {"page": torch.where(leave, 0.0, shoppers.state["page"] + 1)}
        outcome = Outcome(
            clicked,
            half,
            leave & lost,
            revenue=3.0 * clicked,
            conversion_probability=torch.full((n, 2), 0.2),
            leave=leave,
            days=days,
            return_probability=torch.full((n,), 0.25),
        )
        return Shoppers(shoppers.context, shoppers.member, state), outcome


class Fixed:
    name = "fixed"

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        n = len(context.mask)
        return Decision(torch.tensor([[0, -1]]).expand(n, 2), torch.zeros(n), ad=torch.zeros(n).long())


class Offering(Fixed):
    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        offer = torch.arange(len(context.mask)) % 2 * 4  # every second one the deepest, beyond what the world knows
        return dataclasses.replace(super().propose(context, generator), offer=offer)


def test_pages_are_counted_by_offer(bazaar: BazaarWorld) -> None:
    world = Clockwork(bazaar.builder, offers=3)
    assert rollout(world, Fixed(), 3, 28, torch.Generator()).offers.tolist() == [14.0, 0.0, 0.0]
    # Three shoppers on the first two pages, then two on four more.
    assert rollout(world, Offering(), 3, 28, torch.Generator()).offers.tolist() == [8.0, 0.0, 6.0]


def test_totals_by_hand(bazaar: BazaarWorld) -> None:
    totals = rollout(Clockwork(bazaar.builder), Fixed(), 3, 28, torch.Generator())
    # Visits on days 0, 10 and 20; shopper 0 has only the first. Two pages each.
    assert totals.pages.tolist() == [2.0, 6.0, 6.0]
    assert totals.clicks.tolist() == [2.0, 6.0, 6.0]
    assert totals.impressions.tolist() == [2.0, 6.0, 6.0]
    assert totals.purchases.tolist() == pytest.approx([0.4, 1.2, 1.2])
    assert totals.reward().tolist() == pytest.approx([4.0, 12.0, 12.0])
    assert totals.revenue.tolist() == [6.0, 18.0, 18.0]
    assert totals.ads.tolist() == [2.0, 6.0, 6.0]
    assert totals.ad_income.tolist() == pytest.approx([0.4, 1.2, 1.2]), "half a click of 0.4 on every page"
    assert totals.back.tolist() == [0.25] * 3, "after the first visit alone"
    assert totals.exposure.tolist() == [14.0, 0.0, 0.0]
    visits = totals.visits
    assert sorted(zip(visits.shopper.tolist(), visits.number.tolist(), strict=True)) == [
        (0, 0),
        *((who, number) for who in (1, 2) for number in range(3)),
    ]
    assert set(visits.pages.tolist()) == {2}
    assert set(visits.clicks.tolist()) == {2}


def test_means_by_segment_by_hand(bazaar: BazaarWorld) -> None:
    totals = rollout(Clockwork(bazaar.builder), Fixed(), 3, 28, torch.Generator())
    assert totals.segment is None
    assert totals.by_segment(totals.clicks).tolist() == pytest.approx([14 / 3]), "all are one"
    told = dataclasses.replace(totals, segment=torch.tensor([4, 1, 4]))  # nobody of 0, 2 and 3 came
    assert told.by_segment(told.clicks).tolist() == [6.0, 4.0]
    assert told.by_segment(told.reward()).tolist() == pytest.approx([12.0, 8.0])


def test_shoppers_keep_the_segment_they_came_with(bazaar: BazaarWorld) -> None:
    draws, p = torch.Generator().manual_seed(3), bazaar.parameters
    totals = rollout(bazaar, logging_strategy(bazaar, "popularity"), 300, 28, torch.Generator().manual_seed(3))
    assert totals.segment is not None
    assert totals.segment.tolist() == bazaar.arrive(300, draws).state["segment"].tolist()
    means, counts = totals.by_segment(totals.reward()), totals.segment.bincount()
    assert len(means) == len(p.segments)
    assert float((means * counts).sum() / 300) == pytest.approx(float(totals.reward().mean()))
    # A world that tells more has the same shoppers.
    told = TruthWorld(bazaar, RewardSpec(), bazaar.lines)
    seen = rollout(told, logging_strategy(bazaar, "popularity"), 300, 1, torch.Generator().manual_seed(3))
    assert seen.segment is not None
    assert seen.segment.tolist() == totals.segment.tolist()


def test_a_visit_on_the_last_day_is_not_begun(bazaar: BazaarWorld) -> None:
    assert rollout(Clockwork(bazaar.builder), Fixed(), 2, 20, torch.Generator()).pages.tolist() == [2.0, 4.0]
    assert rollout(Clockwork(bazaar.builder), Fixed(), 2, 21, torch.Generator()).pages.tolist() == [2.0, 6.0]


def test_a_world_that_knows_no_leaving_shows_one_page(bazaar: BazaarWorld) -> None:
    totals = rollout(Clockwork(bazaar.builder, leaves=False), Fixed(), 2, 28, torch.Generator())
    assert totals.pages.tolist() == [1.0, 1.0]
    assert totals.purchases.tolist() == [0.0, 0.0]
    assert totals.visits.pages.tolist() == [1, 1]


def test_expected_clicks_have_the_mean_of_the_drawn_ones(bazaar: BazaarWorld) -> None:
    strategy = logging_strategy(bazaar, "popularity")
    totals = rollout(bazaar, strategy, 600, 28, torch.Generator().manual_seed(1))
    expected, drawn = float(totals.clicks.sum()), float(totals.visits.clicks.sum())
    assert abs(drawn - expected) < 4 * expected**0.5
    assert float(totals.visits.pages.sum()) == float(totals.pages.sum())
    again = rollout(bazaar, strategy, 600, 28, torch.Generator().manual_seed(1))
    assert torch.equal(again.clicks, totals.clicks)
