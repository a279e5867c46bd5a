"""The state of PPO training between two rollouts, so that a resumed run ends with the weights of an unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hawker.agents.page_buffer import TensorRolloutBuffer
from hawker.agents.page_ppo import PagePPO
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.shop.artefacts import read_json, verify_directory, write_directory, write_json
from hawker.shop.errors import InputError

STATE = "state.json"
TENSORS = "state.safetensors"


def save_checkpoint(path: Path, model: PagePPO, made_by: dict[str, Any]) -> None:
    """Write weights, optimizer, shoppers, the unit of returns and every generator's state.

    Args:
        path: Directory to write; the previous checkpoint is replaced in one rename.
        model: PPO between two rollouts.
        made_by: What a checkpoint must agree on to be resumed: config and digest of the shoppers.
    """
    env, buffer = _parts(model)
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    for i, moments in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
    tensors |= {f"shop.{name}": value for name, value in env.storefront.tensors().items()}
    generators = {"policy": model.policy.generator, "order": buffer.generator}
    tensors |= {f"generator.{name}": generator.get_state() for name, generator in generators.items()}
    state = {"made_by": made_by, "num_timesteps": model.num_timesteps, "n_updates": model._n_updates}
    with write_directory(path, "checkpoint") as scratch:
        save_file({name: _owned(value) for name, value in tensors.items()}, scratch / TENSORS)
        write_json(scratch / STATE, state)


def load_checkpoint(path: Path, model: PagePPO, made_by: dict[str, Any]) -> None:
    """Put a fresh model into the state of a checkpoint.

    Raises:
        InputError: The checkpoint is damaged, or was made with another config or other shoppers.
    """
    env, buffer = _parts(model)
    path = verify_directory(path, "checkpoint")
    state = read_json(path / STATE)
    try:
        _require_same(state["made_by"], made_by, path)
        tensors = load_file(path / TENSORS, device=str(model.device))
        model.policy.load_state_dict(_under(tensors, "policy."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer.").items():
            i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = value
        groups = model.policy.optimizer.state_dict()["param_groups"]
        model.policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        env.storefront.load_tensors(_under(tensors, "shop."))
        model.policy.generator.set_state(tensors["generator.policy"].cpu())
        buffer.generator.set_state(tensors["generator.order"].cpu())
        model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError("not a checkpoint of this version", where=path, got=str(error).splitlines()[0]) from None
    model._last_obs = cast(Any, env.storefront.observation)


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


def _parts(model: PagePPO) -> tuple[StorefrontVecEnv, TensorRolloutBuffer]:
    assert isinstance(model.env, StorefrontVecEnv)
    assert isinstance(model.rollout_buffer, TensorRolloutBuffer)
    return model.env, model.rollout_buffer


def _owned(value: Tensor) -> Tensor:
    """A copy of its own: tensors that share memory cannot be saved together."""
    return value.detach().cpu().clone().contiguous()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
