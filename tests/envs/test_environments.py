"""What every registered environment promises. A new one is tested as soon as it is registered."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_for_gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as check_for_stable_baselines3

import hawker.envs  # noqa: F401  # registers them
from hawker.envs.environments import RecommendEnv, finite
from hawker.envs.page import Rules
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.simulators.small import small_world

IDS = sorted(name for name in gym.registry if name.startswith("hawker/"))
HEADINGS = [
    *("Action Space", "Observation Space", "Starting State", "Rewards", "Episode End"),
    *("Information", "Arguments", "References", "Version History"),
]

every_environment = pytest.mark.parametrize("name", IDS)


def same(one: Any, other: Any) -> bool:
    """Compare observations, infos and what they hold."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and one.dtype == object:
        return len(one) == len(other) and all(map(same, one, other))
    return one is other or bool(np.array_equal(one, other))


def rollout(env: gym.Env | VectorEnv, seed: int, steps: int = 8) -> list[Any]:
    """Play seeded random actions, with a reset after every ending that the environment leaves to its user."""
    env.action_space.seed(seed)
    happened: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        happened.append(env.step(env.action_space.sample()))
        if isinstance(env, gym.Env) and (happened[-1][2] or happened[-1][3]):
            happened.append(env.reset())
    return [part for step in happened for part in step]


def test_all_of_them_are_checked():
    assert [*IDS] == [f"hawker/{name}-v0" for name in ("AdPlacement", "Copywriting", "Recommend", "Storefront")]


@every_environment
@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_checkers_pass_without_a_warning(name, render_mode):  # pytest turns warnings into errors
    check_for_gymnasium(gym.make(name, render_mode=render_mode).unwrapped)
    check_for_stable_baselines3(gym.make(name, render_mode=render_mode))


@every_environment
def test_docstring_is_the_specification(name):
    text = type(gym.make(name).unwrapped).__doc__
    places = [text.find(f"## {heading}\n") for heading in HEADINGS]
    assert -1 not in places
    assert places == sorted(places)


@every_environment
@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_rollout(name):
    makers = [lambda: gym.make(name), lambda: gym.make_vec(name, num_envs=3)]
    for make in makers:
        one, two, other = (rollout(make(), seed) for seed in (4, 4, 5))
        assert all(map(same, one, two))
        assert not all(map(same, one, other))
        used = make()
        rollout(used, 9)
        assert all(map(same, rollout(used, 4), one)), "a seed starts all over"


@every_environment
def test_without_a_seed_every_reset_brings_someone_else(name):
    for env in (gym.make(name), gym.make_vec(name, num_envs=2)):
        observations = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
        assert not any(same(one, two) for one, two in itertools.combinations(observations, 2))


@every_environment
def test_vector_of_one_is_the_single_environment(name):
    single, vector, endings = gym.make(name), gym.make_vec(name, num_envs=1), 0
    vector.action_space.seed(0)
    for seed in range(3):
        (alone, _), (batch, _) = single.reset(seed=seed), vector.reset(seed=seed)
        assert same(alone, {key: value[0] for key, value in batch.items()})
        for _ in range(40):
            action = vector.action_space.sample()
            last, reward, terminated, truncated, info = single.step(action[0])
            following, rewards, terminations, truncations, infos = vector.step(action)
            assert (rewards[0], terminations[0], truncations[0]) == (reward, terminated, truncated)
            assert {key: float(infos[key][0]) for key in info} == info
            if terminated or truncated:
                endings += 1
                assert same(last, infos["final_obs"][0])
                break
            assert same(last, {key: value[0] for key, value in following.items()})
    assert endings


