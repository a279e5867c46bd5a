import math
from dataclasses import replace

import pytest
import torch

from hawker.benchmarks.bazaar import logging_strategy
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_pages import Pages
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import simulate

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world() -> BazaarWorld:
    return BazaarWorld(load_bazaar(), CPU)


def test_the_logged_world_keeps_its_targets(world: BazaarWorld):
    columns, features = simulate(world, logging_strategy(world, "popularity"), 1_500, 56, generator(1))
    names = ("shopper", "page", "clock", "slate", "copy", "ad", "offer", "clicked", "converted")
    pages = Pages(*(columns[name].numpy() for name in names), features.numpy())
    visits = pages.last.sum()
    told = pages.last & (pages.clock // 86_400 < 56 - 7)
    assert 0.07 < pages.clicked.mean() < 0.10
    assert 0.08 < pages.converted.sum() / pages.clicked.sum() < 0.14
    assert 3.5 < len(pages.page) / visits < 4.6
    assert 0.45 < (pages.days[told] <= 7).mean() < 0.62
    assert 140 < 8 * len(pages.page) / 1_500 < 200  # 6,000 shoppers: a million impressions
    lines, logged = columns["copy"][columns["copy"] != EMPTY], world.logged_lines
    assert logged[lines].all()
    assert len(lines.unique()) == logged.sum()
    assert abs((columns["copy"] != EMPTY).float().mean() - 0.6) < 0.005
    assert world.launched[columns["slate"]].all()
    assert abs((columns["ad"] != EMPTY).float().mean() - 0.4) < 0.02
    assert abs((columns["offer"] == 0).float().mean() - 0.7) < 0.02


def test_popularity_ranks_and_random_does_not(world: BazaarWorld):
    shoppers = world.arrive(400, generator())
    popularity = torch.tensor(world.items.table["popularity"].to_numpy())
    mean = {}
    for name in ("popularity", "random"):
        decision = logging_strategy(world, name).propose(shoppers.context, generator())
        mean[name] = float(popularity[decision.slate].mean())
        assert decision.propensity is not None
        if name == "random":
            organic = torch.arange(8) != decision.ad[:, None] if decision.ad is not None else None
            assert organic is not None
            assert float(decision.propensity[organic].max()) <= 1 / (30 - 8) + 1e-6
    assert mean["popularity"] > 1.5 * mean["random"]
    everyone = float(popularity[world.launched & (torch.tensor(world.items.table["stock"].to_numpy()) > 0)].mean())
    assert math.isclose(mean["random"], everyone, rel_tol=0.1)


def test_an_unknown_strategy(world: BazaarWorld):
    with pytest.raises(InputError, match=r"--strategy: unknown logging strategy; .*did you mean 'random'"):
        logging_strategy(world, "randm")


def test_a_world_without_offers_or_lines():
    p = load_bazaar()
    bare = replace(
        p,
        discounts=(0.0,),
        click=replace(p.click, offer=(0.0,)),
        conversion=replace(p.conversion, offer=(0.0,)),
        segments=tuple(replace(s, cue_click=(), cue_convert=()) for s in p.segments),
        lexicon=replace(p.lexicon, cues=()),
    )
    world = BazaarWorld(bare, CPU)
    columns, _ = simulate(world, logging_strategy(world, "popularity"), 20, 10, generator())
    assert (columns["copy"] == EMPTY).all()
    assert (columns["offer"] == 0).all()
