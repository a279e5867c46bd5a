"""The storefront and its parts as Gymnasium environments, for one shopper and for N at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from hawker.envs.page import AD_PLACEMENT, COPYWRITING, RECOMMEND, STOREFRONT, Parts, Rules
from hawker.envs.render import describe
from hawker.envs.storefront import Array, Observation, Storefront, action_space, observation_space, to_observation
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.small import small_world
from hawker.simulators.world import World

MONTH = Rules(horizon=28.0)
"""The rules of the environments whose shoppers come back, where none are given."""


class StorefrontVectorEnv(VectorEnv[Observation, Array, Array]):
    """``hawker/Storefront-v0`` for N shoppers at once: the real environment; ``StorefrontEnv`` is N = 1 of it.

    Spaces, rewards and information are those of ``StorefrontEnv`` with a leading axis N. Who is gone, or has reached
    the horizon, is replaced in the same step; ``final_obs`` holds what they saw last.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    parts: ClassVar[Parts] = STOREFRONT

    def __init__(
        self,
        num_envs: int = 1,
        world: World | None = None,
        reward: RewardSpec | None = None,
        rules: Rules | None = None,
        popularity: Tensor | None = None,
        titles: Sequence[str] = (),
        render_mode: str | None = None,
    ) -> None:
        self.storefront = _storefront(self.parts, num_envs, world, reward, rules, popularity)
        self.num_envs, self.render_mode, self._titles = num_envs, render_mode, titles
        self.single_observation_space = observation_space(self.storefront.world, self.parts)
        self.single_action_space = action_space(self.storefront.world, self.parts)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start N new shoppers; ``seed`` is one integer for the batch, or a list whose first entry is taken."""
        first = seed[0] if isinstance(seed, (list, tuple)) else seed
        super().reset(seed=first)
        self.storefront.reset(_seed_from(self, first))
        return _owned(to_observation(self.storefront.observation)), {}

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Show N pages; arrays with a leading axis N.

        Raises:
            InputError: The actions are not N times A integers, or the world's rewards are no numbers.
        """
        step = self.storefront.step(self.storefront.actions(actions))
        reward = finite(step.reward.cpu().numpy().astype(np.float64))
        info: dict[str, Any] = {name: value.cpu().numpy() for name, value in step.happened.items()}
        terminated, truncated = step.terminated.cpu().numpy(), step.truncated.cpu().numpy()
        ended = terminated | truncated
        if ended.any():
            last = _owned(to_observation(self.storefront.last_observation()))
            info["final_obs"] = np.full(self.num_envs, None, object)  # Gymnasium's form: one observation each
            for i in np.flatnonzero(ended):
                info["final_obs"][i] = {name: array[i] for name, array in last.items()}
            info["_final_obs"] = ended
        return _owned(to_observation(step.observation)), reward, terminated, truncated, info

    def render(self) -> tuple[str, ...] | None:
        """Return each shopper's page as text."""
        if self.render_mode is None:
            return None
        return tuple(describe(self.storefront, i, self._titles) for i in range(self.num_envs))


class RecommendVectorEnv(StorefrontVectorEnv):
    """``hawker/Recommend-v0`` for N shoppers at once; ``RecommendEnv`` is N = 1 of it."""

    parts = RECOMMEND


class AdPlacementVectorEnv(StorefrontVectorEnv):
    """``hawker/AdPlacement-v0`` for N shoppers at once; ``AdPlacementEnv`` is N = 1 of it."""

    parts = AD_PLACEMENT


class CopywritingVectorEnv(StorefrontVectorEnv):
    """``hawker/Copywriting-v0`` for N shoppers at once; ``CopywritingEnv`` is N = 1 of it."""

    parts = COPYWRITING


