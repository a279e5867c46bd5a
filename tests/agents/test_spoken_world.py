"""A world that says the bank's lines: the one that a strategist meets, for pages that choose everything else."""

import dataclasses

import pytest
import torch

from hawker.agents.page_world import read
from hawker.agents.spoken_world import SpokenWorld
from hawker.envs.page import Parts, Rules
from hawker.envs.storefront import Storefront
from hawker.policies.strategist import BankTable, audience_of
from hawker.shop.audiences import Audiences
from hawker.shop.decision import Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.store import load_shoppers

CPU = torch.device("cpu")
SAID = ("A line for whoever is new", "A line for all others")
AUDIENCES = Audiences(())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world(remembering) -> SpokenWorld:
    """One line for new shoppers, another for everybody else, whatever the item; a third one under every offer."""
    shoppers = load_shoppers(remembering / "run" / "shoppers", CPU).with_lines(SAID)
    reading = read(shoppers, shoppers.world("train", True), RewardSpec(conversion=5.0))
    first, items, tiers = len(shoppers.lines) - 2, len(shoppers.builder.catalog), reading.offers
    key = torch.zeros(len(AUDIENCES.labels), items, tiers, dtype=torch.int64) + 1
    key[0] = 0
    key[:, :, 1:] = 2
    number = torch.tensor([[first], [first + 1], [0]])
    table = BankTable(key.reshape(-1), torch.full((3, 1), 2.0), number, torch.zeros(3, 1), items, tiers)
    return SpokenWorld(AudienceWorld(reading, AUDIENCES), table, shoppers.support)


def pages(context, size: int, tiers: int, seed: int) -> Decision[torch.Tensor]:
    generator = seeded(seed)
    score = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0)
    slate = context.candidates.gather(1, score.topk(size, 1).indices)
    return Decision(slate, torch.zeros(len(slate)), offer=torch.randint(0, tiers, (len(slate),), generator=generator))


def test_it_answers_as_if_the_strategy_had_said_the_lines(world):
    """Line by line: by whom somebody is, and by what they are offered."""
    inner, first = world.world, len(world.world.lines) - 2
    here, there, draws = world.arrive(150, seeded(1)), inner.arrive(150, seeded(1)), [seeded(2), seeded(2)]
    met = set()
    for page in range(6):
        decision = pages(here.context, world.size, world.offers, page)
        new = there.context.shopper[:, -1] == 0
        met |= set(new.tolist())
        lines = torch.where(new, first, first + 1).masked_fill(decision.offer > 0, 0)
        torch.rand(decision.slate.shape, generator=draws[1])  # what the bank draws
        said = dataclasses.replace(decision, copy=lines[:, None].expand_as(decision.slate))
        here, one = world.respond(here, decision, draws[0])
        there, other = inner.respond(there, said, draws[1])
        for name in ("clicked", "click_probability", "converted", "days"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.second.click_probability, other.second.click_probability)
        assert (one.unsupported <= other.unsupported).all()  # whose lines no log has shown
        assert torch.equal(one.unsupported, inner.world.world.support.missing(decision))
        assert (one.unsupported < world.size).any()
        assert torch.equal(here.context.shopper, there.context.shopper[:, :-1])
        assert torch.equal(here.context.affinity, there.context.affinity)
    assert met == {True, False}


def test_its_contexts_are_those_that_pages_are_decided_by(world):
    reading, here = world.world.world, world.arrive(130, seeded(3))
    assert world.builder is reading.builder
    assert here.context.shopper.shape[1] == reading.builder.shopper.width
    assert torch.equal(here.context.shopper, audience_of(world.world.arrive(130, seeded(3)).context)[0].shopper)
    assert world.lines == ()
    assert here.placed


def test_pages_are_learned_in_it(world):
    """By the storefront: everything but copy is chosen, and who arrives anew is spoken to as new."""
    shop = Storefront(
        world, 64, RewardSpec(conversion=5.0, support=0.1), Parts(ad=True, offer=True), Rules(horizon=3.0)
    )
    shop.reset(4)
    assert shop.layout.page.lines is None
    generator = seeded(5)
    for _ in range(12):
        values = torch.tensor(shop.layout.values)
        step = shop.step((torch.rand(64, len(values), generator=generator) * values).long())
        ended = step.terminated | step.truncated
        assert (shop.shoppers.state["spoken.audience"][ended] == 0).all()
        assert torch.isfinite(step.reward).all()
        assert shop.shown[1].copy is None
    assert (shop.shoppers.state["spoken.audience"] > 0).any()
