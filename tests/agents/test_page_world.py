"""What is learned of whole pages against which shoppers, and what strategies earn there."""

import dataclasses

import pytest
import torch

from hawker.agents import page_world
from hawker.agents.config import WHOLE_PAGES
from hawker.agents.page_world import baselines, myopic, page_figures, parts_of, read, remember, rules_of
from hawker.envs.follow import follow
from hawker.envs.page import Parts, Rules
from hawker.shop.reward import RewardSpec
from hawker.simulators.store import load_shoppers

CPU = torch.device("cpu")


def test_the_world_that_pages_are_learned_in(remembering, remembering_items, fitted_run):
    shoppers, plain, without = (
        load_shoppers(home / "run" / "shoppers", CPU) for home in (remembering, remembering_items, fitted_run)
    )
    assert [remember(one) for one in (shoppers, plain, without)] == [True, True, False]
    assert parts_of(shoppers, RewardSpec(ad_income=1.0)) == Parts(True, True, True, True)
    assert parts_of(plain, RewardSpec()) == Parts()
    assert rules_of(dataclasses.replace(WHOLE_PAGES, horizon=7.0, ad_gap=3, ad_cap=0.25)) == Rules(7.0, 3, 0.25)
    world = read(plain, plain.world("judge"), RewardSpec())
    context = world.arrive(4, torch.Generator().manual_seed(0)).context
    decision = myopic(world, RewardSpec()).propose(context, torch.Generator())
    assert (decision.copy == -1).all()
    worth = context.affinity.gather(1, (context.candidates[:, None] == decision.slate[:, :, None]).long().argmax(2))
    assert (worth.diff(dim=1) <= 0).all()
    assert torch.equal(worth[:, 0], context.affinity.masked_fill(~context.mask, -torch.inf).amax(1))


def test_figures_are_of_pages_and_of_shoppers_without_pessimism(remembering, monkeypatch):
    monkeypatch.setattr(page_world, "EVALUATION_SHOPPERS", 12)
    shoppers = load_shoppers(remembering / "run" / "shoppers", CPU)
    cautious = dataclasses.replace(WHOLE_PAGES, horizon=4.0, seed=3, reward=RewardSpec(disagreement=0.5))
    world = read(shoppers, shoppers.world("train", doubts=True), cautious.reward)
    figures = page_figures(world, baselines(world, cautious), cautious)
    generator = torch.Generator().manual_seed(3)
    found = follow(world, myopic(world, RewardSpec()), world.arrive(12, generator), RewardSpec(), Rules(4.0), generator)
    assert figures["reward_per_shopper.myopic"]["value"] == pytest.approx(float(found.reward.mean()))
    assert figures["reward_per_page.myopic"]["value"] == pytest.approx(float(found.reward.sum() / found.pages.sum()))
    assert set(figures) == {
        f"reward_per_{unit}.{name}" for unit in ("page", "shopper") for name in ("random", "myopic")
    }
