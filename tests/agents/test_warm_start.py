"""Behaviour cloning: what a teacher does for sure becomes the likeliest page."""

import dataclasses

import numpy as np
import pytest
import torch

from hawker.agents import warm_start
from hawker.agents.config import PageTrainConfig
from hawker.agents.page_ppo import page_ppo
from hawker.agents.warm_start import imitate
from hawker.envs.page import STOREFRONT
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page_actor import PageStrategy
from hawker.policies.protocol import Strategy
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec

CONFIG = PageTrainConfig(shoppers=128, pages=4, batch=128, hidden=16)


class Teacher(Strategy):
    """Shows older shoppers item 0, younger ones item 1, below it item 4 as an ad or item 2; an offer, one line."""

    name, size = "teacher", 2

    def __init__(self, world, ads=True):
        self._world, self._ads = world, ads

    def distribution(self, context):
        """Not used: the teacher's pages are whole."""
        raise NotImplementedError

    def propose(self, context, generator):
        """Return the pages."""
        first = torch.where(self._world.older(context), 0, 1)
        slate = torch.stack([first, torch.full_like(first, 4 if self._ads else 2)], 1)
        one = torch.ones_like(first)
        ad = one if self._ads else None
        return Decision(slate, torch.zeros(len(first)), ad, one, torch.full_like(slate, 2))


@pytest.fixture
def taught(tiny_shop):
    """Return a function that teaches a fresh model: the model and what ``imitate`` returned."""

    def teach(seed=0, ads=True):
        world = tiny_shop()
        env = StorefrontVecEnv(world, CONFIG.shoppers, RewardSpec(ad_income=1.0), CONFIG.seed, parts=STOREFRONT)
        model = page_ppo(env, CONFIG, np.eye(3, dtype=np.float32))
        return model, imitate(model, Teacher(world, ads), seed)

    return teach


def pages_of(model):
    """Return contexts, the teacher's world, and the strategy that was taught."""
    world = model.env.storefront.world
    context = world.arrive(500, torch.Generator().manual_seed(5)).context
    return world, context, PageStrategy(model.policy.actor, world.builder, world.lines, {})


@pytest.mark.parametrize("ads", [True, False])
def test_the_teachers_pages_become_the_likeliest(taught, ads):
    model, loss = taught(ads=ads)
    world, context, strategy = pages_of(model)
    page, expected = strategy.pages(context).mode(), Teacher(world, ads).propose(context, None)
    assert (page.slate == expected.slate).all(1).float().mean() > 0.95
    assert (page.slot == (1 if ads else EMPTY)).all(), "a teacher without ads teaches none"
    assert (page.ad == (4 if ads else EMPTY)).all()
    assert (page.offer == 1).all()
    assert (page.lines == 2).all()
    drawn = strategy.propose(context, torch.Generator().manual_seed(6))
    assert (drawn.slate == expected.slate).all(1).float().mean() > 0.8, "not the likeliest by a hair"
    assert loss < 1.0


@pytest.mark.usefixtures("nothing_global")
def test_a_seed_decides_what_is_learned(taught):
    def weights(model):
        return torch.cat([value.detach().flatten() for value in model.policy.actor.parameters()])

    (one, loss), (two, same), (other, _) = (taught(seed) for seed in (3, 3, 4))
    assert torch.equal(weights(one), weights(two))
    assert loss == same
    assert not torch.equal(weights(one), weights(other))


def test_the_likelihood_rises_from_epoch_to_epoch(taught, monkeypatch):
    losses = []
    for epochs in (1, 3):
        monkeypatch.setattr(warm_start, "EPOCHS", epochs)
        losses.append(taught()[1])
    assert losses[1] < losses[0] - 0.1


def test_ppo_begins_where_imitation_ended(taught, tiny_shop):
    """The first rollout is drawn from the teacher's pages, and the critic has learned nothing yet."""
    model, _ = taught()
    critic = [value.clone() for value in model.policy.critic.parameters()]
    assert not model.policy.optimizer.state, "PPO's optimiser has not moved"
    world = tiny_shop()
    env = StorefrontVecEnv(world, CONFIG.shoppers, RewardSpec(ad_income=1.0), CONFIG.seed, parts=STOREFRONT)
    untaught = page_ppo(env, dataclasses.replace(CONFIG, learning_rate=0.0), np.eye(3, dtype=np.float32))
    assert all(torch.equal(a, b) for a, b in zip(critic, untaught.policy.critic.parameters(), strict=True))
    earned = []
    for learner in (model, untaught):
        learner.learn(512)
        earned.append(float(learner.rollout_buffer.rewards.mean()))
    # Item, ad, its bid, what the line adds to both; pages drawn at random earn about half of it.
    assert earned[0] == pytest.approx(0.53 + 0.23 * (1 + 2), rel=0.1)
    assert earned[1] < 0.6 * earned[0]