class StorefrontEnv(gym.Env[Observation, Array]):
    """Decide one shopper's pages, all of them, over a month: ``hawker/Storefront-v0``.

    ## Action Space
    ``MultiDiscrete([C] * K + [C + 1] + [K] + [T] + [L + 1] * K)``: for each of the K slots, from the top, a place in
    the candidate list of C; the place of the ad's item, or C for no ad; the ad's slot; the tier of the offer, 0 for
    none; for each slot a line of the bank, or L for none. The ad takes its slot, whatever the slate has there. A place
    that is not eligible, or taken already, leaves its slot empty; an ad outside ``ad_mask`` is not shown.

    ## Observation Space
    ``Dict``: ``shopper`` (D,) encoded features and hour of day, in the units of the logs; ``candidates`` (C,) catalog
    indices; ``mask`` (C,) 1 where a candidate is eligible; ``affinity`` (C,) with each candidate, 0 where unknown;
    ``page`` (1,) number of the page in the visit, from 0; ``gap`` (1,) days since the page before; ``ad_mask`` (C,) 1
    where a candidate may be the ad: it is eligible and has a bid, and neither frequency cap nor ad load forbids it.

    ## Starting State
    A shopper whom the world lets arrive, at the first page of their first visit.

    ## Rewards
    ``RewardSpec`` of the page, by default the expected number of clicks, between 0 and K.

    ## Episode End
    Terminated when the world says that the shopper is gone for good. Truncated when the next visit would begin
    ``rules.horizon`` days or more after the first, by default 28.

    ## Information
    ``step``: ``reward_*`` the parts of the reward, costs negative; ``clicks`` how many positions were clicked,
    ``empty_slots``, ``refused`` choices outside the masks, ``ads`` shown, ``day`` of the episode, ``discount`` the
    factor on later rewards.

    ## Arguments
    ``world``: what answers; by default a small shop of the gold world `bazaar`. ``reward``: a ``RewardSpec``.
    ``rules``: ``Rules``, by default a horizon of 28 days. ``titles``: what ``render`` calls the items.

    ## References
    Ie et al. (2019), RecSim, arXiv 1909.04847, for slates as actions; the shoppers are Hawker's own.

    ## Version History
    v0: slate, one ad, one offer, lines from a bank.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012
    parts: ClassVar[Parts] = STOREFRONT

    def __init__(
        self,
        world: World | None = None,
        reward: RewardSpec | None = None,
        rules: Rules | None = None,
        popularity: Tensor | None = None,
        titles: Sequence[str] = (),
        render_mode: str | None = None,
    ) -> None:
        self._storefront = _storefront(self.parts, 1, world, reward, rules, popularity)
        self.render_mode, self._titles = render_mode, titles
        self.observation_space = observation_space(self._storefront.world, self.parts)
        self.action_space = action_space(self._storefront.world, self.parts)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new shopper."""
        super().reset(seed=seed)
        self._storefront.reset(_seed_from(self, seed))
        return _single(to_observation(self._storefront.observation)), {}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show one page.

        Raises:
            InputError: The action is not A integers, or the world's reward is no number.
        """
        step = self._storefront.step(self._storefront.actions(np.asarray(action)[None]))
        reward = finite(step.reward.cpu().numpy().astype(np.float64))
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        # The next shopper belongs to the next episode: the last observation stays with the one whose episode ended.
        seen = self._storefront.last_observation() if terminated or truncated else step.observation
        info = {name: float(value) for name, value in step.happened.items()}
        return _single(to_observation(seen)), float(reward[0]), terminated, truncated, info

    def render(self) -> str | None:
        """Return the shopper's page as text."""
        return describe(self._storefront, 0, self._titles) if self.render_mode == "ansi" else None


