"""The rollouts that PPO over whole pages learns from: tensors on one device, their returns and what earned them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor, nn

Observation = dict[str, Tensor]
"""N pages as the storefront shows them, each (N, ...)."""

Critic = Callable[[Observation], Tensor]
"""What estimates the values of pages, (N, 1 + K)."""


class ReturnScale(nn.Module):
    """The root mean square of discounted returns so far: the unit in which the critic learns.

    Attributes:
        square: Mean square of the returns, shape ().
        first: Root mean square of the first rollout's returns, shape ().
        count: Returns seen, shape ().
        carried: Each shopper's return up to the last page, shape (N,).
    """

    square: Tensor
    first: Tensor
    count: Tensor
    carried: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("square", torch.ones((), dtype=torch.float64))
        self.register_buffer("first", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("carried", torch.zeros(n))

    @property
    def unit(self) -> Tensor:
        """What to divide rewards by, shape ()."""
        return self.square.sqrt().clamp(min=1e-8).float()

    def update(self, rewards: Tensor, discounts: Tensor, ended: Tensor) -> None:
        """Take in a rollout: rewards, discounts of what follows and where episodes ended, (T, N) each."""
        squares = torch.zeros_like(self.square)
        for reward, kept in zip(rewards, discounts * ~ended, strict=True):
            self.carried = self.carried + reward
            squares += self.carried.double().square().sum()
            self.carried = self.carried * kept
        total = self.count + rewards.numel()
        self.square = torch.where(self.count > 0, self.square * (self.count / total), 0.0) + squares / total
        self.first = torch.where(self.count > 0, self.first, self.unit)
        self.count = total


class TensorRolloutBuffer(DictRolloutBuffer):
    """A rollout of T pages of N shoppers as tensors on one device, in memory that every rollout uses again.

    Whole numbers take the smallest type that holds their space. ``rewards``, ``values`` and ``returns`` are NumPy
    arrays (T, N) for reports, from the moment the rollout is complete.

    Attributes:
        generator: Source of the order of minibatches, on the device.
    """

    def __init__(self, *args: Any, seed: int, normalise: bool, slot_by_slot: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._normalise, self._slot_by_slot = normalise, slot_by_slot
        self._kept: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new rollout."""
        self.pos, self.full, self.generator_ready = 0, False, False

    def put(self, observation: Observation, **page: Tensor) -> None:
        """Keep one page of every shopper.

        Args:
            observation: What was seen, each (N, ...).
            page: ``actions`` (N, width); ``rewards``, ``penalties`` (what they lose for breaking constraints),
                ``discounts``, ``ended`` and ``cut_off`` (where an episode did, and where the horizon ended it), (N,)
                each; ``chances`` (N, 2): by how much leaving and coming back went otherwise than expected; ``slots``
                (what each earned by itself, (N, K)) and ``log_probs`` (N, P); ``next.NAME``: what there was to see
                where an episode was cut off, as far as values are estimated from it.
        """
        for name, value in ({f"obs.{name}": value for name, value in observation.items()} | page).items():
            if name not in self._kept:
                shape, dtype = (self.buffer_size, *value.shape), self._type(name, value)
                self._kept[name] = torch.empty(shape, dtype=dtype, device=self.device)
            self._kept[name][self.pos].copy_(value)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _type(self, name: str, value: Tensor) -> torch.dtype:
        if value.dtype not in (torch.int64, torch.int32):
            return value.dtype
        if name == "actions":
            assert isinstance(self.action_space, spaces.MultiDiscrete)
            largest = int(self.action_space.nvec.max())
        elif name == "obs.candidates":
            space = self.observation_space["candidates"]
            assert isinstance(space, spaces.Box)
            largest = int(space.high.max())
        else:
            return value.dtype
        return torch.int16 if largest < 2**15 else torch.int32

    def estimate(self, critic: Critic) -> None:
        """Put down the values of all pages and of what was cut off: in large batches, which is less work."""
        kept, shape = self._kept, (self.buffer_size, self.n_envs)
        seen, after = (
            {name.removeprefix(prefix): value.flatten(0, 1) for name, value in kept.items() if name.startswith(prefix)}
            for prefix in ("obs.", "next.")
        )
        chunks = zip(*(value.split(CHUNK) for value in seen.values()), strict=True)
        values = torch.cat([critic(dict(zip(seen, chunk, strict=True))) for chunk in chunks]).unflatten(0, shape)
        bootstraps = torch.zeros_like(values[:, :, 0])
        if after:
            rows = kept["cut_off"].flatten().nonzero().squeeze(1)
            bootstraps.view(-1)[rows] = critic({name: value[rows] for name, value in after.items()})[:, 0]
        for name, value in (("values", values), ("bootstraps", bootstraps)):
            kept.setdefault(name, torch.empty_like(value)).copy_(value)

    def finish(self, last_values: Tensor, returns: ReturnScale, actor_learns: bool) -> None:
        """Compute returns and advantages once the rollout is full.

        Args:
            last_values: Of the pages after the last, shape (N,).
            returns: Takes in the rollout, and then says in what unit rewards are.
            actor_learns: Otherwise no part of a page has an advantage.
        """
        kept = self._kept
        ended, earned = kept["ended"], kept["rewards"] - kept["penalties"]
        values, expected = kept["values"][:, :, 0], kept["values"][:, :, 1:]
        discounts = kept["discounts"] * self.gamma
        returns.update(earned, discounts, ended)
        on = discounts * ~ended
        after = torch.cat([values[1:], last_values[None]])
        delta = earned / returns.unit + discounts * kept["bootstraps"] + on * after - values
        delta = delta - _luck(delta, torch.cat([kept["chances"], kept["chances"] * values[:, :, None]], 2))
        advantages, ahead = torch.empty_like(delta), torch.zeros_like(last_values)
        for t in reversed(range(self.buffer_size)):
            ahead = delta[t] + self.gae_lambda * on[t] * ahead
            advantages[t] = ahead
        slots = kept["slots"] / returns.unit
        kept["returns"] = torch.cat([(advantages + values)[:, :, None], slots], 2)
        spread = advantages.std() + 1e-8 if self._normalise else returns.first / returns.unit
        credit = self._credit((advantages - advantages.mean()) / spread, (slots - expected) / spread)
        kept["advantages"] = credit * actor_learns
        for name, value in (("rewards", kept["rewards"]), ("values", values), ("returns", kept["returns"][:, :, 0])):
            setattr(self, name, value.cpu().numpy())

    def _credit(self, advantages: Tensor, surprises: Tensor) -> Tensor:
        """Return the advantage of each part of a page, shape (T, N, P).

        A line changes what its own slot earns and what comes after the page, not what other slots earn: those are
        noise to it, and are taken out. The other parts get the page's.

        Args:
            advantages: Of whole pages, shape (T, N).
            surprises: What each slot earned beyond what was expected, shape (T, N, K).
        """
        parts = self._kept["log_probs"].shape[2]
        credit = advantages[:, :, None].expand(-1, -1, parts)
        if self._slot_by_slot:
            size = surprises.shape[2]
            others = surprises.sum(2, keepdim=True) - surprises
            credit = torch.cat([credit[:, :, size:], credit[:, :, :size] - others], 2)
        return credit * parts  # the loss is a mean over them

    def get(  # type: ignore[override]  # as its parent does
        self, batch_size: int | None = None
    ) -> Generator[DictRolloutBufferSamples, None, None]:
        """Yield the rollout in shuffled minibatches."""
        assert self.full
        order = torch.randperm(self.buffer_size * self.n_envs, generator=self.generator, device=self.device)
        kept = {name: value.flatten(0, 1) for name, value in self._kept.items() if _is_learned_from(name)}
        for rows in order.split(batch_size or len(order)):
            part = {name: value.index_select(0, rows) for name, value in kept.items()}
            yield DictRolloutBufferSamples(
                {name.removeprefix("obs."): value for name, value in part.items() if name.startswith("obs.")},
                part["actions"].long(),
                part["values"].flatten(),
                part["log_probs"],
                part["advantages"],
                part["returns"].flatten(),
            )


def _is_learned_from(name: str) -> bool:
    return name not in UNUSED and not name.startswith("next.")


UNUSED = ("rewards", "slots", "chances", "penalties", "discounts", "ended", "cut_off", "bootstraps")
"""What of a rollout no gradient step needs."""

CHUNK = 2_048
"""Pages whose values are estimated at a time."""


def _luck(delta: Tensor, chances: Tensor) -> Tensor:
    """Return the part of temporal differences (T, N) that chances (T, N, m) explain, by least squares.

    A page moves the probabilities that a visit ends and that the next one comes, a little; the draws from them move the
    value a lot. Taking out what is only luck leaves the expectation as it is (a control variate).
    """
    x = chances.flatten(0, 1).double()
    normal = x.T @ x + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights: Tensor = torch.linalg.solve(normal, x.T @ delta.flatten().double())
    return (chances.double() @ weights).to(delta.dtype)
