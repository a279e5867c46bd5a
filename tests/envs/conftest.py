"""Worlds and guards that the tests of the environments share."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hawker.shop.context import Context
from hawker.shop.decision import Decision, Outcome
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers


class StayingWorld:
    """The small shop, but every second shopper of a batch stays for another page and remembers how many they saw."""

    def __init__(self, world: PlantedWorld) -> None:
        self.builder, self.size, self.device, self._world = world.builder, world.size, world.device, world
        self.choices, self.offers, self.lines, self.bids = world.choices, world.offers, world.lines, world.bids

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers."""
        return replace(self._world.arrive(n, generator), state={"seen": torch.zeros(n)})

    def respond(
        self, shoppers: Shoppers, decision: Decision[torch.Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[torch.Tensor]]:
        """Answer a page."""
        _, outcome = self._world.respond(shoppers, decision, generator)
        gone = torch.arange(len(decision.slate)) % 2 == 0
        after = replace(shoppers, state={"seen": shoppers.state["seen"] + 1})
        return after, Outcome(outcome.clicked, outcome.click_probability, gone)


class CalendarWorld:
    """Every page is a visit and the next one begins ``days`` later; ``gone`` says who leaves for good at a page.

    Shoppers are numbered in the order in which they arrive; the number is their only feature. Items 0 and 1 are out of
    stock, and the others have bids; there are two tiers and two lines.
    """

    def __init__(self, days: float = 3.0, gone: Callable[[torch.Tensor], torch.Tensor] = torch.zeros_like) -> None:
        world = small_world(n_items=6, size=3)
        self.builder, self.size, self.device, self.choices = world.builder, world.size, world.device, world.choices
        self.offers, self.lines = 2, ("old", "new")
        self.bids = torch.tensor([1.0, 1.0, 1.0, 2.0, 4.0, 8.0])
        self._days, self._gone, self._arrived = days, gone, 0

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers."""
        number = torch.arange(self._arrived, self._arrived + n)
        self._arrived += n
        shopper = number[:, None].float().expand(n, self.builder.shopper.width).clone()
        candidates = torch.arange(6).expand(n, 6).clone()
        context = Context(shopper, candidates, candidates > 1, torch.zeros(n, 6))
        return Shoppers(context, number, {"seen": torch.zeros(n)})

    def respond(
        self, shoppers: Shoppers, decision: Decision[torch.Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[torch.Tensor]]:
        """Answer a page: the first slot is clicked on, everybody leaves."""
        clicked = torch.zeros(decision.slate.shape)
        clicked[:, 0] = 1.0
        gone = self._gone(shoppers.member).bool()
        days = torch.full(gone.shape, self._days).masked_fill(gone, torch.inf)
        after = replace(shoppers, state={"seen": shoppers.state["seen"] + 1})
        return after, Outcome(clicked, clicked / 2, gone, leave=torch.ones_like(gone), days=days)


@pytest.fixture
def world() -> PlantedWorld:
    """The small shop: 20 items, three slots."""
    return small_world()


@pytest.fixture
def staying(world: PlantedWorld) -> StayingWorld:
    """The small shop, in which every second shopper stays."""
    return StayingWorld(world)


@pytest.fixture
def calendar() -> type[CalendarWorld]:
    """Makes worlds in which visits have one page and begin on known days."""
    return CalendarWorld


class SpoiltWorld:
    """The small shop with contexts or outcomes changed by hand."""

    def __init__(self, arrive: Callable[[Context], Context], respond: Callable[[Outcome], Outcome]) -> None:
        self._world = world = small_world()
        self.builder, self.size, self.device, self.choices = world.builder, world.size, world.device, world.choices
        self.offers, self.lines, self.bids = 3, ("line",), torch.ones(len(world.builder.catalog))
        self._arrive, self._respond = arrive, respond

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers."""
        here = self._world.arrive(n, generator)
        return replace(here, context=self._arrive(here.context))

    def respond(
        self, shoppers: Shoppers, decision: Decision[torch.Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[torch.Tensor]]:
        """Answer a page."""
        after, outcome = self._world.respond(shoppers, decision, generator)
        return after, self._respond(outcome)


@pytest.fixture
def closed() -> SpoiltWorld:
    """The small shop with everything out of stock."""
    return SpoiltWorld(lambda context: replace(context, mask=torch.zeros_like(context.mask)), lambda outcome: outcome)


@pytest.fixture
def broken() -> Callable[[float], SpoiltWorld]:
    """Makes small shops whose click probabilities are all the same, given number."""
    return lambda value: SpoiltWorld(
        lambda context: context,
        lambda outcome: replace(outcome, click_probability=torch.full_like(outcome.click_probability, value)),
    )
