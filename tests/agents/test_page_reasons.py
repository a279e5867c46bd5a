"""What explains a page strategy: the very strategy's numbers, and groups that people understand."""

import numpy as np
import pytest
import torch

from hawker.agents.page_reasons import USUAL, compare_reasons, reason_arrays, reasons_of, usual_pages
from hawker.agents.page_world import read
from hawker.policies.export import random_pages
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.policies.page_bundle import REASONS, PageBundle
from hawker.policies.page_reasons import ITEM, SHOPPER, Pages, picks_of
from hawker.shop.reward import RewardSpec
from hawker.simulators.reader import ReadWorld
from hawker.simulators.small import small_world
from hawker.simulators.store import load_shoppers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def strategy(served_pages) -> PageStrategy:
    return PageStrategy.load(served_pages / "run" / "policy", CPU)


@pytest.fixture(scope="module")
def world(served_pages) -> ReadWorld:
    shoppers = load_shoppers(served_pages / "run" / "shoppers", CPU)
    return read(shoppers, shoppers.world("train"), RewardSpec(conversion=5.0))


def test_columns_and_entries_are_in_the_groups_of_what_they_say(strategy, world):
    arrays = reason_arrays(strategy, world, np.zeros((1, strategy.builder.shopper.width)))
    names = [None if i < 0 else SHOPPER[i] for i in arrays["column_group"]]
    schema, tastes = strategy.builder.shopper, world.tastes
    told = {name: names[i] for i, name in enumerate(schema.numeric) if not name.startswith("history.")}
    assert told.pop("hour_sin") == told.pop("hour_cos") == "visits"
    assert {name for name in told if told[name] is None} == {name for name in told if name.startswith("effect.")}
    assert set(names[len(schema.numeric) :]) == {"shopper"}
    assert names.count("visits") == 2 + 3 + 5  # the hour, counts, the clock
    assert names.count("seen") == tastes.width - 6
    assert names[world._believed : world._believed + tastes.width] == ["history"] * 6 + ["seen"] * (tastes.width - 6)
    features = strategy.builder.catalog.features
    items = [ITEM[i] for i in arrays["item_group"]]
    assert items[features.numeric.index("price")] == "price"
    assert items.count("category") == len(features.categories["category"])
    assert items[features.width :] == ["text"] * strategy.builder.catalog.text.width


@torch.no_grad()
def test_a_run_s_strategy_and_its_bundle_have_the_same_reasons(served_pages, strategy, world):
    bundle, reasons = PageBundle.load(served_pages / "bundle"), reasons_of(strategy, world)
    assert (served_pages / "bundle" / REASONS).exists()
    assert reasons.usual.shape == (USUAL, strategy.builder.shopper.width)
    here = world.arrive(6, torch.Generator().manual_seed(1))
    decision = strategy.propose(here.context, torch.Generator().manual_seed(2))
    context = here.context.map(lambda array: array.numpy())
    decided = type(decision)(*(
        None if (part := getattr(decision, name)) is None else part.numpy()
        for name in ("slate", "log_prob", "ad", "offer", "copy")
    ))  # fmt: skip
    pages = Pages(context, picks_of(context, decided), context.mask)
    assert compare_reasons(reasons, bundle.scores(context), pages) < 1e-4
    told, served = reasons.explain(pages), bundle.reasons.explain(pages)
    for part, found in told.items():
        np.testing.assert_allclose(found.size, served[part].size, atol=1e-6)


def test_usual_pages_are_of_many_shoppers_early_and_late(strategy, world, nothing_global):
    found = usual_pages(strategy, world, 5)
    assert np.array_equal(found, usual_pages(strategy, world, 5))
    assert not np.array_equal(found, usual_pages(strategy, world, 6))
    visits = found[:, reason_arrays(strategy, world, found)["column_group"] == SHOPPER.index("visits")]
    assert len(np.unique(visits, axis=0)) > USUAL // 2


@torch.no_grad()
def test_a_strategy_without_a_reader_is_explained_by_affinities(tmp_path):
    """Contexts that tell of no history: what candidates are worth is a reason of its own."""
    shop = small_world(n_items=6, size=2)
    actor = PageActor(PageLayout(2), shop.builder, 4, torch.Generator().manual_seed(0))
    actor.slate.affinity_weight.bias.fill_(0.3)
    strategy = PageStrategy(actor, shop.builder, (), {})
    reasons = reasons_of(strategy, shop)
    assert reasons.groups["slate"] == ("visits", "shopper", "category", "price", "item", "affinity")
    context = random_pages(shop.builder, 5, np.random.default_rng(0))
    tensors = context.map(torch.from_numpy)
    page = strategy.pages(tensors).mode()
    decided = page.decision(tensors, torch.zeros(5))
    pages = Pages(context, picks_of(context, type(decided)(decided.slate.numpy(), np.zeros(5))), context.mask)
    logits, place = strategy.actor(tensors).slate.numpy(), pages.picks.slate[:, 0]
    own, total = logits[np.arange(5), place], np.where(context.mask, logits, 0).sum(1)
    expected = own - (total - own) / np.maximum(context.mask.sum(1) - 1, 1)
    found = reasons.explain(pages)["slate"]
    np.testing.assert_allclose(found.score[:, 0], np.where(found.there[:, 0], expected, 0), atol=1e-4)
