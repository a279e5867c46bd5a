"""Pages played with it are in test_frozen.py; here, what one call returns."""

import pytest
import torch

from hawker.simulators.frozen_memory import FrozenMemory
from hawker.simulators.frozen_pages import Carried
from hawker.simulators.memory import COUNTS, TOLD, clock_of


@pytest.fixture(params=["train", "judge"])
def models(request, regulars):
    return [model.requires_grad_(False) for model in regulars[1].ensembles[request.param].models]


def test_heads_see_what_the_memory_tells(models):
    generator = torch.Generator().manual_seed(0)
    for model in models:
        memory = FrozenMemory(model)
        carried = torch.randn(50, model.memory.hidden, generator=generator)
        carried[:, -COUNTS:] = torch.randint(1, 9, (50, COUNTS), generator=generator).float()
        gap, number = carried[:, -2] / 3, torch.arange(50) % 4.0
        expected = model.memory.before(carried, clock_of(gap, number))
        brought = Carried.read(carried[:, :-COUNTS], carried[:, -COUNTS:], gap, number)
        before = memory.before(torch.zeros(50, len(model.shopper_centre)), brought)
        torch.testing.assert_close(before.told, expected[:, :TOLD], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(before.wishes, expected[:, TOLD:], atol=1e-5, rtol=1e-4)


def test_who_has_seen_no_page_begins_as_their_features_say(models):
    for model in models:
        memory, zero = FrozenMemory(model), torch.zeros(9)
        scaled = torch.randn(9, len(model.shopper_centre), generator=torch.Generator().manual_seed(1))
        start = model.memory.start(scaled)
        brought = Carried.read(torch.zeros(9, memory.hidden), torch.zeros(9, COUNTS), zero, zero)
        before = memory.before(scaled, brought)
        torch.testing.assert_close(before.memory, start[:, :-COUNTS])
        torch.testing.assert_close(before.told, model.memory.before(start, None)[:, :TOLD], atol=1e-5, rtol=1e-4)
