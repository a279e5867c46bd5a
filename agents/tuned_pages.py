"""Pages that see items through a language model, as it is and as it was tuned for choosing; a judge says which to keep.

Both trainings begin with the same weights and learn from as many pages of the same shoppers. These keep the vectors
that they were fitted with: only what the strategy sees of items is another thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from hawker.agents.backbone import Backbone, BackboneConfig, SlowSteps, seen_by, texts_of
from hawker.agents.config import TrainConfig
from hawker.agents.page_ppo import page_ppo
from hawker.agents.page_world import mean_figure, parts_of, read, rules_of
from hawker.agents.train import check_training
from hawker.envs.follow import follow
from hawker.envs.page import Parts
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.shop.catalog import Catalog
from hawker.shop.config import to_dict
from hawker.shop.figures import Figure
from hawker.simulators.store import FittedShoppers
from hawker.simulators.world import World

JUDGED_SHOPPERS = 8_000
"""Shoppers of the judge who meet the pages of both."""

Eyes = Literal["frozen", "tuned"]

Progress = Callable[[Eyes, int, int, float], None]
"""Called after each rollout with what is trained, pages so far, pages in all, and the mean reward of its pages."""


class Trained(NamedTuple):
    """What came of it.

    Attributes:
        kept: Which pages the judge keeps: the tuned ones where the interval of what they gain lies above zero.
        pages: The trained pages of both; each has a catalog of its own.
        figures: What the judge's shoppers make of the likeliest pages of both, ``reward_per_shopper.frozen`` and
            ``.tuned``, and what the tuned ones gain, shopper by shopper, ``.gain``.
        history: The steps of the language model; see `SlowSteps`.
        backbone: The tuned model: what reads new items for the tuned pages.
    """

    kept: Eyes
    pages: dict[Eyes, PageStrategy]
    figures: dict[str, Figure]
    history: list[dict[str, float]]
    backbone: Backbone

    @property
    def strategy(self) -> PageStrategy:
        """The pages that are kept."""
        return self.pages[self.kept]


def tuned_pages(
    shoppers: FittedShoppers, items: pd.DataFrame, config: TrainConfig, backbone: BackboneConfig, progress: Progress
) -> Trained:
    """Train pages against fitted shoppers with both eyes, and let the run's judge choose.

    Args:
        shoppers: Shoppers with a memory.
        items: Their log's items, in the order of the catalog; new ones among them are read alike.
        config: How PPO learns, and what pages are worth.
        backbone: The language model, and how it learns.
        progress: Called after each rollout.

    Raises:
        InputError: No such model, items without texts, a bad config, or a reward for what is not learned.
    """
    world = read(shoppers, shoppers.world("train", config.reward.doubts), config.reward)
    judge = read(shoppers, shoppers.world("judge"), config.reward)
    parts = parts_of(shoppers, config.reward)
    vectors = shoppers.lines.scaled if shoppers.lines is not None and parts.copy else None
    return compare_eyes(world, judge, texts_of(items), config, backbone, parts, vectors, progress)


def compare_eyes(
    world: World,
    judge: World,
    texts: list[str],
    config: TrainConfig,
    backbone: BackboneConfig,
    parts: Parts,
    line_vectors: np.ndarray[Any, np.dtype[np.float32]] | None,
    progress: Progress,
) -> Trained:
    """Train pages in a world with both eyes, and let a judge choose; see ``tuned_pages``.

    Args:
        world: What pages are trained in.
        judge: What nothing is trained in.
        texts: Of the items, in the order of the catalog.
        config: How PPO learns.
        backbone: The language model, and how it learns.
        parts: Which parts of pages are chosen.
        line_vectors: Vectors of the world's lines, where copy is chosen, shape (L, w).
        progress: Called after each rollout.
    """
    check_training(config)
    reader = Backbone(backbone, world.device)
    catalog = seen_by(world.builder.catalog, reader, reader.encode(texts))
    slow, before = SlowSteps(reader, texts, catalog, backbone.every), seen(world, catalog)
    pages: dict[Eyes, PageStrategy] = {}
    both: tuple[Eyes, Eyes] = ("frozen", "tuned")
    for eyes in both:
        env = StorefrontVecEnv(before, config.shoppers, config.reward, config.seed, parts, rules_of(config))
        model = page_ppo(env, config, line_vectors)
        model.set_logger(Logger(None, []))
        told = _Told(eyes, config.steps, progress)
        model.learn(config.steps, callback=[told, slow] if eyes == "tuned" else told)
        actor = model.policy.actor
        read_last = actor.slate.item_vectors[:, slow.columns].cpu().numpy()
        after = seen(world, seen_by(catalog, reader, read_last))
        trained_on = {"config": to_dict(config), "backbone": to_dict(backbone), "eyes": eyes}
        pages[eyes] = PageStrategy(actor, after.builder, world.lines, trained_on)
    figures = judged(judge, pages, config)
    return Trained(decided(figures), pages, figures, slow.history, reader)


def seen(world: World, catalog: Catalog) -> World:
    """Return a world that shows strategies another catalog of its items, and is otherwise the same."""
    other = copy.copy(world)
    other.builder = replace(world.builder, catalog=catalog)
    return other


def judged(judge: World, pages: dict[Eyes, PageStrategy], config: TrainConfig) -> dict[str, Figure]:
    """Return what a judge's shoppers make of the likeliest pages of both, with 95% intervals of drawing shoppers.

    Both meet the same shoppers, and what differs is told shopper by shopper. That training again, with another seed,
    would give other pages is in no interval.
    """
    rewards = {}
    for eyes, strategy in pages.items():
        generator = torch.Generator(judge.device).manual_seed(config.seed)
        here = judge.arrive(JUDGED_SHOPPERS, generator)
        came = follow(judge, LikeliestPages(strategy), here, config.reward.plain, rules_of(config), generator)
        rewards[eyes] = came.reward
    figures = {f"reward_per_shopper.{eyes}": mean_figure(reward, "reward") for eyes, reward in rewards.items()}
    figures["reward_per_shopper.gain"] = mean_figure(rewards["tuned"] - rewards["frozen"], "reward")
    return figures


def decided(figures: dict[str, Figure]) -> Eyes:
    """Return which pages are kept: the tuned ones where the interval of what they gain lies above zero."""
    low = figures["reward_per_shopper.gain"]["low"]
    return "tuned" if low is not None and low > 0 else "frozen"


class _Told(BaseCallback):
    def __init__(self, eyes: Eyes, steps: int, progress: Progress) -> None:
        super().__init__()
        self._eyes, self._steps, self._progress = eyes, steps, progress

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        reward = float(self.logger.name_to_value["rollout/reward"])
        self._progress(self._eyes, self.num_timesteps, self._steps, reward)
