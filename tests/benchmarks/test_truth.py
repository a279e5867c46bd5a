"""The gold world with nothing hidden: the same world, told more."""

import torch

from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.truth import TruthWorld
from hawker.shop.decision import Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld


def test_telling_changes_nothing_that_happens(bazaar: BazaarWorld):
    told = TruthWorld(bazaar, RewardSpec(conversion=5.0), bazaar.lines)
    strategy = logging_strategy(bazaar, "popularity")
    bare, seen = (world.arrive(50, torch.Generator().manual_seed(1)) for world in (bazaar, told))
    draws = [torch.Generator().manual_seed(2) for _ in range(2)]
    for page in range(4):
        assert seen.context.shopper.shape[1] == told.builder.shopper.width
        assert torch.equal(bare.context.candidates, seen.context.candidates)
        decision = strategy.propose(bare.context, torch.Generator().manual_seed(page))
        bare, one = bazaar.respond(bare, decision, draws[0])
        seen, other = told.respond(seen, decision, draws[1])
        assert torch.equal(one.clicked, other.clicked)
        assert all(torch.equal(bare.state[name], seen.state[name]) for name in bare.state)


def test_what_is_told(bazaar: BazaarWorld):
    told, p = TruthWorld(bazaar, RewardSpec(conversion=5.0), bazaar.lines), bazaar.parameters
    here = told.arrive(200, torch.Generator().manual_seed(1))
    numbers = len(bazaar.builder.shopper.numeric)
    truth = here.context.shopper[:, numbers:]
    segments = len(p.segments)
    assert torch.equal(truth[:, :segments].argmax(1), here.state["segment"])
    assert torch.equal(truth[:, segments : segments + len(p.visit_classes)].argmax(1), here.state["visit_class"])
    place = 7
    page = Decision(here.context.candidates[:, place : place + 1], torch.zeros(200))
    click, bought = bazaar.attraction(here.state, page), bazaar.conversion_probabilities(here.state, page)
    expected = (click * (1 + 5 * bought)).log().squeeze(1)
    torch.testing.assert_close(here.context.affinity[:, place], expected)


def test_effects_of_the_best_candidate(bazaar: BazaarWorld):
    few = (bazaar.lines[5], bazaar.lines[2], bazaar.lines[0])
    told = TruthWorld(bazaar, RewardSpec(conversion=5.0), few)
    here = told.arrive(200, torch.Generator().manual_seed(1))
    names = told.builder.shopper.numeric
    best = here.context.candidates.gather(1, here.context.affinity.argmax(1, keepdim=True))

    def worth(tier: int, line: int) -> torch.Tensor:
        offer, copy = torch.full((200,), tier), torch.full((200, 1), line)
        page = Decision(best, torch.zeros(200), offer=offer, copy=copy)
        click, bought = bazaar.attraction(here.state, page), bazaar.conversion_probabilities(here.state, page)
        return (click * (1 + 5 * bought)).log().squeeze(1)

    lines = [f"effect.line.{i}" for i in range(3)]
    assert [name for name in names if name.startswith("effect.line.")] == lines
    for name, tier, line in ((lines[0], 0, 5), (lines[1], 0, 2), (lines[2], 0, 0), ("effect.offer.1", 1, -1)):
        got = here.context.shopper[:, names.index(name)]
        torch.testing.assert_close(got, worth(tier, line) - worth(0, -1), atol=1e-5, rtol=1e-4)
        assert got.std() > 0, name
    assert not here.context.shopper[:, names.index("effect.offer.0")].any()


def test_a_bank_of_fewer_lines_in_another_order(bazaar: BazaarWorld):
    few = (bazaar.lines[5], bazaar.lines[2])
    told, here = TruthWorld(bazaar, RewardSpec(), few), bazaar.arrive(40, torch.Generator().manual_seed(1))
    seen = told.arrive(40, torch.Generator().manual_seed(1))
    slate, line = here.context.candidates[:, :8], torch.tensor([[1, -1, 0, 1, 1, 0, -1, 0]]).expand(40, 8)
    own = Decision(slate, torch.zeros(40), copy=torch.tensor([[2, -1, 5, 2, 2, 5, -1, 5]]).expand(40, 8))
    _, expected = bazaar.respond(here, own, torch.Generator().manual_seed(2))
    _, got = told.respond(seen, Decision(slate, torch.zeros(40), copy=line), torch.Generator().manual_seed(2))
    assert torch.equal(got.click_probability, expected.click_probability)
