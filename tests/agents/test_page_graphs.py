"""What is traced agrees with what strategies were trained with, before any tracing."""

import numpy as np
import pytest
import torch

from hawker.agents.page_graphs import ActorGraph, ObserveGraph, ReadGraph
from hawker.agents.page_world import read
from hawker.policies.export import random_pages
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import PageActor
from hawker.shop.context import ContextBuilder
from hawker.shop.decision import Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.reader import OWN, TOP
from hawker.simulators.small import small_tables
from hawker.simulators.store import FittedShoppers, load_shoppers

REWARD = RewardSpec(conversion=5.0)
LAYOUTS = [PageLayout(3, ad=True, offers=2, lines=4), PageLayout(3, ad=True), PageLayout(3, offers=3), PageLayout(3)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
@pytest.mark.parametrize("bidding", [3, 0])
def test_pages_are_the_actors(layout, bidding):
    builder, generator = ContextBuilder.fit(*small_tables(12, 3)), torch.Generator().manual_seed(0)
    bids = np.arange(12) < bidding
    vectors = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    actor = PageActor(layout, builder, 8, generator, bids, vectors).requires_grad_(False)
    for parameter in actor.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    context = random_pages(builder, 60, np.random.default_rng(1)).map(torch.from_numpy)
    expected, found = actor.distribution(context), ActorGraph(actor).pages(context)
    page = expected.sample(generator)
    for part, value in expected.log_probs(page).items():
        torch.testing.assert_close(found.log_probs(page)[part], value.double(), rtol=0, atol=1e-4)


@pytest.fixture(params=["remembering", "remembering_items"])
def shoppers(request) -> FittedShoppers:
    """Shoppers of a log that shows everything, and of one that shows items alone."""
    return load_shoppers(request.getfixturevalue(request.param) / "run" / "shoppers", torch.device("cpu"))


@torch.no_grad()
def test_contexts_are_those_of_the_world_that_is_read(shoppers):
    """Of new shoppers and after two pages that were answered, also where there are hardly any candidates."""
    ensemble, generator = shoppers.ensembles["train"], torch.Generator().manual_seed(2)
    world = read(shoppers, shoppers.world("train"), REWARD)
    reading, observing = ReadGraph(ensemble, shoppers.builder, REWARD), ObserveGraph(ensemble)
    here, carried = world.arrive(20, generator), torch.zeros(20, observing.reader.width)
    gap, number = torch.zeros(20), torch.zeros(20)
    for _ in range(3):
        features, context = here.state[OWN + "shopper"], here.context
        shopper, affinity = reading(features, carried, gap, number, context.candidates)
        torch.testing.assert_close(shopper, context.shopper, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(affinity, context.affinity, rtol=1e-4, atol=1e-5)
        decision = _decided(world, context, generator)
        after, outcome = world.respond(here, decision, generator)
        none = torch.zeros_like(outcome.clicked)
        came = (none if part is None else part for part in (outcome.converted, outcome.revenue))
        page = (decision.slate, outcome.clicked, *came, decision.ad, decision.offer, decision.copy, none)
        carried = observing(features, carried, gap, number, *page)
        assert carried.dtype == torch.float32
        gap, number, here = outcome.days.float().clamp(max=365.0), torch.where(outcome.leave, 0.0, number + 1), after
    few = reading(features, carried, gap, number, here.context.candidates[:, : TOP - 7])
    assert few[1].shape == (20, TOP - 7)
    assert all(part.isfinite().all() for part in few)


def _decided(world, context, generator):
    n, size = len(context.mask), world.size
    scores = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0)
    lines = len(world.lines)
    copy = torch.randint(-1, lines, (n, size), generator=generator) if lines else torch.full((n, size), -1)
    return Decision(
        context.candidates.gather(1, scores.topk(size, 1).indices),
        torch.zeros(n),
        torch.randint(-1, size, (n,), generator=generator),
        torch.randint(0, world.offers, (n,), generator=generator),
        copy,
    )
