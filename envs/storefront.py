"""The storefront: a batch of simulated shoppers as a Gymnasium environment."""

from __future__ import annotations

from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from hawker.policies.protocol import slate_of
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers, World

Array: TypeAlias = npt.NDArray[Any]
Observation: TypeAlias = dict[str, Array]

LIMIT = 1e30
"""Bound of a feature in the observation space: features are in the units of the logs, and Gymnasium wants a bound."""


def observation_space(world: World) -> spaces.Space[Any]:
    """Return the space of one shopper's context; see the environments' docstrings."""
    n_items, choices, width = len(world.builder.catalog), world.choices, world.builder.shopper.width
    return spaces.Dict(
        {
            "shopper": spaces.Box(-LIMIT, LIMIT, (width,), np.float32),
            "candidates": spaces.Box(0, max(n_items - 1, 0), (choices,), np.int64),
            "mask": spaces.MultiBinary(choices),
            "affinity": spaces.Box(-LIMIT, LIMIT, (choices,), np.float32),
        }
    )


def action_space(world: World) -> spaces.MultiDiscrete:
    """Return the space of one slate: K places in the candidate list."""
    return spaces.MultiDiscrete([world.choices] * world.size)


class Storefront:
    """N shoppers of a world, one page each per step, as tensors; the environments below put it into their forms.

    Attributes:
        world: What answers.
        n: Shoppers in the batch.
        shoppers: The batch at its current page; there is none before the first ``reset``.
        generator: Source of everything that is drawn.
    """

    shoppers: Shoppers

    def __init__(self, world: World, n: int, reward: RewardSpec) -> None:
        if n < 1:
            raise InputError("no shoppers", where="num_envs", got=n, expected="at least 1")
        self.world, self.n, self._reward = world, n, reward
        self.generator = torch.Generator(world.device)

    def reset(self, seed: int | None) -> Context[Tensor]:
        """Replace all shoppers by new ones, reseeding the generator first where a seed is given."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.shoppers = self.world.arrive(self.n, self.generator)
        return self.shoppers.context

    def step(self, picks: Tensor) -> tuple[Context[Tensor], Tensor, Tensor, dict[str, Tensor]]:
        """Show a slate to every shopper.

        Args:
            picks: Places in the candidate list, shape (N, K); ``EMPTY`` leaves a slot empty, and so does a place that
                is not eligible or already shown further up.

        Returns:
            The next page's contexts, with new shoppers where old ones are gone; the rewards (N,); who is gone (N,);
            and what happened, each (N,): the reward's parts, "clicks", "empty_slots".
        """
        slate = slate_of(self.shoppers.context, first_picks(picks, self.shoppers.context.mask))
        # Worlds do not look at the probability with which a slate was chosen.
        decision = Decision(slate, torch.zeros(self.n, device=self.world.device))
        after, outcome = self.world.respond(self.shoppers, decision, self.generator)
        parts = self._reward.components(outcome)
        reward = torch.stack(list(parts.values())).sum(0)
        fresh = self.world.arrive(self.n, self.generator)
        self.shoppers = after.replaced(outcome.gone, fresh)
        happened = {f"reward_{name}": part for name, part in parts.items()}
        happened["clicks"] = outcome.clicked.sum(1)
        happened["empty_slots"] = (slate == EMPTY).sum(1)
        return self.shoppers.context, reward, outcome.gone, happened

    def picks(self, actions: Array) -> Tensor:
        """Return N actions as picks for ``step``.

        Raises:
            InputError: They are not N times K integers.
        """
        picks, shape = np.asarray(actions), (self.n, self.world.size)
        if picks.shape != shape or not np.issubdtype(picks.dtype, np.integer):
            got = f"{picks.dtype} of shape {picks.shape}"
            raise InputError("bad action", where="step", got=got, expected=f"integers of shape {shape}")
        return torch.as_tensor(picks, device=self.world.device, dtype=torch.long)


def first_picks(picks: Tensor, mask: Tensor) -> Tensor:
    """Return the picks with every repeat and every ineligible place emptied: shapes (N, K), (N, C) to (N, K)."""
    outside = (picks < 0) | (picks >= mask.shape[1])
    places = picks.masked_fill(outside, 0)
    same = (places[:, :, None] == places[:, None, :]) & ~outside[:, None, :]
    repeated = same.tril(diagonal=-1).any(2)
    return places.masked_fill(outside | repeated | ~mask.gather(1, places), EMPTY)


def to_observation(context: Context[Tensor]) -> Observation:
    """Return a context as the environments' observation: a dict of arrays with a leading axis N."""
    arrays = context.map(lambda array: array.cpu().numpy())
    return {
        "shopper": arrays.shopper,
        "candidates": arrays.candidates,
        "mask": arrays.mask.astype(np.int8),
        "affinity": arrays.affinity,
    }


