"""The storefront's own arithmetic: which picks are shown, what they earn, who comes next."""

import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

import hawker.envs  # noqa: F401  # registers the environments
from hawker.envs.environments import RecommendEnv, RecommendVectorEnv, StorefrontEnv, small_bazaar
from hawker.envs.page import AD_PLACEMENT, COPYWRITING, RECOMMEND, STOREFRONT, Parts, Rules
from hawker.envs.storefront import Step, Storefront
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers


class Recorder:
    """A world that keeps the slates it was shown."""

    def __init__(self, world):
        self.builder, self.size, self.device, self._world = world.builder, world.size, world.device, world
        self.choices, self.offers, self.lines, self.bids = world.choices, world.offers, world.lines, world.bids
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


def test_gymnasiums_time_limit_truncates(staying):
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


@pytest.mark.parametrize("n", [0, -1])
def test_a_storefront_without_shoppers_is_refused(world, n):
    with pytest.raises(InputError, match=f"num_envs: no shoppers; got {n}, expected at least 1"):
        Storefront(world, n, RewardSpec())


def play(shop: Storefront, steps: int, action: list[int]) -> list[Step]:
    shop.reset(0)
    return [shop.step(torch.tensor([action] * shop.n)) for _ in range(steps)]


def test_the_horizon_cuts_off_who_would_come_back_after_it(calendar):
    shop = Storefront(calendar(days=3.0), 2, RewardSpec(discount_per_day=0.5), STOREFRONT, Rules(horizon=7))
    shop.reset(0)
    steps, lasts = [], []
    for _ in range(4):
        steps.append(shop.step(torch.tensor([[2, 3, 4, 6, 0, 0, 2, 2, 2]] * 2)))
        lasts.append(shop.last_observation())
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert not any(step.terminated.any() for step in steps)
    assert [step.happened["day"].tolist() for step in steps] == [[0, 0], [3, 3], [6, 6], [0, 0]]
    assert [step.happened["discount"].tolist() for step in steps] == [[0.125] * 2] * 4
    assert [step.observation["gap"].flatten().tolist() for step in steps] == [[3, 3], [3, 3], [0, 0], [3, 3]]
    # the page after the horizon belongs to the same shoppers; then others come
    assert lasts[2]["shopper"][:, 0].tolist() == [0, 1]
    assert lasts[2]["gap"].flatten().tolist() == [3, 3]
    assert steps[2].observation["shopper"][:, 0].tolist() == steps[3].observation["shopper"][:, 0].tolist() == [2, 3]


@pytest.mark.parametrize(("horizon", "pages"), [(0.5, 1), (3, 1), (3.5, 2), (6, 2), (6.1, 3)])
def test_days_within_a_horizon(calendar, horizon, pages):
    env = StorefrontEnv(calendar(days=3.0), rules=Rules(horizon=horizon))
    first, _ = env.reset(seed=0)
    for page in range(1, pages + 1):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (terminated, truncated) == (False, page == pages)
        assert observation["shopper"][0] == first["shopper"][0]
        assert observation["gap"] == [3.0]


def test_who_is_gone_is_not_cut_off_too(calendar):
    shop = Storefront(calendar(gone=lambda number: number % 2 == 0), 4, RewardSpec(), rules=Rules(horizon=1))
    shop.reset(0)
    step = shop.step(torch.zeros(4, 3, dtype=torch.long))
    assert step.terminated.tolist() == [True, False, True, False]
    assert step.truncated.tolist() == [False, True, False, True]


