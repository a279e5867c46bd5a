"""PPO over whole pages: it finds the best page of a tiny shop, and every number it learns from is done by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from hawker.agents.config import PageTrainConfig
from hawker.agents.page_ppo import ReturnScale, TensorRolloutBuffer, page_ppo
from hawker.envs.page import AD_PLACEMENT, COPYWRITING, RECOMMEND, STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page_actor import PageStrategy
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers

LINES = ("cheap", "plain", "fine")
VECTORS = np.eye(3, dtype=np.float32)
REWARD = RewardSpec(click=1.0, ad_income=1.0, offer=0.05)


class TinyShop:
    """Six items, two slots, two tiers, three lines; what is best is known.

    Older shoppers click item 0 most, younger ones item 1; item 4 is the ad that pays, and in the lower slot it pays
    more. The line "cheap" helps with an offer and harms without; "fine" helps a little.
    """

    def __init__(self, bids=(0.0, 0.0, 0.0, 0.5, 2.0, 0.0), stays=False):
        self._world = small_world(n_items=6, size=2)
        self.builder, self.size, self.device = self._world.builder, 2, self._world.device
        self.choices, self.offers, self.lines, self.bids = 6, 2, LINES, torch.tensor(bids)
        self._stays = stays
        self._age = self.builder.shopper.numeric.index("age")

    def arrive(self, n, generator):
        """Return n shoppers."""
        return dataclasses.replace(self._world.arrive(n, generator), state={"visits": torch.zeros(n)})

    def older(self, context):
        """Return who is older, shape (B,)."""
        return context.shopper[:, self._age] > self.builder.shopper.mean[self._age]

    def odds(self, context, decision):
        """Return P(click) of each slot."""
        best = torch.where(self.older(context), 0, 1)[:, None]
        odds = 0.1 + torch.tensor([0.4, 0.2]) * (decision.slate == best)
        if decision.ad is not None:
            is_ad = torch.arange(2) == decision.ad[:, None]
            odds = torch.where(is_ad, torch.tensor([0.05, 0.2]), odds)
        if decision.copy is not None:
            offer = torch.zeros(len(odds)) if decision.offer is None else decision.offer
            odds = odds + torch.where(decision.copy == 0, 0.2 * offer[:, None] - 0.1, 0.0)
            odds = odds + 0.03 * (decision.copy == 2)
        return odds.clamp(min=0.0) * (decision.slate != EMPTY)

    def respond(self, shoppers, decision, generator):
        """Answer; every page is a visit of its own, three days apart, if anybody stays."""
        odds = self.odds(shoppers.context, decision)
        n = len(odds)
        gone = torch.full((n,), not self._stays)
        days = torch.full((n,), 3.0).masked_fill(gone, torch.inf)
        visits = shoppers.state["visits"] + 1
        clicked = (torch.rand(odds.shape, generator=generator) < odds).float()
        after = Shoppers(shoppers.context, shoppers.member, {"visits": visits})
        return after, Outcome(clicked, odds, gone, leave=torch.ones(n, dtype=torch.bool), days=days)


SMALL = PageTrainConfig(shoppers=128, pages=4, batch=128, hidden=16, learning_rate=1e-2, entropy=1e-3)


def model_of(world, config=SMALL, parts=STOREFRONT, rules=None, reward=REWARD):
    env = StorefrontVecEnv(world, config.shoppers, reward, config.seed, parts=parts, rules=rules)
    return page_ppo(env, config, VECTORS)


def test_the_best_page_is_found():
    """In each slot the best page earns what brute force says: item, paying ad below, an offer and its line."""
    world = TinyShop()
    model = model_of(world)
    model.learn(15_000)
    strategy = PageStrategy(model.policy.actor, world.builder, LINES, {})
    context = world.arrive(200, torch.Generator().manual_seed(1)).context
    page = strategy.pages(context).mode()
    best = torch.where(world.older(context), 0, 1)
    assert (page.slate[:, 0] == best).float().mean() > 0.95
    assert (page.ad == 4).all()
    assert (page.slot == 1).all()
    assert (page.offer == 1).all()
    assert (page.lines == 0).all()
    drawn = strategy.propose(context, torch.Generator().manual_seed(2))
    odds = world.odds(context, drawn)
    outcome = Outcome(odds, odds, torch.ones(200, dtype=torch.bool))
    earned = sum(REWARD.components(outcome, drawn, world.bids).values())
    assert earned.mean() > 0.95 * (0.6 + 0.3 + 2 * 0.3 - 0.05), "the item, the ad, its bid, the offer"


@pytest.mark.parametrize(
    ("parts", "best"), [(RECOMMEND, None), (AD_PLACEMENT, [4, 1]), (COPYWRITING, [2, 2])], ids=["slate", "ad", "copy"]
)
def test_each_part_is_learned_by_itself(parts, best):
    world = TinyShop()
    model = model_of(world, parts=parts, reward=REWARD if parts.ad else RewardSpec())
    model.learn(12_000)
    seen = {name: torch.as_tensor(value) for name, value in model.env.reset().items()}
    actions = model.policy.get_distribution(seen).mode()
    assert actions.shape == (128, model.env.storefront.layout.page.width) == (128, 2)
    if best is None:
        assert (actions[:, 0] == torch.where(world.older(model_context(seen)), 0, 1)).float().mean() > 0.95
    else:
        assert (actions == torch.tensor(best)).all()


def model_context(seen):
    return Context(seen["shopper"], seen["candidates"], seen["mask"].bool(), seen["affinity"])


def weights(model):
    return torch.cat([value.flatten().double() for value in model.policy.state_dict().values()])


@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_weights():
    runs = []
    for seed in (0, 0, 1):
        model = model_of(TinyShop(stays=True), dataclasses.replace(SMALL, seed=seed), rules=Rules(horizon=7))
        model.learn(1536)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


class Keep(BaseCallback):
    """Keeps what each rollout held."""

    def __init__(self):
        super().__init__()
        self.rollouts = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        kept = {name: value.clone() for name, value in self.model.rollout_buffer._kept.items()}
        here = {name: torch.as_tensor(value) for name, value in self.model._last_obs.items()}
        with torch.no_grad():
            last = self.model.policy.predict_values(here).squeeze(1)
        self.rollouts.append((kept, last, self.model.policy.returns.unit.clone()))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.usefixtures("nothing_global")
def test_advantages_are_those_computed_by_hand(normalise):
    """A visit every three days, horizon 7: pages on days 0, 3 and 6, then the episode is cut off."""
    reward = RewardSpec(click=1.0, discount_per_day=0.9)
    config = dataclasses.replace(SMALL, shoppers=5, pages=7, batch=35, discount=0.95, trace=0.8, normalise=normalise)
    model, keep = model_of(TinyShop(stays=True), config, rules=Rules(horizon=7), reward=reward), Keep()
    model.learn(70, callback=keep)
    assert len(keep.rollouts) == 2
    first_unit = keep.rollouts[0][2]
    for kept, last, unit in keep.rollouts:
        values = [*kept["values"], last]
        assert kept["discounts"].numpy() == pytest.approx(np.full((7, 5), 0.9**3))
        returns = torch.zeros(7, 5)
        for shopper in range(5):
            ahead = 0.0
            for t in reversed(range(7)):
                gamma, over = 0.95 * 0.9**3, bool(kept["ended"][t, shopper])
                after = kept["bootstraps"][t, shopper] if over else values[t + 1][shopper]
                delta = kept["rewards"][t, shopper] / unit + gamma * after - kept["values"][t, shopper]
                ahead = delta + (0.0 if over else gamma * 0.8 * ahead)
                returns[t, shopper] = ahead + kept["values"][t, shopper]
        torch.testing.assert_close(kept["returns"], returns)
        advantages = returns - kept["values"]
        normal = (advantages - advantages.mean()) / (advantages.std() if normalise else first_unit / unit)
        torch.testing.assert_close(kept["advantages"], normal, atol=1e-4, rtol=1e-4)
    first = keep.rollouts[0][0]
    assert first["ended"].nonzero()[:, 0].unique().tolist() == [2, 5]
    assert (first["bootstraps"] != 0).sum() == 0, "a new critic says 0"
    second = keep.rollouts[1][0]
    assert torch.equal(second["bootstraps"] != 0, second["ended"])


def test_a_page_that_was_cut_off_is_worth_what_would_have_come():
    """Every page earns about the same and the discount is none: without a bootstrap the horizon would cost value."""
    config = dataclasses.replace(SMALL, shoppers=64, discount=0.5)
    model = model_of(TinyShop(stays=True), config, rules=Rules(horizon=4), parts=RECOMMEND, reward=RewardSpec())
    model.learn(20_000)
    here = {name: torch.as_tensor(value) for name, value in model._last_obs.items()}
    with torch.no_grad():
        value = model.policy.predict_values(here).mean() * model.policy.returns.unit
    reward = model.rollout_buffer.rewards.mean()
    assert float(value) == pytest.approx(reward / (1 - 0.5), rel=0.15), "r + r / 2 + r / 4 + ..."


def test_returns_unit_is_the_root_mean_square_of_all_returns():
    scale, rng = ReturnScale(3), np.random.default_rng(0)
    carried, squares = np.zeros(3), []
    for _ in range(4):
        rewards, discounts, ended = rng.normal(size=(5, 3)), rng.random((5, 3)), rng.random((5, 3)) < 0.3
        for t in range(5):
            carried = carried + rewards[t]
            squares.extend(carried**2)
            carried = np.where(ended[t], 0.0, carried * discounts[t])
        scale.update(torch.tensor(rewards).float(), torch.tensor(discounts).float(), torch.tensor(ended))
        assert float(scale.unit) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)


@pytest.mark.usefixtures("nothing_global")
def test_rollouts_are_dealt_out_once_in_small_numbers():
    model, keep = model_of(TinyShop(), dataclasses.replace(SMALL, shoppers=6, batch=8)), Keep()
    model.learn(24, callback=keep)
    buffer = model.rollout_buffer
    assert isinstance(buffer, TensorRolloutBuffer)
    assert buffer._kept["actions"].dtype == buffer._kept["obs.candidates"].dtype == torch.int16
    before = {name: value.data_ptr() for name, value in buffer._kept.items() if name not in ("returns", "advantages")}
    batches = list(buffer.get(7))
    assert [len(batch.actions) for batch in batches] == [7, 7, 7, 3]
    dealt = torch.cat([batch.old_log_prob for batch in batches])
    assert sorted(dealt.tolist()) == sorted(buffer._kept["log_probs"].flatten().tolist())
    assert {batch.actions.dtype for batch in batches} == {torch.int64}
    model.learn(24, reset_num_timesteps=False)
    assert before == {name: buffer._kept[name].data_ptr() for name in before}, "memory is used again"


def test_what_was_kept_is_what_the_policy_said():
    model, keep = model_of(TinyShop()), Keep()
    model.learn(1, callback=keep)
    fresh = model_of(TinyShop()).policy
    kept = keep.rollouts[0][0]
    seen = {name.removeprefix("obs."): value.flatten(0, 1) for name, value in kept.items() if name.startswith("obs.")}
    with torch.no_grad():
        values, log_prob, entropy = fresh.evaluate_actions(seen, kept["actions"].flatten(0, 1).long())
    torch.testing.assert_close(log_prob, kept["log_probs"].flatten())
    torch.testing.assert_close(values.flatten(), kept["values"].flatten())
    assert (entropy > 0).all()


def test_parts_of_the_policy_agree():
    model = model_of(TinyShop())
    policy = model.policy
    seen = {name: torch.as_tensor(value) for name, value in model.env.reset().items()}
    with torch.no_grad():
        actions, values, log_prob = policy(seen)
        again, same_log_prob, entropy = policy.evaluate_actions(seen, actions.float())  # as a NumPy buffer would bring
        distribution = policy.get_distribution(seen)
    torch.testing.assert_close(values, again)
    torch.testing.assert_close(log_prob, same_log_prob)
    torch.testing.assert_close(log_prob, distribution.log_prob(actions))
    torch.testing.assert_close(entropy, distribution.entropy())
    assert torch.equal(policy(seen, deterministic=True)[0], distribution.mode())
    assert (actions.shape, values.shape, log_prob.shape) == ((128, 7), (128, 1), (128,))
    assert model.action_space.shape == (7,)
    predicted, _ = model.predict(model.env.reset(), deterministic=True)
    assert predicted.shape == (128, 7)


def test_a_candidate_that_is_not_eligible_is_not_predicted():
    model = model_of(TinyShop(), parts=RECOMMEND, reward=RewardSpec())
    observation = model.env.reset()
    observation["mask"][:] = 0
    observation["mask"][:, 3] = 1
    picks, _ = model.predict(observation)
    assert (picks == [3, EMPTY]).all(), "the last slot stays empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_world_whose_answer_is_no_number_teaches_nothing(value):
    world = TinyShop()
    world.odds = lambda context, decision: torch.full(decision.slate.shape, float(value))
    model = model_of(world, parts=RECOMMEND, reward=RewardSpec())
    before = weights_of_actor(model)
    with pytest.raises(InputError, match=f"the reward is not a number; got {value}"):
        model.learn(512)
    assert torch.equal(weights_of_actor(model), before)


def weights_of_actor(model):
    return torch.cat([value.detach().flatten() for value in model.policy.actor.parameters()])


def test_training_for_entropy_alone_flattens_the_page():
    model = model_of(TinyShop(), dataclasses.replace(SMALL, entropy=10.0))
    with torch.no_grad():
        model.policy.actor.offer.bias += torch.tensor([3.0, 0.0])
    model.learn(4096)
    seen = {name: torch.as_tensor(value) for name, value in model.env.reset().items()}
    with torch.no_grad():
        entropy = model.policy.evaluate_actions(seen, model.policy(seen)[0])[2].mean()
    most = np.log(2) + 2 * np.log(4)  # offer and lines
    assert entropy > most + 0.5 * np.log(6 * 5)
