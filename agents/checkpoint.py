"""The state of PPO training between two rollouts, so that a resumed run ends with the weights of an unbroken one."""

from __future__ import annotations

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
    policy, env, buffer = _parts(model)
    tensors = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    for i, moments in policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
    tensors |= {f"shop.{name}": value for name, value in env.storefront.tensors().items()}
    tensors |= {
        "episode_starts": torch.as_tensor(model._last_episode_starts),
        "generator.policy": policy.generator.get_state(),
    }
    state = {
        "made_by": made_by,
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "order": buffer.generator.bit_generator.state,
    }
    with write_directory(path, "checkpoint") as scratch:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, scratch / TENSORS)
        write_json(scratch / STATE, state)


def load_checkpoint(path: Path, model: PPO, made_by: dict[str, Any]) -> None:
    """Put a fresh PPO model into the state of a checkpoint.

    Raises:
        InputError: The checkpoint is damaged, or was made with another config or other shoppers.
    """
    path = verify_directory(path, "checkpoint")
    state = read_json(path / STATE)
    policy, env, buffer = _parts(model)
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
        env.storefront.load_tensors(_under(tensors, "shop."))
        policy.generator.set_state(tensors["generator.policy"].cpu())
        model._last_episode_starts = tensors["episode_starts"].cpu().numpy()
        buffer.generator.bit_generator.state = state["order"]
        model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError("not a checkpoint of this version", where=path, got=str(error).splitlines()[0]) from None
    model._last_obs = to_observation(env.storefront.observation)


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


def _parts(model: PPO) -> tuple[SlateActorCriticPolicy, StorefrontVecEnv, SeededRolloutBuffer]:
    policy, env, buffer = model.policy, model.env, model.rollout_buffer
    assert isinstance(policy, SlateActorCriticPolicy)
    assert isinstance(env, StorefrontVecEnv)
    assert isinstance(buffer, SeededRolloutBuffer)
    return policy, env, buffer


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
