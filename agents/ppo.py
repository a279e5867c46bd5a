"""The slate actor under stable-baselines3's PPO: its policy, its distribution and its rollout buffer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, Schedule
from torch import Tensor, nn

from hawker.policies.slate import Linear, PlackettLuce, SlateActor, initialise
from hawker.shop.context import Context, ContextBuilder


class SlateDistribution(Distribution):
    """Plackett-Luce slates in the form that stable-baselines3 expects of a distribution."""

    def __init__(self, slates: PlackettLuce, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._slates, self._generator = slates, generator
        self._picks: Tensor | None = None

    def sample(self) -> Tensor:
        """Draw picks of shape (B, K)."""
        self._picks = self._slates.sample(self._generator)
        return self._picks

    def mode(self) -> Tensor:
        """Return the likeliest picks, shape (B, K)."""
        self._picks = self._slates.mode()
        return self._picks

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability of picks (B, K): shape (B,)."""
        self._picks = actions.long()  # minibatches bring them as floats
        return self._slates.log_prob(self._picks)

    def entropy(self) -> Tensor:
        """Return the conditional entropies summed along the picks last seen, shape (B,).

        None instead would make PPO use -log_prob, whose gradient has mean zero.
        """
        assert self._picks is not None, "call log_prob or sample first"
        return self._slates.entropy(self._picks)

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not used: the actor is the network."""
        raise TypeError("the slate actor makes the logits")

    def proba_distribution(self, *args: Any, **kwargs: Any) -> SlateDistribution:
        """Return the distribution, which has its logits from the start."""
        return self

    def actions_from_params(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw picks of shape (B, K)."""
        return self.sample()

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Draw picks of shape (B, K) and return them with their log-probabilities (B,)."""
        picks = self.sample()
        return picks, self._slates.log_prob(picks)


class SlateActorCriticPolicy(ActorCriticPolicy):
    """The slate actor with a critic on the shopper's features; takes the observations of ``hawker/Recommend-v0``.

    Attributes:
        actor: Scores the candidates.
        critic: Estimates the value of a page, from (B, D) to (B, 1).
        generator: Source of the drawn slates.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        builder: ContextBuilder,
        size: int,
        hidden: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Args: the spaces and schedule that PPO hands over; the shop's builder, slots K, width, seed and device."""
        self._shape = (builder, size, hidden)
        self._seed, self._device = seed, device
        super().__init__(observation_space, action_space, lr_schedule, use_sde=use_sde)

    def _build(self, lr_schedule: Schedule) -> None:
        builder, size, hidden = self._shape
        generator = torch.Generator().manual_seed(self._seed)
        self.actor = SlateActor(builder, size, hidden, generator)
        value = Linear(hidden, 1)
        self.critic = nn.Sequential(Linear(builder.shopper.width, hidden), nn.Tanh(), value)
        initialise(self.critic, generator)
        nn.init.zeros_(value.weight)  # or its first guesses would drown the differences between slates
        self.generator = torch.Generator(self._device).manual_seed(self._seed)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def _context(self, obs: Any) -> Context[Tensor]:
        return Context(obs["shopper"], obs["candidates"], obs["mask"].bool(), obs["affinity"])

    def get_distribution(self, obs: Any) -> SlateDistribution:
        """Return the distribution over slates for observations."""
        context = self._context(obs)
        return SlateDistribution(PlackettLuce(self.actor(context), context.mask, self.actor.size), self.generator)

    def predict_values(self, obs: Any) -> Tensor:
        """Return the value of each page, shape (B, 1)."""
        values: Tensor = self.critic((obs["shopper"] - self.actor.shopper_centre) / self.actor.shopper_spread)
        return values

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return picks (B, K), values (B, 1) and log-probabilities (B,)."""
        distribution = self.get_distribution(obs)
        picks = distribution.get_actions(deterministic=deterministic)
        return picks, self.predict_values(obs), distribution.log_prob(picks)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (B, 1), log-probabilities (B,) and entropies (B,) of picks (B, K)."""
        distribution = self.get_distribution(obs)
        log_prob = distribution.log_prob(actions)
        return self.predict_values(obs), log_prob, distribution.entropy()


class SeededRolloutBuffer(DictRolloutBuffer):
    """stable-baselines3's buffer, shuffled by its own generator instead of NumPy's global one.

    Attributes:
        generator: Source of the order of minibatches.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        self.generator = np.random.default_rng(seed)
        super().__init__(*args, **kwargs)

    def get(  # type: ignore[override]  # as its parent does
        self, batch_size: int | None = None
    ) -> Generator[DictRolloutBufferSamples, None, None]:
        """Yield the rollout in shuffled minibatches."""
        if not self.generator_ready:
            self.observations = {key: self.swap_and_flatten(value) for key, value in self.observations.items()}
            for name in ("actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        order = self.generator.permutation(self.buffer_size * self.n_envs)
        step = batch_size or len(order)
        for start in range(0, len(order), step):
            yield self._get_samples(order[start : start + step])
