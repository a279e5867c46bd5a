"""PPO over whole pages: it finds the best page of a tiny shop, and every number it learns from is done by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from hawker.agents.config import PageTrainConfig
from hawker.agents.page_buffer import ReturnScale, TensorRolloutBuffer
from hawker.agents.page_ppo import _chances, page_ppo
from hawker.envs.page import AD_PLACEMENT, COPYWRITING, RECOMMEND, STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page_actor import PageStrategy
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec

VECTORS = np.eye(3, dtype=np.float32)
REWARD = RewardSpec(click=1.0, ad_income=1.0, offer=0.05)
SMALL = PageTrainConfig(shoppers=128, pages=4, batch=128, hidden=16, learning_rate=1e-2, entropy=1e-3)


def model_of(world, config=SMALL, parts=STOREFRONT, rules=None, reward=REWARD):
    env = StorefrontVecEnv(world, config.shoppers, reward, config.seed, parts=parts, rules=rules)
    return page_ppo(env, config, VECTORS)


def test_the_best_page_is_found(tiny_shop):
    """In each slot the best page earns what brute force says: item, paying ad below, an offer and its line."""
    world = tiny_shop()
    model = model_of(world)
    model.learn(15_000)
    strategy = PageStrategy(model.policy.actor, world.builder, world.lines, {})
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
def test_each_part_is_learned_by_itself(tiny_shop, parts, best):
    world = tiny_shop()
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
def test_same_seed_same_weights(tiny_shop):
    runs = []
    for seed in (0, 0, 1):
        model = model_of(tiny_shop(stays=True), dataclasses.replace(SMALL, seed=seed), rules=Rules(horizon=7))
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
            last = self.model.policy.predict_values(here)[:, 0]
        self.rollouts.append((kept, last, self.model.policy.returns.unit.clone()))


def credit_by_hand(page, beyond, before_lines):
    """Return the advantages of all parts, (T, N, P), from the page's (T, N) and the slots' (T, N, K)."""
    steps, n, size = beyond.shape
    found = torch.zeros(steps, n, before_lines + size)
    for t in range(steps):
        for shopper in range(n):
            for part in range(before_lines + size):
                found[t, shopper, part] = page[t, shopper]
                for other in range(size):
                    if part >= before_lines and part - before_lines != other:
                        found[t, shopper, part] -= beyond[t, shopper, other]
    return found * (before_lines + size)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.usefixtures("nothing_global")
def test_advantages_are_those_computed_by_hand(tiny_shop, normalise):
    """A visit every three days, horizon 7: pages on days 0, 3 and 6, then the episode is cut off."""
    reward = RewardSpec(click=1.0, discount_per_day=0.9)
    config = dataclasses.replace(SMALL, shoppers=5, pages=7, batch=35, discount=0.95, trace=0.8, normalise=normalise)
    model, keep = model_of(tiny_shop(stays=True), config, rules=Rules(horizon=7), reward=reward), Keep()
    model.learn(70, callback=keep)
    assert len(keep.rollouts) == 2
    first_unit = keep.rollouts[0][2]
    for kept, last, unit in keep.rollouts:
        assert kept["values"].shape == (7, 5, 3)
        values = [*kept["values"][:, :, 0], last]
        assert kept["discounts"].numpy() == pytest.approx(np.full((7, 5), 0.9**3))
        returns = torch.zeros(7, 5)
        for shopper in range(5):
            ahead = 0.0
            for t in reversed(range(7)):
                gamma, over = 0.95 * 0.9**3, bool(kept["ended"][t, shopper])
                after = kept["bootstraps"][t, shopper] if over else values[t + 1][shopper]
                delta = kept["rewards"][t, shopper] / unit + gamma * after - values[t][shopper]
                ahead = delta + (0.0 if over else gamma * 0.8 * ahead)
                returns[t, shopper] = ahead + values[t][shopper]
        torch.testing.assert_close(kept["returns"][:, :, 0], returns)
        torch.testing.assert_close(kept["slots"].sum(2), kept["rewards"], msg="clicks are all that is paid")
        torch.testing.assert_close(kept["returns"][:, :, 1:], kept["slots"] / unit)
        advantages = returns - torch.stack(values[:-1])
        spread = advantages.std() if normalise else first_unit / unit
        beyond = (kept["slots"] / unit - kept["values"][:, :, 1:]) / spread
        by_hand = credit_by_hand((advantages - advantages.mean()) / spread, beyond, before_lines=3)
        torch.testing.assert_close(kept["advantages"], by_hand, atol=1e-4, rtol=1e-4)
    first = keep.rollouts[0][0]
    assert first["ended"].nonzero()[:, 0].unique().tolist() == [2, 5]
    assert (first["bootstraps"] != 0).sum() == 0, "a new critic says 0"
    second = keep.rollouts[1][0]
    assert torch.equal(second["bootstraps"] != 0, second["ended"])


@pytest.mark.parametrize("parts", [STOREFRONT, RECOMMEND, COPYWRITING], ids=["whole", "slate", "copy"])
def test_a_rollout_with_luck_and_penalties_by_hand(tiny_shop, parts):
    """Every number of the rollout is drawn; luck is taken out by NumPy's least squares."""
    steps, n, size = 8, 6, 2
    config = dataclasses.replace(SMALL, shoppers=n, pages=steps, batch=8, discount=0.9, trace=0.7)
    buffer = model_of(tiny_shop(), config, parts=parts, reward=RewardSpec()).rollout_buffer
    before = {STOREFRONT: 3, RECOMMEND: 1, COPYWRITING: 0}[parts]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(steps, n, *shape, generator=generator)

    drawn = {name: draw() for name in ("rewards", "penalties", "bootstraps")}
    drawn |= {"discounts": draw().sigmoid(), "ended": draw() > 1, "chances": draw(2), "slots": draw(size)}
    drawn |= {"values": draw(1 + size), "log_probs": draw(before + size * parts.copy)}
    drawn["bootstraps"] *= drawn["ended"]
    buffer.reset()
    for page in range(steps):
        buffer.put({}, **{name: value[page] for name, value in drawn.items()})
    scale, last = ReturnScale(n), draw()[0]
    buffer.finish(last, scale, actor_learns=True)
    kept = {name: value.double().numpy() for name, value in drawn.items()}
    unit, worth = float(scale.unit), kept["values"][:, :, 0]
    after = np.concatenate([worth[1:], last.double().numpy()[None]])
    after = np.where(kept["ended"] > 0, kept["bootstraps"], after)
    delta = (kept["rewards"] - kept["penalties"]) / unit + 0.9 * kept["discounts"] * after - worth
    chances = np.concatenate([kept["chances"], kept["chances"] * worth[:, :, None]], 2).reshape(-1, 4)
    delta = delta - (chances @ np.linalg.lstsq(chances, delta.flatten(), rcond=None)[0]).reshape(delta.shape)
    advantages, ahead = np.zeros((steps, n)), np.zeros(n)
    for t in reversed(range(steps)):
        ahead = delta[t] + 0.9 * 0.7 * kept["discounts"][t] * (1 - kept["ended"][t]) * ahead
        advantages[t] = ahead
    spread = advantages.std(ddof=1)
    beyond = (kept["slots"] / unit - kept["values"][:, :, 1:]) / spread
    page = torch.from_numpy((advantages - advantages.mean()) / spread)
    by_hand = credit_by_hand(page, torch.from_numpy(beyond) if parts.copy else torch.zeros(steps, n, 0), before)
    torch.testing.assert_close(buffer._kept["advantages"], by_hand, atol=1e-4, rtol=1e-4)
    returns = torch.from_numpy(advantages + worth).float()
    torch.testing.assert_close(buffer._kept["returns"][:, :, 0], returns, atol=1e-4, rtol=1e-4)


