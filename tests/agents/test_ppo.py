"""PPO over slates: it solves a trivial shop, and every part agrees with arithmetic done by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from hawker.agents.config import TrainConfig
from hawker.agents.ppo import SeededRolloutBuffer, SlateDistribution
from hawker.agents.train import make_ppo, reward_figure
from hawker.envs.environments import RecommendEnv
from hawker.envs.storefront import action_space, observation_space
from hawker.policies.slate import PlackettLuce
from hawker.policies.trained import TrainedStrategy
from hawker.shop.decision import Outcome
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world


class OneItemShop:
    """Item 7 is clicked wherever it is shown, and nothing else ever is."""

    def __init__(self, size):
        self._world = small_world(size=size)
        self.builder, self.size, self.device = self._world.builder, size, self._world.device
        self.choices, self.offers = self._world.choices, self._world.offers
        self.lines, self.bids = self._world.lines, self._world.bids

    def arrive(self, n, generator):
        """Return n shoppers."""
        return self._world.arrive(n, generator)

    def respond(self, shoppers, decision, generator):
        """Click item 7."""
        clicked = (decision.slate == 7).float()
        return shoppers, Outcome(clicked, clicked, torch.ones(len(clicked), dtype=torch.bool))


@pytest.mark.parametrize("size", [1, 3])
def test_a_shop_in_which_one_item_is_always_clicked_is_solved(size):
    world = OneItemShop(size)
    config = TrainConfig(shoppers=128, pages=4, batch=128, hidden=16, learning_rate=1e-2, device="cpu")
    model = make_ppo(world, config, scale=20 / size)  # the random strategy shows it in size of 20 slates
    model.learn(8192)
    strategy = TrainedStrategy(model.policy.actor, world.builder, {})
    trained = reward_figure(strategy, world, RewardSpec(), seed=1)
    assert trained["low"] >= 0.95, "of 1, the best there is"
    first = strategy.distribution(world.arrive(50, torch.Generator()).context).mode()[:, 0]
    assert (first == 7).all()


def trained(world, config, steps=512):
    model = make_ppo(world, config, scale=5.0)
    model.learn(steps)
    return model


@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_weights(staying, tiny):
    one, two, other = (trained(staying, dataclasses.replace(tiny, seed=seed)) for seed in (0, 0, 1))
    weights = [model.policy.state_dict() for model in (one, two, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["actor.own_bias"], weights[2]["actor.own_bias"])
    assert weights[0]["actor.own_bias"].abs().max() > 0, "it has learned"


class Keep(BaseCallback):
    """Checks each rollout before anything is learned from it."""

    def __init__(self):
        super().__init__()
        self.rollouts = 0

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        check_advantages(buffer, self.locals["values"].flatten().numpy(), self.locals["dones"])
        check_what_the_policy_said(buffer, self.model.policy)
        self.rollouts += 1


def check_advantages(buffer, last_values, last_dones):
    """Recompute generalised advantages as sums of discounted temporal differences (Schulman et al., 2016)."""
    pages, n = buffer.rewards.shape
    for i in range(n):
        ends = [bool(buffer.episode_starts[t + 1, i]) for t in range(pages - 1)] + [bool(last_dones[i])]
        following = [*buffer.values[1:, i], last_values[i]]
        deltas = [
            buffer.rewards[t, i] + (0.0 if ends[t] else 0.9 * following[t]) - buffer.values[t, i] for t in range(pages)
        ]
        for t in range(pages):
            advantage = 0.0
            for later in range(t, pages):
                advantage += (0.9 * 0.95) ** (later - t) * deltas[later]
                if ends[later]:
                    break
            assert buffer.advantages[t, i] == pytest.approx(advantage, rel=1e-4, abs=1e-5)
            assert buffer.returns[t, i] == pytest.approx(advantage + buffer.values[t, i], rel=1e-4, abs=1e-5)


def check_what_the_policy_said(buffer, policy):
    for t in range(len(buffer.actions)):
        observation = {name: torch.as_tensor(value[t]) for name, value in buffer.observations.items()}
        with torch.no_grad():
            values, log_prob, _ = policy.evaluate_actions(observation, torch.as_tensor(buffer.actions[t]))
        assert buffer.values[t] == pytest.approx(values.flatten().numpy(), abs=1e-5)
        assert buffer.log_probs[t] == pytest.approx(log_prob.numpy(), abs=1e-5)


def test_advantages_and_what_they_rest_on(staying, tiny):
    config = dataclasses.replace(tiny, shoppers=6, pages=5, batch=30, discount=0.9)
    model, keep = make_ppo(staying, config, scale=5.0), Keep()
    model.learn(90, callback=keep)
    assert keep.rollouts == 3
    rewards = model.rollout_buffer.rewards.flatten() / 5.0
    assert ((rewards > 0) & (rewards < 3)).all()


@pytest.fixture
def policy(tiny):
    return make_ppo(small_world(), tiny, scale=1.0).policy


def test_predict_answers_what_the_environments_show(policy, tiny):
    world = small_world()
    model = make_ppo(world, tiny, scale=1.0)
    model.policy.actor.own_bias.data[[4, 2, 9]] = torch.tensor([[18.0], [12.0], [6.0]])
    batch = model.env.reset()
    picks, state = model.predict(batch, deterministic=True)
    assert (picks.shape, state) == ((64, 3), None)
    assert (picks == [4, 2, 9]).all()
    drawn, again = model.predict(batch)[0], model.predict(batch)[0]
    assert (drawn != again).any()
    assert all(len(set(slate)) == 3 for slate in drawn.tolist())
    env = RecommendEnv(world)
    observation, _ = env.reset(seed=0)
    pick, _ = model.predict(observation, deterministic=True)
    assert pick.tolist() == [4, 2, 9]
    assert env.step(pick)[4]["empty_slots"] == 0


def test_a_candidate_that_is_not_eligible_is_not_predicted(policy):
    observation, _ = RecommendEnv(small_world()).reset(seed=0)
    observation["mask"][:] = 0
    observation["mask"][[3, 11]] = 1
    pick, _ = policy.predict(observation)
    assert sorted(pick.tolist()) == [-1, 3, 11]
    assert pick[2] == -1, "the last slot stays empty"


def test_parts_of_the_policy_agree(policy):
    env_observation = make_observation(16)
    with torch.no_grad():
        picks, values, log_prob = policy(env_observation)
        again, same_log_prob, entropy = policy.evaluate_actions(env_observation, picks.float())  # as minibatches bring
        distribution = policy.get_distribution(env_observation)
    torch.testing.assert_close(values, again)
    torch.testing.assert_close(values, policy.predict_values(env_observation).detach())
    torch.testing.assert_close(log_prob, same_log_prob)
    torch.testing.assert_close(log_prob, distribution.log_prob(picks).detach())
    torch.testing.assert_close(entropy, distribution.entropy().detach())
    assert torch.equal(policy(env_observation, deterministic=True)[0], distribution.mode())
    assert (values.shape, log_prob.shape, entropy.shape) == ((16, 1), (16,), (16,))
    drawn, its_log_prob = distribution.log_prob_from_params()
    torch.testing.assert_close(its_log_prob, distribution.log_prob(drawn))


def make_observation(n):
    context = small_world().arrive(n, torch.Generator().manual_seed(0)).context
    return {name: getattr(context, name) for name in ("shopper", "candidates", "mask", "affinity")}


def test_gradient_of_the_entropy_of_one_slot_is_exact():
    logits = torch.tensor([[1.0, -0.5, 0.25, 0.0]], requires_grad=True)
    distribution = SlateDistribution(PlackettLuce(logits, torch.ones(1, 4, dtype=torch.bool), 1), torch.Generator())
    distribution.log_prob(torch.tensor([[2]]))
    distribution.entropy().sum().backward()
    p = logits.detach().softmax(1)
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(logits.grad, -p * (p.log() + entropy))


def test_entropy_pulls_the_likeliest_item_down_where_log_prob_pulls_nowhere():
    """The gradient of -log_prob has mean 0, so that PPO's stand-in for an entropy would not explore."""
    n = 20_000
    logits = torch.tensor([2.0, 0.0, 0.0, -1.0], requires_grad=True)
    pages = PlackettLuce(logits.expand(n, 4), torch.ones(n, 4, dtype=torch.bool), 2)
    distribution = SlateDistribution(pages, torch.Generator().manual_seed(0))
    picks = distribution.sample()
    distribution.entropy().mean().backward(retain_graph=True)
    useful, logits.grad = logits.grad.clone(), None
    (-distribution.log_prob(picks)).mean().backward()
    assert useful[0] < -0.1
    assert (useful[1:] > 0).all()
    assert logits.grad.abs().max() < 0.02


