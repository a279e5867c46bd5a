"""``hawker train``: PPO against learned shoppers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from hawker.agents.checkpoint import load_checkpoint, save_checkpoint
from hawker.agents.config import TrainConfig
from hawker.agents.page_ppo import PagePPO, page_ppo
from hawker.agents.page_world import baselines, page_figures, parts_of, read, remember, rules_of
from hawker.agents.settling import settle
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.baselines import RandomStrategy
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.protocol import Strategy
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import find_directory, write_directory, write_json
from hawker.shop.config import save_config, to_dict
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.store import FittedShoppers, load_shoppers
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


def train(
    run: Run, config: TrainConfig, resume: bool, progress: Progress
) -> tuple[TrainedStrategy | PageStrategy, dict[str, Any]]:
    """Train a strategy against the shoppers of a run and write it to the run.

    Shoppers with a memory are shown whole pages, of the parts that their log knows, and followed over their visits;
    shoppers without one are shown one slate each.

    Args:
        run: Holds the fitted shoppers; gets ``policy``, ``checkpoint`` and ``tensorboard``.
        config: How to train; `hawker.agents.config.defaults_for` has what suits the shoppers.
        resume: Go on from the run's checkpoint, if it has one.
        progress: Called after each rollout.

    Returns:
        The strategy and the training report (``train.json``).

    Raises:
        InputError: No shoppers, a bad config, or a checkpoint made with something else.
    """
    check_training(config)
    shoppers = load_shoppers(run.shoppers, resolve_device(config.device))
    course = whole_pages(shoppers, config) if remember(shoppers) else _slates(shoppers, config)
    return learn(run, shoppers, course, config, resume, progress)


def learn(
    run: Run, shoppers: FittedShoppers, course: Course, config: TrainConfig, resume: bool, progress: Progress
) -> tuple[TrainedStrategy | PageStrategy, dict[str, Any]]:
    """Train a strategy in a course and write it to a run; see ``train``."""
    started, device = time.perf_counter(), resolve_device(config.device)
    model = page_ppo(course.env, config, course.line_vectors)
    free = ("steps", "checkpoint_every")  # what may change from one resume to the next
    same = {name: value for name, value in to_dict(config).items() if name not in free} | {"device": str(device)}
    made_by = {"config": same, "shoppers": shoppers.digest} | course.beside
    resumed = resume and find_directory(run.checkpoint).exists()
    if resumed:
        load_checkpoint(run.checkpoint, model, made_by)
    figures = course.figures(course.baselines)  # nothing is written yet: it refuses what shoppers cannot be paid for
    if not resumed:
        shutil.rmtree(run.tensorboard, ignore_errors=True)  # or old curves would lie over the new ones
    model.set_logger(configure(str(run.tensorboard), ["tensorboard"]))
    if model.num_timesteps < config.steps:

        def save() -> None:
            save_checkpoint(run.checkpoint, model, made_by)

        watch = _Watch(save, config, progress)
        model.learn(config.steps - model.num_timesteps, callback=watch, reset_num_timesteps=False)
        save()
    model.logger.close()
    trained_on = {"shoppers": shoppers.digest, "logs": shoppers.logs_digest, "config": to_dict(config)} | course.beside
    strategy = course.strategy(model, trained_on)
    trained: list[Strategy] = [strategy]
    settled = None
    if isinstance(strategy, PageStrategy):
        if model.policy.prices.names:
            shop = course.env.storefront
            held = settle(strategy, shop.world, model.policy.prices, shop.rules, SETTLING_SHOPPERS, config.seed)
            settled = held._asdict()
        trained.append(LikeliestPages(strategy))
    report = {
        "figures": figures | course.figures(trained),
        "settled": settled,
        "parts": list(model.policy.actor.layout.parts),
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


@dataclass(frozen=True)
class Course:
    """What is trained in, and what is made of it.

    Attributes:
        env: The shoppers.
        line_vectors: Vectors of the lines that are chosen, shape (L, w); None where copy is not.
        baselines: Strategies to compare with.
        figures: Measures strategies in the world that is trained in.
        strategy: Makes a strategy of the trained model, from what it was trained on.
        beside: What else it is trained on, beside the shoppers: a checkpoint must agree on it.
    """

    env: StorefrontVecEnv
    line_vectors: npt.NDArray[np.float32] | None
    baselines: list[Strategy]
    figures: Callable[[list[Strategy]], dict[str, Figure]]
    strategy: Callable[[PagePPO, dict[str, Any]], TrainedStrategy | PageStrategy]
    beside: dict[str, Any] = field(default_factory=dict)


def _slates(shoppers: FittedShoppers, config: TrainConfig) -> Course:
    world = shoppers.world("train")
    return Course(
        StorefrontVecEnv(world, config.shoppers, config.reward, config.seed),
        None,
        [RandomStrategy(world.size)],
        lambda strategies: {
            f"reward.{strategy.name}": reward_figure(strategy, world, config.reward, config.seed)
            for strategy in strategies
        },
        lambda model, trained_on: TrainedStrategy(model.policy.actor.slate, shoppers.builder, trained_on),
    )


def whole_pages(shoppers: FittedShoppers, config: TrainConfig) -> Course:
    """Return the course for whole pages, of the parts that the shoppers' log knows."""
    parts = parts_of(shoppers, config.reward)
    world = read(shoppers, shoppers.world("train", config.reward.doubts), config.reward)
    return Course(
        StorefrontVecEnv(world, config.shoppers, config.reward, config.seed, parts, rules_of(config)),
        shoppers.lines.scaled if shoppers.lines is not None and parts.copy else None,
        baselines(world, config),
        lambda strategies: page_figures(world, strategies, config),
        lambda model, trained_on: PageStrategy(model.policy.actor, world.builder, world.lines, trained_on),
    )


def check_training(config: TrainConfig) -> None:
    """Refuse what nothing can be trained with.

    Raises:
        InputError: A number is out of bounds, or the strategy would learn in no step.
    """
    for name, (low, high) in BOUNDS.items():
        value = getattr(config, name)
        if not low <= value <= high:  # NaN too
            raise InputError("bad config", where=f"train.{name}", got=value, expected=f"a number from {low} to {high}")
    if config.critic_first >= config.steps:
        raise InputError(
            "too few steps: the critic would learn in all of them, and the strategy in none",
            where="train.steps",
            got=config.steps,
            expected=f"more than train.critic_first, {config.critic_first}",
        )


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
    "critic_first": (0, 10**12),
    "greedy": (0, 100),
    "hidden": (1, 10_000),
    "horizon": (1, 365),
    "ad_gap": (1, 10**6),
    "ad_cap": (0, 1),
    "checkpoint_every": (1, 10**9),
    "seed": (0, 2**63 - 1),
}
"""What a ``TrainConfig`` may hold, from and to."""

SETTLING_SHOPPERS = 8_000
"""Shoppers who are followed while limits are settled."""

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