def test_chances_by_hand():
    t = torch.tensor
    outcome = Outcome(
        clicked=torch.zeros(4, 2),
        click_probability=torch.zeros(4, 2),
        gone=torch.zeros(4, dtype=torch.bool),
        leave=t([True, False, True, True]),
        days=t([7.0, 0.0, torch.inf, 8.0]),
        leave_probability=t([0.75, 0.25, 0.5, 1.0]),
        return_probability=t([0.5, 0.875, 0.25, 0.125]),
    )
    left, back = [0.25, -0.25, 0.5, 0.0], [0.5, 0.0, -0.25, -0.125]  # nobody returns who has not left
    assert _chances(outcome).T.tolist() == [left, back]
    silent = dataclasses.replace(outcome, leave_probability=None)
    assert _chances(silent).T.tolist() == [[0.0] * 4, back]
    assert _chances(dataclasses.replace(outcome, return_probability=None)).T.tolist() == [left, [0.0] * 4]
    assert not _chances(dataclasses.replace(outcome, leave=None)).any()


def test_a_page_that_was_cut_off_is_worth_what_would_have_come(tiny_shop):
    """Every page earns about the same and the discount is none: without a bootstrap the horizon would cost value."""
    config = dataclasses.replace(SMALL, shoppers=64, discount=0.5)
    model = model_of(tiny_shop(stays=True), config, rules=Rules(horizon=4), parts=RECOMMEND, reward=RewardSpec())
    model.learn(20_000)
    here = {name: torch.as_tensor(value) for name, value in model._last_obs.items()}
    with torch.no_grad():
        value = model.policy.predict_values(here)[:, 0].mean() * model.policy.returns.unit
    reward = model.rollout_buffer.rewards.mean()
    assert float(value) == pytest.approx(reward / (1 - 0.5), rel=0.15), "r + r / 2 + r / 4 + ..."


