"""A gradient step is PPO's and Adam's, whatever the weights lie in."""

import copy

import pytest
import torch
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import nn

from hawker.agents.page_step import FIGURES, FlatAdam, Loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
    with torch.no_grad():
        for i, weight in enumerate(made.parameters()):
            weight.copy_(drawn(*weight.shape, seed=i))
    return made


@pytest.mark.parametrize("largest", [0.1, 1e6], ids=["clipped", "as it is"])
def test_a_flat_step_is_a_step_weight_by_weight(largest: float):
    flat, plain = layers(), layers()
    adam = FlatAdam(list(flat.parameters()), 0.01)
    expected = torch.optim.Adam(plain.parameters(), lr=0.01, eps=1e-5)
    for turn in range(4):
        batch = drawn(8, 3, seed=10 + turn)
        adam.step(flat(batch).square().mean(), largest)
        expected.zero_grad()
        plain(batch).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), largest)
        expected.step()
        for one, other in zip(flat.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other)
    assert all(torch.equal(value, flat.state_dict()[name]) for name, value in copy.deepcopy(flat).state_dict().items())


def test_what_a_loss_does_not_depend_on_stays():
    first, second = layers(), layers()
    adam = FlatAdam([*first.parameters(), *second.parameters()], 0.01)
    adam.step(first(drawn(4, 3)).square().mean(), 1.0)
    before = [weight.clone() for weight in layers().parameters()]
    assert all(torch.equal(one, other) for one, other in zip(second.parameters(), before, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first.parameters(), before, strict=True))


def test_gradients_beside_add_up_and_change_no_step():
    flat, plain = layers(), layers()
    adam, without = FlatAdam(list(flat.parameters()), 0.01), FlatAdam(list(plain.parameters()), 0.01)
    adam.beside, expected = drawn(4, 3, seed=5).requires_grad_(), torch.zeros(4, 3)
    for _ in range(3):
        own = adam.beside.detach().requires_grad_()
        expected += torch.autograd.grad(flat(own).square().mean(), own)[0]
        adam.step(flat(adam.beside).square().mean(), 1e-3)
        without.step(plain(own.detach()).square().mean(), 1e-3)
    torch.testing.assert_close(adam.beside.grad, expected)
    assert all(torch.equal(one, other) for one, other in zip(flat.parameters(), plain.parameters(), strict=True))
    adam.step(flat(drawn(4, 3)).square().mean(), 1e-3)
    torch.testing.assert_close(adam.beside.grad, expected, msg="a loss that does not depend on it adds nothing")


class Told:
    """A policy that says what it was told."""

    def __init__(self, values, log_probs, entropy):
        self.said = values, log_probs, entropy

    def evaluate_actions(self, obs, actions):
        """Return all of it."""
        return self.said

    def predict_values(self, obs):
        """Return the values."""
        return self.said[0]


def pages(
    log_probs: list[list[float]], advantages: list[list[float]], returns: list[float]
) -> DictRolloutBufferSamples:
    old, credit, returned = map(torch.tensor, (log_probs, advantages, returns))
    return DictRolloutBufferSamples({}, torch.zeros(2, 1), torch.zeros(4), old, credit, returned)


def test_the_loss_by_hand():
    """Two pages of two parts: ratios 1, 2, 0.5 and 1.1; values of a page and one slot."""
    moved = torch.tensor([[1.0, 2.0], [0.5, 1.1]]).log()
    policy = Told(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), moved - 3.0, torch.tensor([4.0, 6.0]))
    batch = pages([[-3.0, -3.0], [-3.0, -3.0]], [[1.0, 1.0], [-1.0, -1.0]], [1.0, 0.0, 1.0, 1.0])
    found, figures = Loss(clip=0.2, entropy=0.1, value=0.5, actor_learns=True).of(policy, batch)
    gained = -(1.0 + 1.2 - 0.8 - 1.1) / 4
    told = dict(zip(FIGURES, figures.tolist(), strict=True))
    assert told["policy_gradient_loss"] == pytest.approx(gained)
    assert told["clip_fraction"] == 0.5
    assert told["approx_kl"] == pytest.approx(float((moved.exp() - 1 - moved).mean()), rel=1e-5)
    assert told["value_loss"] == pytest.approx((4 + 1) / 4)
    assert told["entropy_loss"] == -5.0
    assert told["loss"] == pytest.approx(gained - 0.5 + 0.5 * 5 / 4)
    assert float(found) == told["loss"]


def test_where_the_actor_does_not_learn_values_alone_are_looked_at():
    policy = Told(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), None, None)
    batch = pages([[0.0], [0.0]], [[0.0], [0.0]], [1.0, 0.0, 1.0, 1.0])
    found, figures = Loss(clip=0.2, entropy=0.1, value=0.5, actor_learns=False).of(policy, batch)
    assert float(found) == pytest.approx(0.5 * 5 / 4)
    assert figures.tolist() == pytest.approx([0, 0, 0, 5 / 4, 0, 0.5 * 5 / 4])
