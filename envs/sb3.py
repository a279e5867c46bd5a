"""The storefront as stable-baselines3 sees it: one ``VecEnv`` of N shoppers, stepped as one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from hawker.envs.storefront import Array, Observation, Storefront, action_space, observation_space, to_observation
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.world import World


class StorefrontVecEnv(VecEnv):
    """N shoppers of a world; spaces and rewards are those of ``hawker/Recommend-v0``.

    Rewards have shape (N,). Where an episode ends, the observation returned is already that of the next shopper, as
    stable-baselines3 wants it. An ending is always a shopper who is gone, never a time limit, so that no last
    observation has to be kept for a value estimate, and one empty info serves all.

    Attributes:
        storefront: The batch of shoppers.
        happened: What the last step brought, each (N,): the reward's parts, "clicks", "empty_slots".
    """

    def __init__(self, world: World, num_envs: int, reward: RewardSpec, seed: int, scale: float = 1.0) -> None:
        """Args: what answers, N, what is rewarded, seed of the first reset, factor on rewards."""
        self._scale = scale
        self.storefront = Storefront(world, num_envs, reward)
        self.render_mode = None
        self.happened: dict[str, torch.Tensor] = {}
        self._first_seed: int | None = seed
        self._no_infos: list[dict[str, Any]] = [{}] * num_envs
        super().__init__(num_envs, observation_space(world), action_space(world))

    def reset(self) -> Observation:
        """Start N new shoppers; the first reset seeds the generator, later ones only after ``seed``."""
        if self._seeds[0] is not None:
            self._first_seed = self._seeds[0]
        context = self.storefront.reset(self._first_seed)
        self._first_seed = None
        self._reset_seeds()
        return to_observation(context)

    def step_async(self, actions: Array) -> None:
        """Take the slates to show, places in the candidate list of shape (N, K)."""
        self._picks = self.storefront.picks(actions)

    def step_wait(self) -> tuple[Observation, Array, Array, list[dict[str, Any]]]:
        """Show them."""
        context, reward, gone, self.happened = self.storefront.step(self._picks)
        return (
            to_observation(context),
            (reward * self._scale).cpu().numpy().astype(np.float32),
            gone.cpu().numpy(),
            self._no_infos,
        )

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
