"""PPO broken off and resumed ends as an unbroken run does, bit for bit."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hawker.agents import checkpoint
from hawker.agents.checkpoint import load_checkpoint, save_checkpoint
from hawker.agents.config import Constraints, PageTrainConfig
from hawker.agents.page_ppo import page_ppo
from hawker.envs.page import STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.shop.artefacts import read_json, write_directory, write_json
from hawker.shop.decision import Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world

CONFIG = PageTrainConfig(shoppers=16, pages=4, batch=32, hidden=8, constraints=Constraints(ad_load=0.1))
MADE_BY = {"config": {"learning_rate": 0.003, "reward": {"click": 1.0}}, "shoppers": "abc"}


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


def state_of(model) -> dict[str, object]:
    """Return everything that the rest of a training depends on."""
    policy, moments = model.policy, model.policy.optimizer.state_dict()["state"]
    return {
        **policy.state_dict(),
        **{f"{i}.{name}": value for i, values in moments.items() for name, value in values.items()},
        **{f"next.{name}": torch.as_tensor(value) for name, value in model._last_obs.items()},
        **{f"shop.{name}": value for name, value in model.env.storefront.tensors().items()},
        "policy": policy.generator.get_state(),
        "order": model.rollout_buffer.generator.get_state(),
        "counts": (model.num_timesteps, model._n_updates),
    }


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.fixture
def saved(tmp_path):
    """A model after two rollouts, and its checkpoint."""
    model = fresh().learn(2 * 64)
    save_checkpoint(tmp_path / "checkpoint", model, MADE_BY)
    return model, tmp_path / "checkpoint"


@pytest.mark.usefixtures("nothing_global")
def test_what_is_read_back_goes_on_as_if_nothing_had_happened(saved):
    model, path = saved
    resumed = fresh()
    load_checkpoint(path, resumed, MADE_BY)
    before = state_of(model)
    assert same(state_of(resumed), before)
    assert before["shop.here.state.seen"].max() > 1
    assert before["prices.multipliers"] > 0
    unbroken = fresh().learn(5 * 64)
    resumed.learn(3 * 64, reset_num_timesteps=False)
    assert resumed.num_timesteps == 5 * 64
    assert same(state_of(resumed), state_of(unbroken))
    assert not same(state_of(resumed), before)


@pytest.mark.parametrize(
    ("made_by", "message"),
    [
        (
            {**MADE_BY, "config": {"learning_rate": 0.01, "reward": {"click": 1.0}}},
            "made with another value of config.learning_rate; got 0.003, expected 0.01; train without --resume",
        ),
        (
            {**MADE_BY, "config": {"learning_rate": 0.003, "reward": {"click": 2.0}}},
            "made with another value of config.reward.click; got 1.0, expected 2.0",
        ),
        ({**MADE_BY, "shoppers": "xyz"}, "made with another value of shoppers; got 'abc', expected 'xyz'"),
        ({**MADE_BY, "novelty": 1}, "not a checkpoint of this version; got \"'novelty'\""),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, made_by, message):
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved[1], fresh(), made_by)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_refused(saved, name):
    file = saved[1] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="the file was changed after it was written"):
        load_checkpoint(saved[1], fresh(), MADE_BY)
    file.unlink()
    with pytest.raises(InputError, match="a file is missing"):
        load_checkpoint(saved[1], fresh(), MADE_BY)


def without_tensor(tensors, state):
    del tensors["shop.here.member"]


def wider(tensors, state):
    tensors["policy.actor.slate.own_key"] = torch.zeros(20, 99)


def without_order(tensors, state):
    del tensors["generator.order"]


def without_counts(tensors, state):
    del state["num_timesteps"]


def of_another_device(tensors, state):
    tensors["generator.policy"] = torch.zeros(16, dtype=torch.uint8)


@pytest.mark.parametrize("change", [without_tensor, wider, without_order, without_counts, of_another_device])
def test_a_checkpoint_of_another_version_is_refused(saved, tmp_path, change):
    """The checksums are right, so that only the content can tell."""
    with write_directory(tmp_path / "other", "checkpoint") as scratch:
        tensors, state = load_file(saved[1] / "state.safetensors"), read_json(saved[1] / "state.json")
        change(tensors, state)
        save_file(tensors, scratch / "state.safetensors")
        write_json(scratch / "state.json", state)
    with pytest.raises(InputError, match="not a checkpoint of this version") as caught:
        load_checkpoint(tmp_path / "other", fresh(), MADE_BY)
    assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_the_previous_checkpoint(saved, monkeypatch):
    model, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    model.learn(64, reset_num_timesteps=False)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, model, MADE_BY)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint"]
    save_checkpoint(path, model, MADE_BY)
    assert read_json(path / "state.json")["num_timesteps"] == 3 * 64


def test_no_checkpoint_at_all(saved):
    shutil.rmtree(saved[1])
    with pytest.raises(InputError, match="no checkpoint here"):
        load_checkpoint(saved[1], fresh(), MADE_BY)