@every_environment
@pytest.mark.parametrize("n", [1, 7, 2000])
def test_vector_stays_in_its_spaces(name, n):
    env = gym.make_vec(name, num_envs=n)
    assert isinstance(env.unwrapped, VectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert (rewards.shape, rewards.dtype) == ((n,), np.float64)
    assert (terminated.dtype, truncated.dtype) == (bool, bool)
    ended = terminated | truncated
    assert same(info.get("_final_obs", np.zeros(n, bool)), ended)
    for last in info["final_obs"][ended] if ended.any() else ():
        assert env.single_observation_space.contains(last)


@every_environment
def test_the_batch_has_the_form_of_gymnasiums_own_vectors(name):
    world = small_world()  # everybody is gone after a page
    ours = gym.make_vec(name, num_envs=3, world=world)
    theirs = SyncVectorEnv([lambda: gym.make(name, world=world)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    steps = []
    for env in (ours, theirs):
        first, _ = env.reset(seed=[3, 4, 5])
        assert env.observation_space.contains(first)
        steps.append(env.step(np.zeros(env.action_space.shape, np.int64)))
    for one, other in zip(steps[0][1:4], steps[1][1:4], strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    finals = [step[4]["final_obs"] for step in steps]
    assert [type(final) for final in finals] == [np.ndarray] * 2
    assert [final[0].keys() for final in finals] == [first.keys()] * 2


@every_environment
def test_gymnasiums_wrappers_take_the_batch(name):
    world = small_world()
    env = RecordEpisodeStatistics(gym.make_vec(name, num_envs=3, world=world))
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(env.action_space.sample())
    assert info["episode"]["r"] == pytest.approx(rewards)
    assert info["episode"]["l"].tolist() == [1, 1, 1]
    as_list = DictInfoToList(gym.make_vec(name, num_envs=3, world=world))
    as_list.reset(seed=0)
    infos = as_list.step(as_list.action_space.sample())[4]
    assert [set(info["final_obs"]) for info in infos] == [set(as_list.single_observation_space)] * 3


@every_environment
def test_what_was_returned_is_the_users_to_change(name):
    one, other = (gym.make_vec(name, num_envs=4) for _ in range(2))
    action = np.tile(one.single_action_space.nvec - 1, (4, 1))
    for env in (one, other):
        observation, _ = env.reset(seed=1)
        if env is one:
            for array in observation.values():
                array[:] = 0
    assert all(map(same, one.step(action), other.step(action)))


@every_environment
def test_a_vector_of_single_environments_works_too(name):
    env = gym.make_vec(name, num_envs=2, vectorization_mode="sync")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.step(env.action_space.sample())[1].shape == (2,)


@every_environment
def test_pages_are_rendered_as_text(name):
    single, vector = gym.make(name, render_mode="ansi"), gym.make_vec(name, num_envs=2, render_mode="ansi")
    single.reset(seed=0)
    vector.reset(seed=0)
    text, texts = single.render(), vector.render()
    assert "shopper:" in text
    assert "candidates:" in text
    assert [type(page) for page in texts] == [str, str]
    assert texts[0] != texts[1]
    silent = gym.make_vec(name, num_envs=2)
    silent.reset(seed=0)
    assert silent.render() is None


@every_environment
@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda action: action[..., :-1], "int64 of shape"),
        (lambda action: action[..., :1], "int64 of shape"),
        (lambda action: np.concatenate([action, action], -1), "int64 of shape"),
        (lambda action: action[None], "int64 of shape"),
        (lambda action: action * 0.5, "float64 of shape"),
        (lambda action: action > 0, "bool of shape"),
        (lambda action: None, "object of shape"),
        (lambda action: action.astype(str), "<U21 of shape"),
        (lambda action: 3, "int64 of shape"),
    ],
)
def test_an_action_of_another_form_is_refused(name, spoil, got):
    for env in (gym.make(name, disable_env_checker=True), gym.make_vec(name, num_envs=2)):
        env.reset(seed=0)
        action = np.zeros(env.action_space.shape, np.int64)
        with pytest.raises(InputError) as caught:
            env.step(spoil(action))
        assert str(caught.value).startswith("step: bad action")
        assert got in str(caught.value)
        env.step(action)  # the page still stands


def no_numbers(arrays: Any) -> bool:
    """Tell whether an array, or one of a dict of them, holds a NaN or an infinity."""
    if isinstance(arrays, dict):
        return any(no_numbers(array) for array in arrays.values())
    return arrays.dtype.kind == "f" and not np.isfinite(arrays).all()


def random_pages(name: str, n: int, steps: int) -> Iterator[str]:
    """Play seeded random actions, check every page of n shoppers, and yield a checksum of all that a step returned."""
    env = gym.make_vec(name, num_envs=n, rules=Rules(horizon=14.0, ad_gap=3, ad_load=0.5))
    shop, space = env.unwrapped.storefront, env.action_space
    space.seed(1)
    observation, _ = env.reset(seed=1)
    for _ in range(steps):
        eligible = np.where(observation["mask"] == 1, observation["candidates"], EMPTY)
        observation, reward, terminated, truncated, info = env.step(space.sample())
        last = [seen for seen in info.pop("final_obs", ()) if seen is not None]
        arrays = {**observation, **info, "reward": reward, "terminated": terminated, "truncated": truncated}
        arrays |= {f"last {key}": np.stack([seen[key] for seen in last]) for key in (last[0] if last else ())}
        assert not no_numbers(arrays)
        slate = shop.shown[1].slate.numpy()
        ranked = np.sort(slate, axis=1)
        assert not ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != EMPTY)).any(), "an item stands there twice"
        assert ((slate[:, :, None] == eligible[:, None]).any(2) | (slate == EMPTY)).all()
        digest = hashlib.sha256()
        for key, array in sorted(arrays.items()):
            digest.update(key.encode() + array.tobytes())
        yield digest.hexdigest()


