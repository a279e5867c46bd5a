"""What is particular to a world of learned shoppers; test_world.py holds what all worlds promise."""

import dataclasses

import pytest
import torch

from hawker.simulators.learned import LearnedWorld


@pytest.fixture
def world(shoppers) -> LearnedWorld:
    return shoppers.world("train")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_shopper_answers_from_their_own_member(world):
    batch = world.arrive(40, seeded(0))
    slate = torch.arange(3).expand(40, 3)
    everyone = world.click_probabilities(batch.context, slate)
    own = world.respond(batch, slate, seeded(1)).click_probability
    assert everyone.shape == (2, 40, 3)
    for i in range(40):
        torch.testing.assert_close(own[i], everyone[batch.member[i], i])
    assert not torch.isclose(everyone[0], everyone[1]).all()


@pytest.mark.parametrize("n", [2, 3, 101])
def test_members_are_dealt_out_evenly_from_a_random_start(world, n):
    counts = torch.bincount(world.arrive(n, seeded(0)).member, minlength=2)
    assert counts.max() - counts.min() <= 1
    assert {int(world.arrive(1, seeded(seed)).member) for seed in range(10)} == {0, 1}


def test_arrivals_are_the_shoppers_of_the_log(world, shoppers):
    known = {tuple(row) for row in shoppers.builder.from_impressions(shoppers.read_part("train")).shopper.tolist()}
    arrived = {tuple(row) for row in world.arrive(2000, seeded(0)).context.shopper.tolist()}
    assert arrived <= known
    assert len(arrived) > 0.8 * len(known)


def test_affinity_follows_its_item_through_the_candidate_list(world):
    context = world.arrive(6, seeded(0)).context
    context = dataclasses.replace(context, affinity=torch.rand(context.affinity.shape, generator=seeded(1)))
    slate = torch.tensor([[4, 0, 7]]).expand(6, 3)
    expected = world.ensemble(context.shopper, slate, context.affinity[:, [4, 0, 7]])
    torch.testing.assert_close(world.click_probabilities(context, slate), expected)
    few = torch.tensor([7, 4, 0, 11])
    shortened = dataclasses.replace(
        context, candidates=few.expand(6, 4), mask=context.mask[:, few], affinity=context.affinity[:, few]
    )
    torch.testing.assert_close(world.click_probabilities(shortened, slate), expected)


def test_nothing_in_it_learns_any_more(world):
    assert not any(parameter.requires_grad for parameter in world.ensemble.parameters())
    assert not world.ensemble.training