class RecommendVectorEnv(VectorEnv[Observation, Array, Array]):
    """``hawker/Recommend-v0`` for N shoppers at once: the real environment; ``RecommendEnv`` is N = 1 of it.

    Spaces, rewards and information are those of ``RecommendEnv`` with a leading axis N. A shopper who is gone is
    replaced in the same step; as nothing of them is left to see, their last observation is the page they answered.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        world: World | None = None,
        reward: RewardSpec | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.storefront = Storefront(world or small_world(), num_envs, reward or RewardSpec())
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = observation_space(self.storefront.world)
        self.single_action_space = action_space(self.storefront.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start N new shoppers; ``seed`` is one integer for the batch, or a list whose first entry is taken."""
        first = seed[0] if isinstance(seed, (list, tuple)) else seed
        super().reset(seed=first)
        context = self.storefront.reset(_seed_from(self, first))
        return _owned(to_observation(context)), {}

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Show N slates; arrays with a leading axis N."""
        answered = self.storefront.shoppers.context
        context, reward, gone, happened = self.storefront.step(self.storefront.picks(actions))
        info: dict[str, Any] = {name: value.cpu().numpy() for name, value in happened.items()}
        terminated = gone.cpu().numpy()
        if terminated.any():
            last = _owned(to_observation(answered))
            info["final_obs"] = np.full(self.num_envs, None, object)  # Gymnasium's form: one observation each
            for i in np.flatnonzero(terminated):
                info["final_obs"][i] = {name: array[i] for name, array in last.items()}
            info["_final_obs"] = terminated
        truncated = np.zeros(self.num_envs, bool)
        return _owned(to_observation(context)), reward.cpu().numpy().astype(np.float64), terminated, truncated, info

    def render(self) -> tuple[str, ...] | None:
        """Return each shopper's page as text."""
        return tuple(describe(self.storefront, i) for i in range(self.num_envs)) if self.render_mode else None


class RecommendEnv(gym.Env[Observation, Array]):
    """Choose what to recommend to one shopper: ``hawker/Recommend-v0``.

    ## Action Space
    ``MultiDiscrete([C] * K)``: for each of the K slots, from the top, a place in the candidate list. A place that is
    not eligible, or already taken further up, leaves its slot empty.

    ## Observation Space
    ``Dict``: ``shopper`` (D,) encoded features and hour of day, in the units of the logs; ``candidates`` (C,) catalog
    indices; ``mask`` (C,) 1 where a candidate is eligible; ``affinity`` (C,) with each candidate, 0 where unknown.

    ## Starting State
    A shopper drawn from the contexts of the logs.

    ## Rewards
    ``RewardSpec`` of the page, by default the expected number of clicks, between 0 and K.

    ## Episode End
    Terminated when the shopper is gone. Shoppers learned from logs without returns are gone after their page. Never
    truncated by itself; ``gymnasium.make(max_episode_steps=...)`` truncates.

    ## Information
    ``step``: ``reward_*`` the parts of the reward, ``clicks`` how many positions were clicked, ``empty_slots``.

    ## Arguments
    ``world``: what answers; by default a small shop with planted effects. ``reward``: a ``RewardSpec``.

    ## References
    Ie et al. (2019), RecSim, arXiv 1909.04847, for slates as actions; the shoppers are Hawker's own.

    ## Version History
    v0: slates only.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self, world: World | None = None, reward: RewardSpec | None = None, render_mode: str | None = None
    ) -> None:
        self._storefront = Storefront(world or small_world(), 1, reward or RewardSpec())
        self.render_mode = render_mode
        self.observation_space = observation_space(self._storefront.world)
        self.action_space = action_space(self._storefront.world)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new shopper."""
        super().reset(seed=seed)
        return _single(to_observation(self._storefront.reset(_seed_from(self, seed)))), {}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show one slate.

        Raises:
            InputError: The action is not K integers.
        """
        picks = self._storefront.picks(np.asarray(action)[None])
        answered = self._storefront.shoppers.context
        context, reward, gone, happened = self._storefront.step(picks)
        terminated = bool(gone)
        # The next shopper belongs to the next episode: the last observation stays with the one who is gone.
        observation = to_observation(answered if terminated else context)
        info = {name: float(value) for name, value in happened.items()}
        return _single(observation), float(reward), terminated, False, info

    def render(self) -> str | None:
        """Return the shopper's page as text."""
        return describe(self._storefront, 0) if self.render_mode == "ansi" else None


def describe(storefront: Storefront, i: int) -> str:
    """Return shopper ``i``'s page as text: features that are not zero, eligible candidates, known affinities."""
    builder, context = storefront.world.builder, storefront.shoppers.context.map(lambda array: array[i].cpu().numpy())
    names = [*builder.shopper.numeric]
    names += [f"{column}={value}" for column, values in builder.shopper.categories.items() for value in values]
    shopper = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, context.shopper, strict=True) if value)
    liked = [builder.catalog.item_ids[item] for item in context.candidates[context.affinity > 0]]
    return "\n".join(
        (
            f"shopper: {shopper}",
            f"candidates: {int(context.mask.sum())} of {len(builder.catalog)} items",
            f"affinity with: {', '.join(liked) or 'none'}",
        )
    )


def _seed_from(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], seed: int | None) -> int | None:
    """Without a seed the first reset draws one from the environment's own generator; later resets go on."""
    return seed if seed is not None else int(env.np_random.integers(2**62))


def _owned(observation: Observation) -> Observation:
    """A copy: whoever normalises what they were given in place must not change the shoppers."""
    return {name: array.copy() for name, array in observation.items()}


def _single(observation: Observation) -> Observation:
    return {name: array[0].copy() for name, array in observation.items()}
