"""The storefront as stable-baselines3 sees it: one ``VecEnv`` of N shoppers, stepped as one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from hawker.envs.environments import finite
from hawker.envs.page import RECOMMEND, Parts, Rules
from hawker.envs.storefront import Array, Observation, Storefront, action_space, observation_space, to_observation
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.world import World


class StorefrontVecEnv(VecEnv):
    """N shoppers of a world; spaces and rewards are those of ``hawker/Storefront-v0`` and of its parts.

    Rewards have shape (N,). Where an episode ends, the observation returned is already that of the next shopper, as
    stable-baselines3 wants it. Where the horizon ended it, the info holds ``TimeLimit.truncated`` and the
    ``terminal_observation`` for a value estimate; all other shoppers share one empty info. A learner that keeps its
    rollouts on the device steps ``storefront`` itself.

    Attributes:
        storefront: The batch of shoppers.
        happened: What the last step brought, each (N,): see ``hawker.envs.storefront.Step``.
    """

    def __init__(
        self,
        world: World,
        num_envs: int,
        reward: RewardSpec,
        seed: int,
        parts: Parts = RECOMMEND,
        rules: Rules | None = None,
        popularity: Tensor | None = None,
    ) -> None:
        """Args: what answers, N, what is rewarded, seed of the first reset; see ``Storefront``."""
        self.storefront = Storefront(world, num_envs, reward, parts, rules, popularity)
        self.render_mode = None
        self.happened: dict[str, torch.Tensor] = {}
        self._first_seed: int | None = seed
        self._no_infos: list[dict[str, Any]] = [{}] * num_envs
        super().__init__(num_envs, observation_space(world, parts), action_space(world, parts))

    def reset(self) -> Observation:
        """Start N new shoppers; the first reset seeds the generator, later ones only after ``seed``."""
        if self._seeds[0] is not None:
            self._first_seed = self._seeds[0]
        self.storefront.reset(self._first_seed)
        self._first_seed = None
        self._reset_seeds()
        return to_observation(self.storefront.observation)

    def step_async(self, actions: Array) -> None:
        """Take the pages to show, of shape (N, A)."""
        self._actions = self.storefront.actions(actions)

    def step_wait(self) -> tuple[Observation, Array, Array, list[dict[str, Any]]]:
        """Show them.

        Raises:
            InputError: The world's rewards are no numbers.
        """
        step = self.storefront.step(self._actions)
        self.happened = step.happened
        reward = finite(step.reward.cpu().numpy().astype(np.float32))
        truncated, infos = step.truncated.cpu().numpy(), self._no_infos
        if truncated.any():
            infos, last = list(infos), to_observation(self.storefront.last_observation())
            for i in np.flatnonzero(truncated):
                observation = {name: array[i].copy() for name, array in last.items()}
                infos[i] = {"TimeLimit.truncated": True, "terminal_observation": observation}
        return to_observation(step.observation), reward, (step.terminated | step.truncated).cpu().numpy(), infos

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return an attribute of the batch, once for every shopper asked for."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refuse: the shoppers of a batch have no attributes of their own."""
        raise InputError("attributes of a single shopper cannot be set", where=attr_name)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: the shoppers of a batch have no methods of their own."""
        raise InputError("methods of a single shopper cannot be called", where=method_name)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None) -> list[bool]:
        """Return False for every shopper: there is nothing to wrap."""
        return [False] * len(list(self._get_indices(indices)))