AD, NO_AD = [2, 3, 4, 5, 0, 0, 2, 2, 2], [2, 3, 4, 6, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("rules", "ads"),
    [
        (Rules(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Rules(ad_gap=3), [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]),
        (Rules(ad_load=0.5), [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
        (Rules(ad_load=0.2), [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]),
        (Rules(ad_load=0.1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (Rules(ad_load=0.0), [0] * 10),
        (Rules(ad_gap=4, ad_load=0.5), [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]),
    ],
)
def test_ads_are_capped_page_by_page_over_visits(calendar, rules, ads):
    shop = Storefront(calendar(days=1.0), 2, RewardSpec(ad_income=1.0, ad=0.5), STOREFRONT, rules)
    shop.reset(0)
    for shown in ads:
        closed = [False, False]  # what is out of stock is no ad either
        assert shop.observation["ad_mask"][0].tolist() == closed + [bool(shown)] * 4
        happened = shop.step(torch.tensor([AD, NO_AD])).happened
        assert happened["ads"].tolist() == [shown, 0]
        assert happened["refused"].tolist() == [1 - shown, 0]
        assert happened["reward_ad_income"].tolist() == [8.0 * 0.5 * shown, 0.0]
        assert happened["reward_ad"].tolist() == [-0.5 * shown, 0.0]


def test_a_new_shopper_starts_without_ads_behind_them(calendar):
    shop = Storefront(calendar(days=1.0), 1, RewardSpec(), STOREFRONT, Rules(horizon=2, ad_gap=9))
    assert [int(step.happened["ads"]) for step in play(shop, 4, AD)] == [1, 0, 1, 0]


def test_pages_are_counted_and_repetitions_paid_within_a_visit(staying):
    world = staying._world
    staying.bids = torch.ones_like(world.bids)
    shop = Storefront(staying, 2, RewardSpec(repetition=1.0), Parts(ad=True))
    shop.reset(0)
    slates = [[0, 1, 2], [2, 3, 1], [2, 2, 4]]
    steps = [shop.step(torch.tensor([[*slate, 20, 0]] * 2)) for slate in slates]
    assert [step.observation["page"].flatten().tolist() for step in steps] == [[0, 1], [0, 2], [0, 3]]
    assert [step.happened["reward_repetition"].tolist() for step in steps] == [[0, 0], [0, -2], [0, -1]]


def test_parts_of_the_reward_are_those_of_its_specification():
    world = small_bazaar()
    spec = RewardSpec(1.0, 5.0, 0.01, 3.0, 2.0, ad=0.3, offer=0.1, repetition=0.05, discount_per_day=0.9)
    shop = Storefront(world, 200, spec, STOREFRONT)
    shop.reset(0)
    generator, values = np.random.default_rng(0), np.array(shop.layout.values)
    for _ in range(3):
        previous = shop._diary["previous"]
        step = shop.step(shop.actions(generator.integers(values, size=(200, len(values)))))
        _, decision, outcome = shop.shown
        parts = spec.components(outcome, decision, world.bids, previous)
        assert {name for name in step.happened if name.startswith("reward_")} == {f"reward_{name}" for name in parts}
        assert len(parts) == 8
        assert step.reward == pytest.approx(sum(parts.values()), rel=1e-5)
        last = outcome.leave
        assert torch.equal(parts["return_visit"] == 0, ~last)
        assert step.happened["discount"] == pytest.approx(0.9 ** outcome.days.masked_fill(outcome.gone, 0.0))
        assert torch.equal(shop._diary["previous"][last], torch.full_like(decision.slate[last], EMPTY))


def test_arrivals_are_all_different_while_few_leave(calendar):
    turn = 0
    shop = Storefront(calendar(gone=lambda number: (number + turn) % 20 == 0), 40, RewardSpec())
    shop.reset(0)
    came = set(shop.observation["shopper"][:, 0].tolist())
    for turn in range(60):  # noqa: B007  # the world reads it
        before = shop.observation["shopper"][:, 0]
        step = shop.step(torch.zeros(40, 3, dtype=torch.long))
        new = step.observation["shopper"][step.terminated, 0].tolist()
        assert len(set(new)) == len(new)
        assert not came & set(new)
        came |= set(new)
        assert torch.equal(step.observation["shopper"][~step.terminated, 0], before[~step.terminated])
    assert len(came) > 100
    assert int(shop.repeats) == 0


def test_where_everybody_leaves_at_once_some_arrive_again_and_are_counted(calendar):
    shop = Storefront(calendar(gone=torch.ones_like), 40, RewardSpec())
    steps = play(shop, 9, [2, 3, 4])
    for i, (one, other) in enumerate(itertools.pairwise(steps)):
        assert len(set(other.observation["shopper"][:, 0].tolist())) == 40
        both = np.intersect1d(one.observation["shopper"][:, 0], other.observation["shopper"][:, 0])
        assert len(both) == (0 if i == 7 else 40), "all are drawn anew after eight steps"
    assert int(shop.repeats) == 7 * 40


@pytest.mark.parametrize("parts", [STOREFRONT, AD_PLACEMENT, COPYWRITING, RECOMMEND])
def test_a_step_moves_nothing_between_host_and_device(parts, monkeypatch):
    for world in (small_world(), small_bazaar()):
        shop = Storefront(world, 50, RewardSpec(), parts, Rules(horizon=5, ad_gap=2))
        shop.reset(0)
        actions = torch.zeros(50, len(shop.layout.values), dtype=torch.long)
        shop.step(actions)

        def caught(*args, **kwargs):
            raise AssertionError("a step waits for the device")

        with monkeypatch.context() as patched:
            for name in ("item", "cpu", "numpy", "tolist", "__bool__", "__int__", "__float__", "__array__", "__iter__"):
                patched.setattr(torch.Tensor, name, caught)
            for _ in range(6):
                shop.step(actions)
                shop.last_observation()


@pytest.mark.parametrize("parts", [STOREFRONT, AD_PLACEMENT])
def test_what_is_kept_goes_on_as_if_nothing_had_happened(parts):
    def make() -> Storefront:
        return Storefront(small_bazaar(), 30, RewardSpec(repetition=0.1), parts, Rules(horizon=5, ad_gap=3))

    generator = np.random.default_rng(0)
    unbroken, resumed = make(), make()
    actions = [
        torch.from_numpy(generator.integers(unbroken.layout.values, size=(30, len(unbroken.layout.values))))
        for _ in range(12)
    ]
    unbroken.reset(3)
    for action in actions[:6]:
        unbroken.step(action)
    kept = {name: value.clone() for name, value in unbroken.tensors().items()}
    resumed.load_tensors(kept)
    for action in actions[6:]:
        one, other = unbroken.step(action), resumed.step(action)
        for mine, theirs in ((one.observation, other.observation), (one.happened, other.happened)):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert torch.equal(one.terminated, other.terminated)
        assert torch.equal(one.truncated, other.truncated)
    assert int(unbroken.repeats) == int(resumed.repeats)


def test_given_rankings_are_by_popularity():
    world = small_bazaar()
    shop = Storefront(world, 20, RewardSpec(), AD_PLACEMENT)
    shop.reset(0)
    units = torch.tensor(world.items.table["popularity"].to_numpy())
    for own, places in zip(shop.observation["candidates"], shop.observation["given"], strict=True):
        assert own[places].tolist() == own[units[own].argsort(descending=True)][:3].tolist()
    upside_down = Storefront(world, 20, RewardSpec(), COPYWRITING, popularity=-units)
    upside_down.reset(0)
    for own, places in zip(upside_down.observation["candidates"], upside_down.observation["given"], strict=True):
        assert own[places].tolist() == own[units[own].argsort()][:3].tolist()
    unknown = Storefront(small_world(), 20, RewardSpec(), COPYWRITING)
    unknown.reset(0)
    assert unknown.observation["given"].tolist() == [[0, 1, 2]] * 20