def test_training_for_entropy_alone_flattens_the_actor(staying, tiny):
    config = dataclasses.replace(tiny, entropy=10.0, learning_rate=1e-2)
    model = make_ppo(staying, config, scale=1e-6)
    model.policy.actor.own_bias.data[3] = 3.0
    before = entropy_of(model.policy)
    model.learn(1024)
    assert before < entropy_of(model.policy) - 0.1


def entropy_of(policy):
    observation = make_observation(500)
    with torch.no_grad():
        return float(policy.evaluate_actions(observation, policy(observation)[0])[2].mean())


def filled_buffer(seed):
    world = small_world()
    spaces = observation_space(world), action_space(world)
    buffer = SeededRolloutBuffer(3, *spaces, device="cpu", n_envs=4, seed=seed)
    for t in range(3):
        observation = {name: np.stack([space.sample()] * 4) for name, space in spaces[0].items()}
        row = torch.arange(4.0) + 4 * t
        action = np.tile(row.numpy()[:, None], (1, 3))
        buffer.add(observation, action, row.numpy(), np.zeros(4), row[:, None], row)
    return buffer


@pytest.mark.usefixtures("nothing_global")
def test_buffer_deals_out_every_page_once_in_an_order_of_its_own():
    buffer = filled_buffer(seed=0)
    orders = []
    for _ in range(2):
        batches = list(buffer.get(5))
        assert [len(batch.actions) for batch in batches] == [5, 5, 2]
        for batch in batches:
            assert torch.equal(batch.old_values, batch.old_log_prob)
            assert torch.equal(batch.old_values, batch.actions[:, 0])
        orders.append(torch.cat([batch.old_values for batch in batches]).tolist())
        assert sorted(orders[-1]) == list(range(12))
    assert orders[0] != orders[1]
    same, other = (next(filled_buffer(seed).get()).old_values.tolist() for seed in (0, 1))
    assert same == orders[0] != other
