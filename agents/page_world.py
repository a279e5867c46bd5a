"""Whole pages for shoppers with a memory: which parts are learned, through what eyes, and what they earn."""

from __future__ import annotations

import numpy as np
import torch

from hawker.agents.config import TrainConfig
from hawker.agents.myopic import MyopicPages
from hawker.envs.follow import Followed, follow
from hawker.envs.page import Parts, Rules
from hawker.policies.baselines import RandomStrategy
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.protocol import Strategy
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.simulators.reader import ReadWorld
from hawker.simulators.store import FittedShoppers
from hawker.simulators.world import World

EVALUATION_SHOPPERS = 1_000
"""Shoppers that a reported reward is measured on."""


def remember(shoppers: FittedShoppers) -> bool:
    """Say whether shoppers have a memory: then whole pages are learned, otherwise slates."""
    return shoppers.ensembles["train"].models[0].memory is not None


def read(shoppers: FittedShoppers, world: World, reward: RewardSpec) -> ReadWorld:
    """Put the reader that strategies are trained with in front of a world that sells the shoppers' items."""
    lines = () if shoppers.lines is None else shoppers.lines.texts
    world = shoppers.searched(world)  # what is typed is known to whoever decides
    return ReadWorld(world, shoppers.builder, shoppers.ensembles["train"], reward, lines)


def parts_of(shoppers: FittedShoppers, reward: RewardSpec) -> Parts:
    """Return what of a page can be learned: what the log shows, and for ads which items bid.

    Raises:
        InputError: The reward pays ads, which are not learned.
    """
    recorded, catalog = shoppers.ensembles["train"].models[0].recorded, shoppers.builder.catalog
    bids = "bid" in catalog.features.numeric
    bids = bids and bool((catalog.vectors[:, catalog.features.numeric.index("bid")] > 0).any())
    parts = Parts(ad=recorded.ads and bids, offer=recorded.offers > 1, copy=shoppers.lines is not None)
    if reward.ad_income and not parts.ad:
        remedy = "ads are learned from a log that shows some, and items with a column bid"
        raise InputError(
            "no ads are learned here", where="reward.ad_income", got=reward.ad_income, expected="0", remedy=remedy
        )
    return parts


def rules_of(config: TrainConfig) -> Rules:
    """Return what the shop holds to, as a training is told."""
    return Rules(config.horizon, config.ad_gap, config.ad_cap)


def myopic(world: ReadWorld, reward: RewardSpec) -> MyopicPages:
    """Return the myopic strategy of a world's shoppers, which may say every line."""
    return MyopicPages("myopic", world, reward.plain, torch.arange(len(world.lines), device=world.device))


def page_figures(world: World, strategies: list[Strategy], config: TrainConfig) -> dict[str, Figure]:
    """Return what strategies earn per page and per shopper in a world, with 95% intervals of drawing shoppers.

    All meet the same shoppers. Pessimism is left out: it is a cost in training, not of the shop.
    """
    figures: dict[str, Figure] = {}
    for strategy in strategies:
        generator = torch.Generator(world.device).manual_seed(config.seed)
        here = world.arrive(EVALUATION_SHOPPERS, generator)
        rules = rules_of(config) if isinstance(strategy, (PageStrategy, LikeliestPages)) else Rules(config.horizon)
        found = follow(world, strategy, here, config.reward.plain, rules, generator)
        figures |= {f"reward_per_{unit}.{strategy.name}": value for unit, value in _rewards(found).items()}
    return figures


def baselines(world: ReadWorld, config: TrainConfig) -> list[Strategy]:
    """Return what a trained strategy has to beat in the world it was trained in."""
    return [RandomStrategy(world.size), myopic(world, config.reward)]


def mean_figure(values: torch.Tensor, unit: str) -> Figure:
    """Return the mean of shoppers' values (N,), with its 95% interval."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return figure(mean, mean - half, mean + half, len(values), f"{unit} per shopper")


def _rewards(found: Followed) -> dict[str, Figure]:
    reward, pages = found.reward.cpu().numpy(), found.pages.cpu().numpy()
    n, mean, rate = len(reward), float(reward.mean()), float(reward.sum() / pages.sum())
    half = 1.96 * float(reward.std(ddof=1)) / n**0.5
    # The delta method: pages of one shopper are not independent.
    error = 1.96 * float(np.std(reward - rate * pages, ddof=1)) / (pages.mean() * n**0.5)
    return {
        "page": figure(rate, rate - error, rate + error, n, "reward per page"),
        "shopper": figure(mean, mean - half, mean + half, n, "reward per shopper"),
    }
