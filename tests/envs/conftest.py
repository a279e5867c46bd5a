"""Worlds and guards that the tests of the environments share."""

from dataclasses import replace

import pytest
import torch

from hawker.shop.decision import Decision, Outcome
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers


class StayingWorld:
    """The small shop, but every second shopper of a batch stays for another page and remembers how many they saw."""

    def __init__(self, world: PlantedWorld) -> None:
        self.builder, self.size, self.device, self._world = world.builder, world.size, world.device, world
        self.choices = world.choices

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


@pytest.fixture
def world() -> PlantedWorld:
    """The small shop: 20 items, three slots."""
    return small_world()


@pytest.fixture
def staying(world: PlantedWorld) -> StayingWorld:
    """The small shop, in which every second shopper stays."""
    return StayingWorld(world)
