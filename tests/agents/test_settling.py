"""Settling: what a number does to a page by hand, and that strategies hold their limits over whole horizons then."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from hawker.agents.config import Constraints, ProviderShare
from hawker.agents.constraints import Prices, items_of
from hawker.agents.settling import FARTHEST, ROUNDS, measure, ratios, settle, shift
from hawker.envs.environments import small_bazaar
from hawker.envs.page import STOREFRONT, Layout, Rules
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.shop.reward import RewardSpec

WORLD = small_bazaar()
CATALOG = WORLD.builder.catalog
IVORY, DUNE = ProviderShare("Ivory Lane", 0.2), ProviderShare("Dune Supply", 0.25)
BOTH = Constraints(0.1, (IVORY,))
RULES = Rules(horizon=7)


def strategy(spread: float = 3.0) -> PageStrategy:
    """Return an untrained strategy that shows ads to some shoppers and not to others."""
    generator = torch.Generator().manual_seed(0)
    vectors = np.random.default_rng(0).normal(size=(len(WORLD.lines), 8)).astype(np.float32)
    actor = PageActor(Layout.of(WORLD, STOREFRONT).page, WORLD.builder, 16, generator, WORLD.bids.numpy(), vectors)
    torch.nn.init.normal_(actor.no_ad.weight, std=spread, generator=generator)
    return PageStrategy(actor, WORLD.builder, WORLD.lines, {})


def prices(constraints: Constraints = BOTH, multiplier: float = 1.0) -> Prices:
    found = Prices(constraints, CATALOG)
    found.integral += multiplier
    return found


def test_a_number_moves_the_odds_of_no_ad_and_a_providers_logits_and_nothing_else():
    before, after, context = strategy(0.1), strategy(0.1), WORLD.arrive(50, torch.Generator().manual_seed(1)).context
    shift(after.actor, prices(Constraints(0.1, (IVORY, DUNE))), torch.tensor([0.7, -0.4, 1.2]))
    one, other = (found.actor(context, found.actor.bidder(context)) for found in (before, after))
    torch.testing.assert_close(other.ad[:, :-1], one.ad[:, :-1])
    torch.testing.assert_close(other.ad[:, -1], one.ad[:, -1] + 0.7, atol=0.02, rtol=0)  # but for the bound
    ivory, dune = (torch.from_numpy(items_of(share.provider, CATALOG))[context.candidates] for share in (IVORY, DUNE))
    torch.testing.assert_close(other.slate, one.slate - 0.4 * ivory + 1.2 * dune, atol=0.02, rtol=0)
    assert ivory.any()
    assert dune.any()
    torch.testing.assert_close(other.slot, one.slot)
    torch.testing.assert_close(other.line.given(None), one.line.given(None))


def test_ratios_and_errors_are_those_of_sums_over_shoppers():
    amounts, bases = np.array([[1.0, 0.0, 3.0, 2.0]]), np.array([[2.0, 4.0, 6.0, 4.0]])
    ratio, error = ratios(torch.tensor(np.stack([amounts, bases]), dtype=torch.float32))
    assert ratio.tolist() == pytest.approx([6 / 16])
    # The delta method by hand.
    assert error.tolist() == pytest.approx([np.std(amounts - 6 / 16 * bases, ddof=1) / 4.0 / 2.0], rel=1e-6)


def test_what_is_measured_is_what_was_shown():
    only = prices(
        Constraints(0.1, tuple(ProviderShare(name, 1e-6) for name in CATALOG.features.categories["provider"]))
    )
    ratio, _, found = measure(strategy(), WORLD, only, RewardSpec(), RULES, 40, 3)
    assert ratio[0] == pytest.approx(float(found.ads.sum() / found.pages.sum()))
    assert float(ratio[1:].sum()) == pytest.approx(1.0), "every item has a provider"
    again, *_ = measure(strategy(), WORLD, only, RewardSpec(), RULES, 40, 3)
    assert torch.equal(again, ratio)


def test_limits_are_held_by_shoppers_that_it_was_not_settled_with():
    constraints = Constraints(0.1, (IVORY, DUNE))
    trained = strategy()
    before, *_ = measure(trained, WORLD, prices(constraints), RewardSpec(), RULES, 600, 2)
    assert before[0] > 0.2
    assert before[1] < 0.15
    settled = settle(trained, WORLD, prices(constraints), RULES, 600, 1)
    assert settled.rounds < ROUNDS
    assert all(number > 0 for number in settled.numbers.values())
    ratio, error, _ = measure(trained, WORLD, prices(constraints), RewardSpec(), RULES, 600, 2)
    excess = prices(constraints).sign * (ratio - prices(constraints).limits)
    assert (excess < 2 * error).all(), "held, but for chance"
    assert (excess > -9 * error).all(), "and used up: nothing is given away"
    assert max(settled.excess.values()) <= 0
    context = WORLD.arrive(30, torch.Generator().manual_seed(5)).context
    page = trained.propose(context, torch.Generator().manual_seed(6))
    torch.testing.assert_close(trained.log_prob(context, page), page.log_prob)


def test_what_training_left_is_used_up_and_what_cost_nothing_is_left_alone():
    loose = Constraints(0.6, (ProviderShare("Ivory Lane", 0.03),))
    cost, free = strategy(), strategy()
    assert min(settle(cost, WORLD, prices(loose), RULES, 400, 1).numbers.values()) < 0
    ratio, error, _ = measure(cost, WORLD, prices(loose), RewardSpec(), RULES, 400, 2)
    assert (prices(loose).limits - ratio).abs().tolist() == pytest.approx([0, 0], abs=5 * float(error.max()))
    weights = copy.deepcopy(free.actor.state_dict())
    settled = settle(free, WORLD, prices(loose, 0.0), RULES, 400, 1)
    assert (settled.rounds, set(settled.numbers.values())) == (1, {0.0})
    assert all(torch.equal(weights[name], value) for name, value in free.actor.state_dict().items())


def test_what_cannot_be_held_ends_and_says_so():
    impossible = Constraints(0.1, (dataclasses.replace(IVORY, least=0.95),))  # candidates are drawn; most are others'
    settled = settle(strategy(), WORLD, prices(impossible), RULES, 60, 1)
    assert settled.excess["share.Ivory Lane"] > 0.3
    assert settled.numbers["share.Ivory Lane"] > FARTHEST / 2
    assert settled.excess["ad_load"] <= 0


def test_rules_are_kept_while_settling():
    """A shop that allows no ads at all has none to leave out."""
    settled = settle(strategy(), WORLD, prices(Constraints(0.1), 0.0), Rules(horizon=7, ad_load=0.0), 50, 1)
    assert settled.numbers == {"ad_load": 0.0}
    assert settled.excess == {"ad_load": pytest.approx(-0.1)}