class RecommendEnv(StorefrontEnv):
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
    Terminated when the shopper is gone. Shoppers learned from logs without returns are gone after their page.
    Truncated when the next visit would begin ``rules.horizon`` days or more after the first; by default never.

    ## Information
    As of ``hawker/Storefront-v0``.

    ## Arguments
    ``world``: what answers; by default a small shop with planted effects. ``reward``: a ``RewardSpec``. ``rules``:
    ``Rules``. ``titles``: what ``render`` calls the items.

    ## References
    Ie et al. (2019), RecSim, arXiv 1909.04847, for slates as actions; the shoppers are Hawker's own.

    ## Version History
    v0: slates only.
    """

    parts = RECOMMEND


class AdPlacementEnv(StorefrontEnv):
    """Choose the ad among one shopper's given pages, and its slot: ``hawker/AdPlacement-v0``.

    ## Action Space
    ``MultiDiscrete([C + 1, K])``: the place of the ad's item in the candidate list, or C for no ad; the ad's slot. What
    the ranking has at and below that slot moves down by one. An ad outside ``ad_mask`` is not shown.

    ## Observation Space
    As of ``hawker/Storefront-v0``, and ``given`` (K,): the ranking of the eligible candidates by popularity, best
    first, as places in the candidate list; -1 where there are too few.

    ## Starting State
    A shopper whom the world lets arrive, at the first page of their first visit.

    ## Rewards
    ``RewardSpec`` of the page, by default the expected number of clicks, between 0 and K.

    ## Episode End
    As of ``hawker/Storefront-v0``.

    ## Information
    As of ``hawker/Storefront-v0``.

    ## Arguments
    As of ``hawker/Storefront-v0``, and ``popularity`` (I,): by what the items are ranked, by default the catalog's
    ``popularity``.

    ## References
    Ie et al. (2019), RecSim, arXiv 1909.04847, for slates as actions; the shoppers are Hawker's own.

    ## Version History
    v0: one ad.
    """

    parts = AD_PLACEMENT


class CopywritingEnv(StorefrontEnv):
    """Choose the lines shown with the items of one shopper's given pages: ``hawker/Copywriting-v0``.

    ## Action Space
    ``MultiDiscrete([L + 1] * K)``: for each of the K slots, from the top, a line of the bank, or L for none.

    ## Observation Space
    As of ``hawker/Storefront-v0`` without ``ad_mask``, and ``given`` (K,): the page's items, eligible candidates ranked
    by popularity, as places in the candidate list; -1 where there are too few.

    ## Starting State
    A shopper whom the world lets arrive, at the first page of their first visit.

    ## Rewards
    ``RewardSpec`` of the page, by default the expected number of clicks, between 0 and K.

    ## Episode End
    As of ``hawker/Storefront-v0``.

    ## Information
    As of ``hawker/Storefront-v0``.

    ## Arguments
    As of ``hawker/Storefront-v0``, and ``popularity`` (I,): by what the items are ranked, by default the catalog's
    ``popularity``.

    ## References
    Ie et al. (2019), RecSim, arXiv 1909.04847, for slates as actions; the shoppers are Hawker's own.

    ## Version History
    v0: lines from the world's bank.
    """

    parts = COPYWRITING


def small_bazaar(size: int = 3) -> BazaarWorld:
    """Return a small shop of the gold world `bazaar`: 60 items, 12 candidates, pages of ``size`` slots (1 to 8)."""
    p = load_bazaar()
    shop = replace(p.shop, items=60, candidates=12, size=size, advertised=0.4)
    return BazaarWorld(
        replace(p, shop=shop, look=replace(p.look, positions=p.look.positions[:size])), torch.device("cpu")
    )


def finite(reward: Array) -> Array:
    """Return the rewards, shape (N,).

    Raises:
        InputError: One is not a finite number.
    """
    if not np.isfinite(reward).all():
        bad = reward[~np.isfinite(reward)][0]
        raise InputError("the reward is not a number", where="world", got=float(bad), remedy="fit the shoppers anew")
    return reward


def _storefront(
    parts: Parts,
    n: int,
    world: World | None,
    reward: RewardSpec | None,
    rules: Rules | None,
    popularity: Tensor | None,
) -> Storefront:
    """Open a shop with what was given, and what an environment of these parts has by default."""
    if parts == RECOMMEND:
        return Storefront(world or small_world(), n, reward or RewardSpec(), parts, rules, popularity)
    return Storefront(world or small_bazaar(), n, reward or RewardSpec(), parts, rules or MONTH, popularity)


def _seed_from(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], seed: int | None) -> int | None:
    """Without a seed the first reset draws one from the environment's own generator; later resets go on."""
    return seed if seed is not None else int(env.np_random.integers(2**62))


def _owned(observation: Observation) -> Observation:
    """A copy: whoever normalises what they were given in place must not change the shoppers."""
    return {name: array.copy() for name, array in observation.items()}


def _single(observation: Observation) -> Observation:
    return {name: array[0].copy() for name, array in observation.items()}
