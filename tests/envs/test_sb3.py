"""The storefront under stable-baselines3's contract of a ``VecEnv``."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from hawker.envs.environments import RecommendVectorEnv
from hawker.envs.page import AD_PLACEMENT, COPYWRITING, STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec

SLATE = np.tile([5, 1, 9], (6, 1))


def make(world, seed: int = 0) -> StorefrontVecEnv:
    return StorefrontVecEnv(world, 6, RewardSpec(), seed)


def test_steps_have_the_form_that_stable_baselines3_wants(world):
    env = make(world)
    assert isinstance(env, VecEnv)
    observation = env.reset()
    for _ in range(3):
        assert observation.keys() == env.observation_space.spaces.keys()
        for name, space in env.observation_space.items():
            assert observation[name].shape == (6, *space.shape)
            assert observation[name].dtype == space.dtype
            assert all(space.contains(row) for row in observation[name])
        observation, rewards, dones, infos = env.step(SLATE)
        assert (rewards.shape, rewards.dtype) == ((6,), np.float32)
        assert (dones.shape, dones.dtype) == ((6,), bool)
        assert infos == [{}] * 6


def test_it_is_the_vector_environment_of_gymnasium(world):
    ours, theirs = make(world, seed=8), RecommendVectorEnv(6, world)
    first, (other, _) = ours.reset(), theirs.reset(seed=8)
    for _ in range(3):
        assert all(np.array_equal(first[name], other[name]) for name in first)
        first, rewards, dones, _ = ours.step(SLATE)
        other, their_rewards, terminated, _, info = theirs.step(SLATE)
        assert rewards == pytest.approx(their_rewards)
        assert np.array_equal(dones, terminated)
        for name, values in ours.happened.items():
            assert np.array_equal(values.numpy(), info[name])


@pytest.mark.usefixtures("nothing_global")
def test_seeds(world):
    one, two, other = make(world, 1), make(world, 1), make(world, 2)
    first = one.reset()["shopper"]
    assert np.array_equal(first, two.reset()["shopper"])
    assert not np.array_equal(first, other.reset()["shopper"])
    second = one.reset()["shopper"]
    assert not np.array_equal(second, first), "a later reset goes on"
    assert np.array_equal(second, two.reset()["shopper"])
    assert other.seed(1) == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(other.reset()["shopper"], first)
    assert np.array_equal(other.reset()["shopper"], second), "a seed counts once"


def test_one_shoppers_attributes_are_not_to_be_touched(world):
    env = make(world)
    assert env.get_attr("num_envs", indices=[0, 3]) == [6, 6]
    assert env.env_is_wrapped(VecMonitor) == [False] * 6
    with pytest.raises(InputError, match="colour: attributes of a single shopper cannot be set"):
        env.set_attr("colour", "red")
    with pytest.raises(InputError, match="dance: methods of a single shopper cannot be called"):
        env.env_method("dance")


@pytest.mark.parametrize("actions", [SLATE[:, :1], SLATE[:5], SLATE * 1.0, SLATE[0]])
def test_actions_of_another_form_are_refused(world, actions):
    env = make(world)
    env.reset()
    with pytest.raises(InputError, match=r"step: bad action; .* expected integers of shape \(6, 3\)"):
        env.step(actions)


def test_who_stays_is_seen_again(staying):
    env = make(staying)
    before = env.reset()["shopper"]
    after, _, dones, _ = env.step(SLATE)
    assert dones.tolist() == [True, False] * 3
    assert [np.array_equal(*pair) for pair in zip(after["shopper"], before, strict=True)] == [False, True] * 3


def test_its_wrappers_and_its_ppo_take_it(world):
    env = VecMonitor(make(world))
    env.reset()
    _, rewards, _, infos = env.step(SLATE)
    assert [info["episode"]["r"] for info in infos] == pytest.approx(rewards.tolist(), abs=1e-5)
    with torch.random.fork_rng():
        model = PPO("MultiInputPolicy", env, n_steps=2, batch_size=6, n_epochs=1, device="cpu").learn(12)
    assert model.num_timesteps == 12


def test_who_is_cut_off_at_the_horizon_leaves_the_page_they_would_have_seen(calendar):
    world = calendar(days=3.0, gone=lambda number: number == 1)
    env = StorefrontVecEnv(world, 3, RewardSpec(), 0, parts=STOREFRONT, rules=Rules(horizon=4.0))
    first = env.reset()
    assert set(env.observation_space.spaces) == {*first} >= {"page", "gap", "ad_mask"}
    pages = np.array([[2, 3, 4, 6, 0, 1, 2, 2, 0]] * 3)
    _, _, dones, infos = env.step(pages)
    assert dones.tolist() == [False, True, False]
    assert infos == [{}] * 3
    after, _, dones, infos = env.step(pages)
    assert dones.tolist() == [True, False, True]
    assert [info.get("TimeLimit.truncated", False) for info in infos] == [True, False, True]
    for i in (0, 2):
        last = infos[i]["terminal_observation"]
        assert env.observation_space.contains(last)
        assert last["shopper"][0] == first["shopper"][i, 0] != after["shopper"][i, 0]
        assert last["gap"] == [3.0]
    assert after["gap"].flatten().tolist() == [0, 3, 0]


def test_a_world_whose_answer_is_no_number_is_refused(broken):
    env = StorefrontVecEnv(broken(float("nan")), 6, RewardSpec(), 0)
    env.reset()
    with pytest.raises(InputError, match="world: the reward is not a number; got nan"):
        env.step(SLATE)


@pytest.mark.parametrize("parts", [STOREFRONT, AD_PLACEMENT, COPYWRITING])
def test_ppo_takes_every_part(calendar, parts):
    env = VecMonitor(StorefrontVecEnv(calendar(), 6, RewardSpec(), 0, parts=parts, rules=Rules(horizon=7.0)))
    with torch.random.fork_rng():
        PPO("MultiInputPolicy", env, n_steps=4, batch_size=6, n_epochs=1, device="cpu").learn(24)
