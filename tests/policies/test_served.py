import numpy as np
import pytest
import torch

from hawker.policies.bundle import Bundle
from hawker.policies.export import export_bundle, random_pages
from hawker.policies.page_actor import PageStrategy
from hawker.policies.page_bundle import PageBundle
from hawker.policies.served import ServedPages, ServedStrategy
from hawker.policies.slate import SlateActor
from hawker.policies.trained import TrainedStrategy
from hawker.shop.decision import EMPTY
from hawker.simulators.small import small_world


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> tuple[TrainedStrategy, ServedStrategy]:
    builder = small_world().builder
    trained = TrainedStrategy(SlateActor(builder, 3, 16, torch.Generator().manual_seed(0)), builder, {})
    path = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(trained, path)
    return trained, ServedStrategy(Bundle.load(path))


def test_served_strategy_is_the_trained_one(arms):
    trained, served = arms
    context = random_pages(trained.builder, 500, np.random.default_rng(1)).map(torch.from_numpy)
    assert (served.name, served.size) == ("bundle", 3)
    assert torch.equal(served.distribution(context).mode(), trained.distribution(context).mode())
    decision = trained.propose(context, torch.Generator().manual_seed(2))
    assert (decision.slate == EMPTY).any()
    assert torch.allclose(served.log_prob(context, decision).float(), trained.log_prob(context, decision), atol=1e-5)


def test_served_strategy_decides_for_simulated_shoppers(arms):
    _, served = arms
    world = small_world()
    shoppers = world.arrive(100, torch.Generator().manual_seed(0))
    decision = served.propose(shoppers.context, torch.Generator().manual_seed(1))
    assert decision.slate.shape == (100, 3)
    assert torch.allclose(served.log_prob(shoppers.context, decision), decision.log_prob)
    logits = served.distribution(shoppers.context).logits
    assert torch.isfinite(logits).all()


def test_served_pages_are_the_trained_ones(served_pages):
    trained = PageStrategy.load(served_pages / "run" / "policy", torch.device("cpu"))
    served = ServedPages(PageBundle.load(served_pages / "bundle"))
    assert (served.name, served.size, served.layout) == ("bundle", trained.size, trained.actor.layout)
    context = random_pages(trained.builder, 100, np.random.default_rng(1)).map(torch.from_numpy)
    none = torch.zeros_like(context.mask)
    for mask in (None, none):
        decision = trained.propose(context, torch.Generator().manual_seed(2), mask)
        assert (decision.ad != EMPTY).any() == (mask is None)
        log_prob = served.log_prob(context, decision, mask)
        assert log_prob.dtype == torch.float64
        torch.testing.assert_close(log_prob.float(), trained.log_prob(context, decision, mask), rtol=0, atol=1e-4)
    own = served.propose(context, torch.Generator().manual_seed(3))
    assert torch.equal(served.log_prob(context, own), own.log_prob)
    assert set(own.log_probs) == {"slate", "ad", "offer", "copy"}
    assert torch.equal(served.distribution(context).mode(), trained.distribution(context).mode())
