"""Worlds and guards that the tests of the environments share."""

import pytest
import torch

from hawker.shop.decision import Outcome
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers


class StayingWorld:
    """The small shop, but every second shopper of a batch stays for another page."""

    def __init__(self, world: PlantedWorld) -> None:
        self.builder, self.size, self.device, self._world = world.builder, world.size, world.device, world

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n shoppers."""
        return self._world.arrive(n, generator)

    def respond(self, shoppers: Shoppers, slate: torch.Tensor, generator: torch.Generator) -> Outcome[torch.Tensor]:
        """Answer a page."""
        outcome = self._world.respond(shoppers, slate, generator)
        gone = torch.arange(len(slate)) % 2 == 0
        return Outcome(outcome.clicked, outcome.click_probability, gone)


@pytest.fixture
def world() -> PlantedWorld:
    """The small shop: 20 items, three slots."""
    return small_world()


@pytest.fixture
def staying(world: PlantedWorld) -> StayingWorld:
    """The small shop, in which every second shopper stays."""
    return StayingWorld(world)
