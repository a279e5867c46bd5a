"""The gradient steps of PPO over whole pages: its loss, and Adam on weights that lie in one piece of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor, nn

FIGURES = ("policy_gradient_loss", "clip_fraction", "approx_kl", "value_loss", "entropy_loss", "loss")
"""What a step tells, in the order in which it does."""


class Evaluated(Protocol):
    """A policy as a step sees it; see `hawker.agents.page_ppo.PageActorCriticPolicy`."""

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, log-probabilities of parts and entropies."""
        ...

    def predict_values(self, obs: Any) -> Tensor:
        """Return values."""
        ...


@dataclass(frozen=True)
class Loss:
    """PPO's clipped loss (Schulman et al. 2017, arXiv 1707.06347), a mean over the parts of pages.

    Attributes:
        clip: Range of the probability ratio of a part.
        entropy: Weight of the entropy.
        value: Weight of the values' mean squared error.
        actor_learns: Otherwise nothing but the values is looked at: advantages are 0, and so are the actor's gradients.
    """

    clip: float
    entropy: float
    value: float
    actor_learns: bool

    def of(self, policy: Evaluated, pages: DictRolloutBufferSamples) -> tuple[Tensor, Tensor]:
        """Return the loss of a minibatch, and its ``FIGURES``, shape (6,)."""
        if not self.actor_learns:
            missed = _missed(policy.predict_values(pages.observations), pages)
            none = torch.zeros_like(missed)
            return self.value * missed, torch.stack([none, none, none, missed, none, self.value * missed]).detach()
        values, log_probs, entropy = policy.evaluate_actions(pages.observations, pages.actions)
        moved = log_probs - pages.old_log_prob
        ratio = moved.exp()
        held = ratio.clamp(1 - self.clip, 1 + self.clip)
        gained = -torch.min(pages.advantages * ratio, pages.advantages * held).mean()
        missed, flat = _missed(values, pages), -entropy.mean()
        loss = gained + self.entropy * flat + self.value * missed
        with torch.no_grad():
            outside, apart = (ratio != held).float().mean(), (ratio - 1 - moved).mean()
            return loss, torch.stack([gained, outside, apart, missed, flat, loss])


def _missed(values: Tensor, pages: DictRolloutBufferSamples) -> Tensor:
    """Return the mean squared error of values (B, 1 + K)."""
    return nn.functional.mse_loss(values, pages.returns.reshape(values.shape))


class FlatAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) on weights that become views of one piece of memory.

    It steps through hundreds of thousands of numbers at once instead of dozens of weights in turn, and so does clipping
    of the gradient's norm.

    Attributes:
        optimizer: With the piece as its only weight.
        beside: A tensor that is not stepped, whose gradients add up in its ``grad``; None: there is none.
    """

    def __init__(self, weights: list[nn.Parameter], rate: float) -> None:
        """Lay out weights, which keep their values, and must not move to another device after that."""
        self._weights, self._flat = weights, nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
        parts = self._flat.detach().split([weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part.view_as(weight)
        self.optimizer = torch.optim.Adam([self._flat], lr=rate, eps=1e-5, fused=True)
        self.beside: Tensor | None = None

    def step(self, loss: Tensor, largest: float) -> None:
        """Follow the gradient of a loss, shortened to a norm of ``largest``; 0 in what the loss does not depend on."""
        watched = [] if self.beside is None else [self.beside]
        parts = torch.autograd.grad(loss, [*self._weights, *watched], materialize_grads=True)
        for tensor, part in zip(watched, parts[len(self._weights) :], strict=True):
            tensor.grad = part if tensor.grad is None else tensor.grad + part
        gradient = torch.cat([part.reshape(-1) for part in parts[: len(self._weights)]])
        norm = torch.linalg.vector_norm(gradient)
        self._flat.grad = gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
