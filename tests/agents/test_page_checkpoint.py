"""Page PPO broken off and resumed ends as an unbroken run does."""

import dataclasses

import numpy as np
import pytest
import torch

from hawker.agents.config import PageTrainConfig
from hawker.agents.page_checkpoint import load_page_checkpoint, save_page_checkpoint
from hawker.agents.page_ppo import page_ppo
from hawker.envs.page import STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.shop.decision import Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world

CONFIG = PageTrainConfig(shoppers=16, pages=4, batch=32, hidden=8)
MADE_BY = {"config": {"seed": 0}, "shoppers": "a"}


class ComingBack:
    """The small shop; shoppers come back after two days, but some are gone."""

    def __init__(self):
        self._world = small_world()
        self.builder, self.size, self.device = self._world.builder, self._world.size, self._world.device
        self.choices, self.offers, self.lines = self._world.choices, 2, ("a", "b")
        self.bids = torch.linspace(0, 1, len(self.builder.catalog))

    def arrive(self, n, generator):
        """Return n shoppers."""
        return dataclasses.replace(self._world.arrive(n, generator), state={"seen": torch.zeros(n)})

    def respond(self, shoppers, decision, generator):
        """Answer a page."""
        _, outcome = self._world.respond(shoppers, decision, generator)
        gone = torch.rand(len(shoppers.member), generator=generator) < 0.1
        days = torch.full(gone.shape, 2.0).masked_fill(gone, torch.inf)
        after = dataclasses.replace(shoppers, state={"seen": shoppers.state["seen"] + 1})
        leave = torch.ones_like(gone)
        return after, Outcome(outcome.clicked, outcome.click_probability, gone, leave=leave, days=days)


def fresh():
    rules = Rules(horizon=5, ad_gap=2)
    env = StorefrontVecEnv(ComingBack(), CONFIG.shoppers, RewardSpec(ad_income=0.5), 0, parts=STOREFRONT, rules=rules)
    return page_ppo(env, CONFIG, np.eye(2, dtype=np.float32))


def state(model):
    return {**model.policy.state_dict(), **model.env.storefront.tensors()}


@pytest.mark.usefixtures("nothing_global")
def test_broken_off_and_resumed_is_as_unbroken(tmp_path):
    unbroken = fresh()
    unbroken.learn(5 * 64)
    broken = fresh()
    broken.learn(2 * 64)
    save_page_checkpoint(tmp_path / "checkpoint", broken, MADE_BY)
    broken.learn(64, reset_num_timesteps=False)  # what happens after the checkpoint is lost
    resumed = fresh()
    load_page_checkpoint(tmp_path / "checkpoint", resumed, MADE_BY)
    assert resumed.num_timesteps == 128
    resumed.learn(3 * 64, reset_num_timesteps=False)
    assert resumed.num_timesteps == unbroken.num_timesteps
    one, other = state(unbroken), state(resumed)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_another_config_or_a_damaged_file_is_refused(tmp_path):
    model = fresh()
    model.learn(64)
    save_page_checkpoint(tmp_path / "checkpoint", model, MADE_BY)
    with pytest.raises(InputError, match=r"made with another value of config\.seed"):
        load_page_checkpoint(tmp_path / "checkpoint", fresh(), MADE_BY | {"config": {"seed": 1}})
    (tmp_path / "checkpoint/state.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="changed after it was written"):
        load_page_checkpoint(tmp_path / "checkpoint", fresh(), MADE_BY)
