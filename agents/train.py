"""``hawker train``: PPO against learned shoppers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from hawker.agents.checkpoint import load_checkpoint, save_checkpoint
from hawker.agents.config import TrainConfig
from hawker.agents.page_ppo import PagePPO, page_ppo
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.baselines import RandomStrategy
from hawker.policies.protocol import Strategy
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import find_directory, write_directory, write_json
from hawker.shop.config import save_config, to_dict
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.store import load_shoppers
from hawker.simulators.world import World

Progress = Callable[[int, int, float], None]
"""Called after each rollout with pages so far, pages in all, and the mean reward of the rollout's pages."""


class _Watch(BaseCallback):
    """Writes checkpoints between rollouts and reports after each."""

    def __init__(self, save: Callable[[], None], config: TrainConfig, progress: Progress) -> None:
        super().__init__()
        self._save, self._config, self._progress = save, config, progress
        self._rollouts = 0

    def _on_rollout_start(self) -> None:
        if self._rollouts and self._rollouts % self._config.checkpoint_every == 0:
            self._save()
        self._rollouts += 1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PagePPO)
        self._progress(self.num_timesteps, self._config.steps, float(self.model.rollout_buffer.rewards.mean()))


def train(run: Run, config: TrainConfig, resume: bool, progress: Progress) -> tuple[TrainedStrategy, dict[str, Any]]:
    """Train a strategy against the shoppers of a run and write it to the run.

    Args:
        run: Holds the fitted shoppers; gets ``policy``, ``checkpoint`` and ``tensorboard``.
        config: How to train.
        resume: Go on from the run's checkpoint, if it has one.
        progress: Called after each rollout.

    Returns:
        The strategy and the training report (``train.json``).

    Raises:
        InputError: No shoppers, a bad config, or a checkpoint made with something else.
    """
    _check(config)
    device = resolve_device(config.device)
    shoppers = load_shoppers(run.shoppers, device)
    world = shoppers.world("train")
    started = time.perf_counter()
    baseline = reward_figure(RandomStrategy(world.size), world, config.reward, config.seed)
    model = page_ppo(StorefrontVecEnv(world, config.shoppers, config.reward, config.seed), config)
    free = ("steps", "checkpoint_every")  # what may change from one resume to the next
    same = {name: value for name, value in to_dict(config).items() if name not in free} | {"device": str(device)}
    made_by = {"config": same, "shoppers": shoppers.digest}
    if resume and find_directory(run.checkpoint).exists():
        load_checkpoint(run.checkpoint, model, made_by)
    else:
        shutil.rmtree(run.tensorboard, ignore_errors=True)  # or old curves would lie over the new ones
    model.set_logger(configure(str(run.tensorboard), ["tensorboard"]))
    if model.num_timesteps < config.steps:

        def save() -> None:
            save_checkpoint(run.checkpoint, model, made_by)

        watch = _Watch(save, config, progress)
        model.learn(config.steps - model.num_timesteps, callback=watch, reset_num_timesteps=False)
        save()
    model.logger.close()
    trained_on = {"shoppers": shoppers.digest, "logs": shoppers.logs_digest, "config": to_dict(config)}
    strategy = TrainedStrategy(model.policy.actor.slate, shoppers.builder, trained_on)
    report = {
        "figures": {
            "reward.random": baseline,
            "reward.trained": reward_figure(strategy, world, config.reward, config.seed),
        },
        "judged_by": "the shoppers it was trained against: an upper bound, not a promise",
        "seed": config.seed,
        "steps": model.num_timesteps,
        "seconds": round(time.perf_counter() - started, 2),
    }
    with write_directory(run.policy, "policy") as scratch:
        strategy.save(scratch)
        save_config(config, scratch / "config.yaml")
        write_json(scratch / "train.json", report)
    return strategy, report


def _check(config: TrainConfig) -> None:
    for name, (low, high) in BOUNDS.items():
        value = getattr(config, name)
        if not low <= value <= high:  # NaN too
            raise InputError("bad config", where=f"train.{name}", got=value, expected=f"a number from {low} to {high}")


BOUNDS = {
    "steps": (1, 10**12),
    "shoppers": (1, 10**7),
    "pages": (1, 10**6),
    "batch": (1, 10**9),
    "epochs": (1, 1000),
    "learning_rate": (1e-9, 1),
    "final_rate": (0, 1),
    "clip": (1e-3, 10),
    "entropy": (0, 1000),
    "discount": (0, 1),
    "trace": (0, 1),
    "hidden": (1, 10_000),
    "checkpoint_every": (1, 10**9),
    "seed": (0, 2**63 - 1),
}
"""What a ``TrainConfig`` may hold, from and to."""

EVALUATION_PAGES = 20_000
"""Pages a reported mean reward is measured on."""


def reward_figure(strategy: Strategy, world: World, reward: RewardSpec, seed: int) -> Figure:
    """Return a strategy's mean reward per page in a world, with the 95% interval of drawing shoppers and slates."""
    generator = torch.Generator(world.device).manual_seed(seed)
    shoppers = world.arrive(EVALUATION_PAGES, generator)
    decision = strategy.propose(shoppers.context, generator)
    _, outcome = world.respond(shoppers, decision, generator)
    values = torch.stack(list(reward.components(outcome, decision, world.bids).values())).sum(0)
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return figure(mean, mean - half, mean + half, len(values), "reward per page")