@pytest.mark.usefixtures("nothing_global")
def test_rollouts_are_dealt_out_once_in_small_numbers(tiny_shop):
    model, keep = model_of(tiny_shop(), dataclasses.replace(SMALL, shoppers=6, batch=8)), Keep()
    model.learn(24, callback=keep)
    buffer = model.rollout_buffer
    assert isinstance(buffer, TensorRolloutBuffer)
    assert buffer._kept["actions"].dtype == buffer._kept["obs.candidates"].dtype == torch.int16
    before = {name: value.data_ptr() for name, value in buffer._kept.items() if name not in ("returns", "advantages")}
    batches = list(buffer.get(7))
    assert [len(batch.actions) for batch in batches] == [7, 7, 7, 3]
    dealt = torch.cat([batch.old_log_prob for batch in batches])
    assert sorted(dealt.tolist()) == sorted(buffer._kept["log_probs"].flatten(0, 1).tolist())
    assert dealt.shape == torch.cat([batch.advantages for batch in batches]).shape == (24, 5)
    assert all(len(batch.old_values) == len(batch.returns) == 3 * len(batch.actions) for batch in batches)
    assert {batch.actions.dtype for batch in batches} == {torch.int64}
    model.learn(24, reset_num_timesteps=False)
    assert before == {name: buffer._kept[name].data_ptr() for name in before}, "memory is used again"


def test_what_was_kept_is_what_the_policy_said(tiny_shop):
    model, keep = model_of(tiny_shop()), Keep()
    model.learn(1, callback=keep)
    fresh = model_of(tiny_shop()).policy
    kept = keep.rollouts[0][0]
    seen = {name.removeprefix("obs."): value.flatten(0, 1) for name, value in kept.items() if name.startswith("obs.")}
    with torch.no_grad():
        values, log_prob, entropy = fresh.evaluate_actions(seen, kept["actions"].flatten(0, 1).long())
    torch.testing.assert_close(log_prob, kept["log_probs"].flatten(0, 1))
    torch.testing.assert_close(values, kept["values"].flatten(0, 1))
    assert (entropy > 0).all()


def test_parts_of_the_policy_agree(tiny_shop):
    model = model_of(tiny_shop())
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
    assert (actions.shape, values.shape, log_prob.shape) == ((128, 7), (128, 3), (128, 5))
    page = policy.actor.layout.page(actions, 6)
    torch.testing.assert_close(log_prob.sum(1), distribution._pages.log_prob(page), msg="slate, ad, offer, two lines")
    assert model.action_space.shape == (7,)
    predicted, _ = model.predict(model.env.reset(), deterministic=True)
    assert predicted.shape == (128, 7)


def test_a_candidate_that_is_not_eligible_is_not_predicted(tiny_shop):
    model = model_of(tiny_shop(), parts=RECOMMEND, reward=RewardSpec())
    observation = model.env.reset()
    observation["mask"][:] = 0
    observation["mask"][:, 3] = 1
    picks, _ = model.predict(observation)
    assert (picks == [3, EMPTY]).all(), "the last slot stays empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_world_whose_answer_is_no_number_teaches_nothing(tiny_shop, value):
    world = tiny_shop()
    world.odds = lambda context, decision: torch.full(decision.slate.shape, float(value))
    model = model_of(world, parts=RECOMMEND, reward=RewardSpec())
    before = weights_of_actor(model)
    with pytest.raises(InputError, match=f"the reward is not a number; got {value}"):
        model.learn(512)
    assert torch.equal(weights_of_actor(model), before)


def weights_of_actor(model):
    return torch.cat([value.detach().flatten() for value in model.policy.actor.parameters()])


def test_the_first_pages_teach_the_critic_alone(tiny_shop):
    """The actor stays where it is, and learns from the rollout after them on."""
    config = dataclasses.replace(SMALL, entropy=0.01, critic_first=2 * SMALL.shoppers * SMALL.pages)
    model = model_of(tiny_shop(), config)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(config.critic_first)
    after = model.policy.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "critic" in moved
    assert "actor" not in moved
    model.learn(SMALL.shoppers * SMALL.pages, reset_num_timesteps=False)
    assert not torch.equal(model.policy.actor.offer.weight, before["actor.offer.weight"])


def test_training_for_entropy_alone_flattens_the_page(tiny_shop):
    model = model_of(tiny_shop(), dataclasses.replace(SMALL, entropy=10.0))
    with torch.no_grad():
        model.policy.actor.offer.bias += torch.tensor([3.0, 0.0])
    model.learn(4096)
    seen = {name: torch.as_tensor(value) for name, value in model.env.reset().items()}
    with torch.no_grad():
        entropy = model.policy.evaluate_actions(seen, model.policy(seen)[0])[2].mean()
    most = np.log(2) + 2 * np.log(4)  # offer and lines
    assert entropy > most + 0.5 * np.log(6 * 5)