@every_environment
@pytest.mark.parametrize(
    ("n", "steps"), [(500, 40), pytest.param(4_000, 250, marks=pytest.mark.slow)], ids=["20,000", "1,000,000"]
)
@pytest.mark.usefixtures("nothing_global")
def test_random_pages_have_numbers_and_no_item_twice_and_come_again_with_their_seed(name, n, steps):
    pages = zip(random_pages(name, n, steps), random_pages(name, n, steps), strict=True)
    for step, (one, same_seed) in enumerate(pages):
        assert one == same_seed, step


ODD_SHOPS = {
    "one item": lambda: small_world(n_items=1, size=1),
    "fewer items than slots": lambda: small_world(n_items=2, size=4),
}


@every_environment
@pytest.mark.parametrize("shop", ODD_SHOPS)
def test_odd_shops(name, shop):
    world = ODD_SHOPS[shop]()
    env = gym.make(name, world=world)
    check_for_gymnasium(env.unwrapped)
    vector = gym.make_vec(name, num_envs=20, world=world)
    vector.reset(seed=0)
    info = vector.step(vector.action_space.sample())[4]
    assert (info["empty_slots"] >= world.size - world.choices).all()


@every_environment
def test_where_everything_is_out_of_stock_pages_are_empty(name, closed):
    env = gym.make_vec(name, num_envs=5, world=closed)
    observation, _ = env.reset(seed=0)
    assert not observation["mask"].any()
    assert not observation.get("ad_mask", np.zeros(1)).any()
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert reward.tolist() == [0.0] * 5
    assert info["empty_slots"].tolist() == [closed.size] * 5
    assert info["ads"].tolist() == [0] * 5


@every_environment
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_world_whose_answer_is_no_number_is_refused(name, value, broken):
    for env in (gym.make(name, world=broken(value)), gym.make_vec(name, num_envs=2, world=broken(value))):
        env.reset(seed=0)
        with pytest.raises(InputError, match=f"world: the reward is not a number; got {value}; fit the shoppers anew"):
            env.step(env.action_space.sample())


@every_environment
def test_arguments_that_cannot_be_meant(name):
    for make in (lambda **given: gym.make(name, **given), lambda **given: gym.make_vec(name, num_envs=2, **given)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            make(colour="red")
        with pytest.raises(InputError, match="horizon: no days; got 0"):
            make(rules=Rules(horizon=0))
    with pytest.raises(InputError, match="num_envs: no shoppers; got 0"):
        gym.make_vec(name, num_envs=0)


def test_an_unknown_environment_is_refused_with_a_hint():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `Storefront`"):
        gym.make("hawker/Storefrnt-v0")


def test_numbers_pass():
    assert finite(np.array([1.0, -2.0])).tolist() == [1.0, -2.0]
    assert RecommendEnv().action_space.nvec.tolist() == [20, 20, 20]
