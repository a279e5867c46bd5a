"""The state of PPO training between two rollouts, so that a resumed run ends with the weights of an unbroken one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO
from torch import Tensor

from hawker.agents.ppo import SeededRolloutBuffer, SlateActorCriticPolicy
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.envs.storefront import to_observation
from hawker.shop.artefacts import read_json, verify_directory, write_directory, write_json
from hawker.shop.errors import InputError

STATE = "state.json"
TENSORS = "state.safetensors"


def save_checkpoint(path: Path, model: PPO, made_by: dict[str, Any]) -> None:
    """Write weights, optimizer, shoppers and every generator's state.

    Args:
        path: Directory to write; the previous checkpoint is replaced in one rename.
        model: PPO between two rollouts.
        made_by: What a checkpoint must agree on to be resumed: config and digest of the shoppers.
    """
    starts = {"episode_starts": torch.as_tensor(model._last_episode_starts)}
    keep(path, model, made_by, starts, {"order": _buffer(model).generator.bit_generator.state})


def load_checkpoint(path: Path, model: PPO, made_by: dict[str, Any]) -> None:
    """Put a fresh PPO model into the state of a checkpoint.

    Raises:
        InputError: The checkpoint is damaged, or was made with another config or other shoppers.
    """
    with resumed(path, model, made_by) as (tensors, state):
        model._last_episode_starts = tensors["episode_starts"].cpu().numpy()
        _buffer(model).generator.bit_generator.state = state["order"]
        model._last_obs = to_observation(_env(model).storefront.observation)


def keep(
    path: Path, model: PPO, made_by: dict[str, Any], more_tensors: dict[str, Tensor], more_state: dict[str, Any]
) -> None:
    """Write what every kind of PPO here has to keep, and what only this one has."""
    policy: Any = model.policy
    tensors = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    for i, moments in policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
    tensors |= {f"shop.{name}": value for name, value in _env(model).storefront.tensors().items()}
    tensors |= {"generator.policy": policy.generator.get_state()} | more_tensors
    state = {"made_by": made_by, "num_timesteps": model.num_timesteps, "n_updates": model._n_updates} | more_state
    with write_directory(path, "checkpoint") as scratch:
        save_file({name: _owned(value) for name, value in tensors.items()}, scratch / TENSORS)
        write_json(scratch / STATE, state)


@contextmanager
def resumed(path: Path, model: PPO, made_by: dict[str, Any]) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Put back what ``keep`` wrote for every kind, and yield all of it for the rest to be put back.

    Raises:
        InputError: The checkpoint is damaged, or was made with something else; within the block too.
    """
    path = verify_directory(path, "checkpoint")
    state = read_json(path / STATE)
    policy: Any = model.policy
    try:
        _require_same(state["made_by"], made_by, path)
        tensors = load_file(path / TENSORS, device=str(model.device))
        policy.load_state_dict(_under(tensors, "policy."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer.").items():
            i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = value
        groups = policy.optimizer.state_dict()["param_groups"]
        policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        _env(model).storefront.load_tensors(_under(tensors, "shop."))
        policy.generator.set_state(tensors["generator.policy"].cpu())
        model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
        yield tensors, state
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError("not a checkpoint of this version", where=path, got=str(error).splitlines()[0]) from None


def _require_same(found: dict[str, Any], made_by: dict[str, Any], path: Path, prefix: str = "") -> None:
    """Raise for the first value of ``made_by`` that a checkpoint does not share."""
    for name, value in made_by.items():
        if isinstance(value, dict):
            _require_same(found[name], value, path, f"{prefix}{name}.")
        elif found[name] != value:
            raise InputError(
                f"the checkpoint was made with another value of {prefix}{name}",
                where=path,
                got=found[name],
                expected=repr(value),
                remedy="train without --resume to start anew",
            )


def _env(model: PPO) -> StorefrontVecEnv:
    assert isinstance(model.env, StorefrontVecEnv)
    return model.env


def _buffer(model: PPO) -> SeededRolloutBuffer:
    assert isinstance(model.policy, SlateActorCriticPolicy)
    assert isinstance(model.rollout_buffer, SeededRolloutBuffer)
    return model.rollout_buffer


def _owned(value: Tensor) -> Tensor:
    """A copy of its own: tensors that share memory cannot be saved together."""
    return value.detach().cpu().clone().contiguous()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
