"""Training that is resumed ends as training that was never broken off, bit for bit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hawker.agents import checkpoint
from hawker.agents.checkpoint import load_checkpoint, save_checkpoint
from hawker.agents.train import make_ppo
from hawker.shop.artefacts import read_json, write_directory, write_json
from hawker.shop.errors import InputError

MADE_BY = {"config": {"learning_rate": 0.003, "reward": {"click": 1.0}}, "shoppers": "abc"}


def state_of(model) -> dict[str, object]:
    """Return everything that the rest of a training depends on."""
    policy, storefront = model.policy, model.env.storefront
    moments = policy.optimizer.state_dict()["state"]
    return {
        **policy.state_dict(),
        **{f"{i}.{name}": value for i, values in moments.items() for name, value in values.items()},
        **{f"next.{name}": torch.as_tensor(value) for name, value in model._last_obs.items()},
        "member": storefront.shoppers.member,
        **{f"state.{name}": value for name, value in storefront.shoppers.state.items()},
        "starts": torch.as_tensor(model._last_episode_starts),
        "env": storefront.generator.get_state(),
        "policy": policy.generator.get_state(),
        "order": model.rollout_buffer.generator.bit_generator.state,
        "counts": (model.num_timesteps, model._n_updates),
    }


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.fixture
def saved(staying, tiny, tmp_path):
    """A model after two rollouts, and its checkpoint."""
    model = make_ppo(staying, tiny, scale=5.0).learn(256)
    save_checkpoint(tmp_path / "checkpoint", model, MADE_BY)
    return model, tmp_path / "checkpoint"


def test_what_is_read_back_goes_on_as_if_nothing_had_happened(saved, staying, tiny):
    model, path = saved
    resumed = make_ppo(staying, tiny, scale=5.0)
    load_checkpoint(path, resumed, MADE_BY)
    assert same(state_of(resumed), state_of(model))
    assert state_of(resumed)["state.seen"].max() > 1
    unbroken = make_ppo(staying, tiny, scale=5.0).learn(512)
    resumed.learn(256, reset_num_timesteps=False)
    assert resumed.num_timesteps == 512
    assert same(state_of(resumed), state_of(unbroken))
    assert not same(state_of(resumed), state_of(model))


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
def test_a_checkpoint_of_something_else_is_refused(saved, staying, tiny, made_by, message):
    with pytest.raises(InputError) as caught:
        load_checkpoint(saved[1], make_ppo(staying, tiny, scale=5.0), made_by)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_refused(saved, staying, tiny, name):
    file = saved[1] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="the file was changed after it was written"):
        load_checkpoint(saved[1], make_ppo(staying, tiny, scale=5.0), MADE_BY)
    file.unlink()
    with pytest.raises(InputError, match="a file is missing"):
        load_checkpoint(saved[1], make_ppo(staying, tiny, scale=5.0), MADE_BY)


def without_tensor(tensors, state):
    del tensors["shop.here.member"]


def wider(tensors, state):
    tensors["policy.actor.own_key"] = torch.zeros(20, 99)


def without_moments(tensors, state):
    del tensors["optimizer.0.exp_avg"], state["order"]


def of_another_generator(tensors, state):
    state["order"]["bit_generator"] = "MT19937"


def of_another_device(tensors, state):
    tensors["generator.policy"] = torch.zeros(16, dtype=torch.uint8)


@pytest.mark.parametrize("change", [without_tensor, wider, without_moments, of_another_generator, of_another_device])
def test_a_checkpoint_of_another_version_is_refused(saved, staying, tiny, tmp_path, change):
    """The checksums are right, so that only the content can tell."""
    with write_directory(tmp_path / "other", "checkpoint") as scratch:
        tensors, state = load_file(saved[1] / "state.safetensors"), read_json(saved[1] / "state.json")
        change(tensors, state)
        save_file(tensors, scratch / "state.safetensors")
        write_json(scratch / "state.json", state)
    with pytest.raises(InputError, match="not a checkpoint of this version") as caught:
        load_checkpoint(tmp_path / "other", make_ppo(staying, tiny, scale=5.0), MADE_BY)
    assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_the_previous_checkpoint(saved, staying, tiny, monkeypatch):
    model, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    model.learn(256, reset_num_timesteps=False)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, model, MADE_BY)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint"]
    save_checkpoint(path, model, MADE_BY)
    assert read_json(path / "state.json")["num_timesteps"] == 512


def test_no_checkpoint_at_all(staying, tiny, saved):
    shutil.rmtree(saved[1])
    with pytest.raises(InputError, match="no checkpoint here"):
        load_checkpoint(saved[1], make_ppo(staying, tiny, scale=5.0), MADE_BY)
