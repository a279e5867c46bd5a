"""How fast PPO learns whole pages, and in how much memory: measured in a process of its own."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from hawker.agents.config import PageTrainConfig
from hawker.agents.page_ppo import page_ppo
from hawker.benchmarks.fidelity_artefacts import memory_mib
from hawker.envs.page import STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.shop.reward import RewardSpec
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.reader import ReadWorld

WARM_UP = 2
"""Rollouts before those that count."""


@dataclass(frozen=True)
class Learning:
    """What PPO is timed with.

    Attributes:
        train: How it learns.
        reward: From what.
        horizon: Days of an episode.
        rollouts: How many are timed.
        threads: Of torch, within its operations.
    """

    train: PageTrainConfig
    reward: RewardSpec
    horizon: float
    rollouts: int
    threads: int


def learning_rates(shop: Callable[[], LearnedWorld], learning: Learning) -> tuple[list[float], float]:
    """Return what PPO does with shoppers behind a reader, all parts of a page chosen.

    Args:
        shop: Makes the shoppers; it is called in the other process.
        learning: What is timed.

    Returns:
        Pages a second of every rollout with its gradient steps, and the process's largest resident memory in MiB.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        return other.submit(learn, shop, learning).result()


class _Clock(BaseCallback):
    """Notes when each rollout begins."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _on_rollout_start(self) -> None:
        self.times.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.times.append(time.perf_counter())


def learn(shop: Callable[[], LearnedWorld], learning: Learning) -> tuple[list[float], float]:
    """Return the same of this process."""
    torch.set_num_threads(learning.threads)
    world, train = shop(), learning.train
    read = ReadWorld(world, world.builder, world.ensemble, learning.reward)
    rules = Rules(horizon=learning.horizon)
    env = StorefrontVecEnv(read, train.shoppers, learning.reward, train.seed, parts=STOREFRONT, rules=rules)
    vectors = world.ensemble.models[0].line_vectors
    model, clock = page_ppo(env, train, None if vectors is None else vectors.numpy()), _Clock()
    model.set_logger(Logger(None, []))
    pages = train.shoppers * train.pages
    model.learn(pages * (WARM_UP + learning.rollouts), callback=clock)
    times = clock.times[WARM_UP:]
    rates = [pages / (end - start) for start, end in itertools.pairwise(times)]
    return rates, memory_mib("self", "VmHWM")  # what getrusage says counts the parent's, too
