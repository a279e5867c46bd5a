"""The state of page PPO between two rollouts, so that a resumed run ends with the weights of an unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from hawker.agents.checkpoint import keep, resumed
from hawker.agents.page_ppo import PagePPO, TensorRolloutBuffer
from hawker.envs.sb3 import StorefrontVecEnv


def save_page_checkpoint(path: Path, model: PagePPO, made_by: dict[str, Any]) -> None:
    """Write weights, optimizer, shoppers, the unit of returns and every generator's state.

    Args:
        path: Directory to write; the previous checkpoint is replaced in one rename.
        model: PPO between two rollouts.
        made_by: What a checkpoint must agree on to be resumed: config and digest of the shoppers.
    """
    keep(path, model, made_by, {"generator.order": _buffer(model).generator.get_state()}, {})


def load_page_checkpoint(path: Path, model: PagePPO, made_by: dict[str, Any]) -> None:
    """Put a fresh model into the state of a checkpoint.

    Raises:
        InputError: The checkpoint is damaged, or was made with another config or other shoppers.
    """
    with resumed(path, model, made_by) as (tensors, _):
        _buffer(model).generator.set_state(tensors["generator.order"].cpu())
        assert isinstance(model.env, StorefrontVecEnv)
        model._last_obs = cast(Any, model.env.storefront.observation)


def _buffer(model: PagePPO) -> TensorRolloutBuffer:
    assert isinstance(model.rollout_buffer, TensorRolloutBuffer)
    return model.rollout_buffer
