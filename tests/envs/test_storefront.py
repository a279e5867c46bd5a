"""The storefront's own arithmetic: which picks are shown, what they earn, who comes next."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import hawker.envs  # noqa: F401  # registers the environments
from hawker.envs.storefront import RecommendEnv, RecommendVectorEnv, Storefront, first_picks
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.world import Shoppers


@pytest.mark.parametrize(
    ("picks", "shown"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 2, 1], [2, EMPTY, 1]),
        ([1, 1, 1], [1, EMPTY, EMPTY]),
        ([3, 0, 3], [EMPTY, 0, EMPTY]),  # 3 is not eligible
        ([4, 0, 1], [EMPTY, 0, 1]),  # there is no 4
        ([-1, 0, -7], [EMPTY, 0, EMPTY]),
        ([0, -1, 0], [0, EMPTY, EMPTY]),
        ([9, 0, 1], [EMPTY, 0, 1]),  # what is out of range takes no place from 0
    ],
)
def test_first_picks(picks, shown):
    mask = torch.tensor([[True, True, True, False]])
    assert first_picks(torch.tensor([picks]), mask).tolist() == [shown]


def test_picks_are_judged_page_by_page():
    mask = torch.tensor([[True, False], [False, True]])
    assert first_picks(torch.tensor([[0, 1], [0, 1]]), mask).tolist() == [[0, EMPTY], [EMPTY, 1]]


class Recorder:
    """A world that keeps the slates it was shown."""

    def __init__(self, world):
        self.builder, self.size, self.device, self._world = world.builder, world.size, world.device, world
        self.choices = world.choices
        self.shown = []

    def arrive(self, n, generator):
        """Return n shoppers who may see only the first five items, listed backwards."""
        shoppers = self._world.arrive(n, generator)
        context = shoppers.context.map(lambda array: array.flip(1) if array.shape[1] == 20 else array)
        mask = context.candidates < 5
        return Shoppers(Context(context.shopper, context.candidates, mask, context.affinity), shoppers.member)

    def respond(self, shoppers, decision, generator):
        """Answer a page."""
        assert decision.log_prob.shape == decision.slate.shape[:1]
        self.shown.append(decision.slate.tolist())
        return self._world.respond(shoppers, decision, generator)


def test_picks_are_places_in_the_candidate_list(world):
    recorder = Recorder(world)
    env = RecommendVectorEnv(2, recorder)
    env.reset(seed=0)
    info = env.step(np.array([[19, 17, 15], [15, 15, 3]]))[4]
    assert recorder.shown == [[[0, 2, 4], [4, EMPTY, EMPTY]]]
    assert info["empty_slots"].tolist() == [0, 2]


def test_no_random_action_ever_shows_an_item_twice(world):
    recorder = Recorder(world)
    env = RecommendVectorEnv(500, recorder)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        info = env.step(env.action_space.sample())[4]
        for slate, empty in zip(recorder.shown[-1], info["empty_slots"], strict=True):
            items = [item for item in slate if item != EMPTY]
            assert len(set(items)) == len(items) == 3 - empty
            assert all(item < 5 for item in items)


@pytest.mark.parametrize("response", ["expected", "sampled"])
def test_reward_is_the_weighted_sum_of_clicks(world, response):
    env = RecommendVectorEnv(300, world, RewardSpec(click=2.5, response=response))
    env.reset(seed=0)
    rows = env.storefront.shoppers.member
    slate = np.tile([3, 1, 4], (300, 1))
    _, rewards, _, _, info = env.step(slate)
    expected = world.click_probability(rows, torch.from_numpy(slate)).sum(1).numpy()
    clicks = info["clicks"] if response == "sampled" else expected
    assert rewards == pytest.approx(2.5 * clicks, rel=1e-6)
    assert info["reward_click"] == pytest.approx(rewards)
    assert info["clicks"].sum() == pytest.approx(expected.sum(), abs=4 * expected.sum() ** 0.5)


def test_a_reward_for_what_shoppers_do_not_do_is_refused(world):
    env = RecommendEnv(world, RewardSpec(conversion=1.0))
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"reward.conversion: the shoppers have no conversion head"):
        env.step(np.array([0, 1, 2]))


def test_only_who_is_gone_is_replaced(staying):
    env = RecommendVectorEnv(4, staying)
    before, _ = env.reset(seed=0)
    after, _, terminated, _, info = env.step(np.tile([0, 1, 2], (4, 1)))
    assert terminated.tolist() == info["_final_obs"].tolist() == [True, False, True, False]
    for i in (1, 3):
        assert np.array_equal(after["shopper"][i], before["shopper"][i])
        assert info["final_obs"][i] is None
    for i in (0, 2):
        assert not np.array_equal(after["shopper"][i], before["shopper"][i])
        assert np.array_equal(info["final_obs"][i]["shopper"], before["shopper"][i])
    assert env.storefront.shoppers.state["seen"].tolist() == [0, 1, 0, 1]
    env.step(np.tile([0, 1, 2], (4, 1)))
    assert env.storefront.shoppers.state["seen"].tolist() == [0, 2, 0, 2]


def test_shoppers_who_stay_are_seen_as_the_world_returns_them(staying):
    class Narrowing(type(staying)):
        def respond(self, shoppers, decision, generator):
            after, outcome = super().respond(shoppers, decision, generator)
            context = dataclasses.replace(after.context, mask=after.context.candidates > 2)
            return dataclasses.replace(after, context=context), outcome

    env = RecommendVectorEnv(4, Narrowing(staying._world))
    env.reset(seed=0)
    after = env.step(np.tile([0, 1, 2], (4, 1)))[0]
    assert after["mask"].sum(1).tolist() == [20, 17, 20, 17]


def test_a_horizon_truncates(staying):
    class Faithful(type(staying)):
        def respond(self, shoppers, decision, generator):
            after, outcome = super().respond(shoppers, decision, generator)
            outcome.gone[:] = False
            return after, outcome

    world = Faithful(staying._world)
    env = gym.make("hawker/Recommend-v0", world=world, max_episode_steps=3)
    observation, _ = env.reset(seed=0)
    endings = []
    for _ in range(3):
        following, _, terminated, truncated, _ = env.step(np.array([0, 1, 2]))
        endings.append((terminated, truncated))
        assert np.array_equal(following["shopper"], observation["shopper"])
    assert endings == [(False, False), (False, False), (False, True)]


def test_render_names_features_candidates_and_affinities(world):
    env = gym.make("hawker/Recommend-v0", world=world, render_mode="ansi")
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        if observation["affinity"][0]:
            break
    shopper, candidates, affinity = env.render().splitlines()
    age = observation["shopper"][world.builder.shopper.numeric.index("age")]
    assert f"age {age:.3g}" in shopper
    assert "segment=" in shopper
    assert candidates == "candidates: 20 of 20 items"
    assert affinity == "affinity with: item-0"


@pytest.mark.parametrize("n", [0, -1])
def test_a_storefront_without_shoppers_is_refused(world, n):
    with pytest.raises(InputError, match=f"num_envs: no shoppers; got {n}, expected at least 1"):
        Storefront(world, n, RewardSpec())
