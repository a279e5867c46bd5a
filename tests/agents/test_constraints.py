"""Constraints: what a page counts for and how prices move, by hand; and that PPO comes to hold what binds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from hawker.agents.config import Constraints, PageTrainConfig, ProviderShare
from hawker.agents.constraints import INTEGRAL, LARGEST, PROPORTIONAL, Prices, items_of
from hawker.agents.page_ppo import page_ppo
from hawker.benchmarks.rollout import rollout
from hawker.envs.environments import small_bazaar
from hawker.envs.page import AD_PLACEMENT, RECOMMEND, STOREFRONT, Rules
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page_actor import PageStrategy
from hawker.shop.config import load_config, save_config
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec

WORLD = small_bazaar()
CATALOG = WORLD.builder.catalog
ALDER, DUNE = ProviderShare("Alder & Sons", 0.25), ProviderShare("Dune Supply", 0.5)


def test_whose_items_are_is_what_the_items_table_says():
    table = WORLD.items.table
    for provider in table["provider"].unique():
        assert np.array_equal(items_of(provider, CATALOG), (table["provider"] == provider).to_numpy())


def pages() -> Decision[torch.Tensor]:
    """Three pages of three slots: an ad and one item of Alder; two of Alder; one of Dune and an empty slot."""
    alder, dune = (np.flatnonzero(items_of(share.provider, CATALOG)) for share in (ALDER, DUNE))
    other = int(np.flatnonzero(items_of("Fjord Works", CATALOG))[0])
    slate = [[alder[0], other, other], [alder[0], alder[1], other], [dune[0], other, EMPTY]]
    return Decision(torch.tensor(slate), torch.zeros(3), ad=torch.tensor([1, EMPTY, EMPTY]))


def test_what_pages_count_and_pay_by_hand():
    prices = Prices(Constraints(0.1, (ALDER, DUNE)), CATALOG)
    assert prices.names == ["ad_load", "share.Alder & Sons", "share.Dune Supply"]
    counts = prices.counts(pages())
    torch.testing.assert_close(
        counts[0], torch.tensor([[1, 0, 0], [1 / 3, 2 / 3, 0], [0, 0, 1 / 3]], dtype=torch.float32)
    )
    torch.testing.assert_close(counts[1], torch.tensor([[1, 1, 1], [1, 1, 2 / 3], [1, 1, 2 / 3]]))
    assert not prices.penalty(counts).any(), "nothing costs anything at first"
    prices.multipliers = torch.tensor([2.0, 0.0, 3.0])
    prices.square = torch.tensor(0.25, dtype=torch.float64)
    ad = [0.9, -0.1, -0.1]
    dune = [0.5 * 1, 0.5 * 1, 0.5 * 2 / 3 - 1 / 3]
    expected = [0.5 * (2 * a + 3 * d) for a, d in zip(ad, dune, strict=True)]
    assert prices.penalty(counts).tolist() == pytest.approx(expected)


def test_without_an_ad_part_there_are_no_ads():
    prices = Prices(Constraints(0.1), CATALOG)
    counts = prices.counts(dataclasses.replace(pages(), ad=None))
    assert counts.tolist() == [[[0, 0, 0]], [[1, 1, 1]]]


def test_without_constraints_nothing_is_counted_and_nothing_paid():
    prices = Prices(Constraints(), CATALOG)
    counts = prices.counts(pages())
    assert counts.shape == (2, 0, 3)
    assert prices.penalty(counts).tolist() == [0, 0, 0]
    assert prices.update(counts.sum(2), np.ones(3, np.float32)) == {}


def test_prices_move_as_computed_by_hand():
    prices = Prices(Constraints(0.1, (ALDER,)), CATALOG)
    integral, squares, rewards = [0.0, 0.0], [], np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    measured = [(0.13, 0.20), (0.11, 0.26), (0.05, 0.9), (0.5, 0.21)]
    for (ads, share), reward in zip(measured, rewards, strict=True):
        counts = torch.tensor([[10 * ads, 8 * share], [10.0, 8.0]])
        told = prices.update(counts, reward)
        squares.extend(reward.flatten() ** 2)
        excess = [ads - 0.1, 0.25 - share]
        steps = [min(max(e, -LARGEST), LARGEST) for e in excess]
        integral = [max(i + INTEGRAL * s, 0.0) for i, s in zip(integral, steps, strict=True)]
        multipliers = [max(i + PROPORTIONAL * s, 0.0) for i, s in zip(integral, steps, strict=True)]
        assert prices.multipliers.tolist() == pytest.approx(multipliers, abs=1e-5)
        assert float(prices.square) == pytest.approx(np.mean(squares), rel=1e-5)
        values = [ads, excess[0], multipliers[0], share, excess[1], multipliers[1]]
        assert list(told.values()) == pytest.approx(values, abs=1e-5)
    assert list(told) == [
        *("ad_load", "ad_load.excess", "ad_load.multiplier"),
        *("share.Alder & Sons", "share.Alder & Sons.excess", "share.Alder & Sons.multiplier"),
    ]


def test_the_scale_of_rewards_changes_penalties_alike():
    counts, rewards = torch.tensor([[5.0], [10.0]]), np.linspace(0.1, 1, 12, dtype=np.float32)
    found = []
    for scale in (1.0, 1000.0):
        prices = Prices(Constraints(0.1), CATALOG)
        prices.update(counts, rewards * scale)
        found.append(prices.penalty(prices.counts(pages())) / scale)
    assert found[0].any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraints(1.1), "constraints.ad_load: not a share; got 1.1, expected a number from 0 to 1"),
        (lambda: Constraints(-0.1), "constraints.ad_load: not a share; got -0.1"),
        (lambda: Constraints(math.nan), "constraints.ad_load: not a share; got nan"),
        (lambda: Constraints(shares=(ProviderShare("a", 0.0),)), "constraints.shares 'a': not a share; got 0.0"),
        (lambda: Constraints(shares=(ProviderShare("a", 1.5),)), "constraints.shares 'a': not a share; got 1.5"),
        (lambda: Constraints(shares=(ProviderShare("a", math.nan),)), "constraints.shares 'a': not a share; got nan"),
        (lambda: Constraints(shares=(ALDER, ALDER)), "a provider is named twice; got 'Alder & Sons'"),
        (
            lambda: Constraints(shares=(ProviderShare("a", 0.7), ProviderShare("b", 0.5))),
            "constraints.shares: more is promised than there is; got 1.2, expected at most 1 in all",
        ),
        (
            lambda: Prices(Constraints(shares=(ProviderShare("Alder and Sons", 0.2),)), CATALOG),
            "constraints.shares: unknown provider; got 'Alder and Sons'; did you mean 'Alder & Sons'?",
        ),
        (
            lambda: Prices(Constraints(shares=(ALDER,)), without_providers()),
            "constraints.shares: the items have no providers; got 'Alder & Sons'; give the items table a text column",
        ),
        (lambda: model_of(Constraints(0.1), parts=RECOMMEND), "train.constraints: a constraint on what is not chosen"),
        (lambda: model_of(Constraints(shares=(ALDER,)), parts=AD_PLACEMENT), "a constraint on what is not chosen"),
    ],
)
def test_bad_constraints_are_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)


def without_providers():
    return type(CATALOG).from_items(WORLD.items.table.drop(columns="provider"))


def test_a_config_file_keeps_them(tmp_path):
    config = PageTrainConfig(constraints=Constraints(0.1, (ALDER, DUNE)))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PageTrainConfig, tmp_path / "config.yaml") == config


CONFIG = PageTrainConfig(shoppers=256, pages=8, batch=512, hidden=32, final_rate=0.1)
REWARD = RewardSpec(conversion=5.0, ad_income=15.0)


def model_of(constraints, config=CONFIG, parts=STOREFRONT):
    rules = Rules(horizon=28)
    env = StorefrontVecEnv(WORLD, config.shoppers, REWARD, config.seed, parts=parts, rules=rules)
    vectors = np.random.default_rng(0).normal(size=(len(WORLD.lines), 8)).astype(np.float32)
    return page_ppo(env, dataclasses.replace(config, constraints=constraints), vectors)


class Keep(BaseCallback):
    """Keeps what each rollout logged."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.logged.append(dict(self.logger.name_to_value))


def test_the_learner_sees_penalties_that_reports_of_the_reward_do_not():
    config = dataclasses.replace(CONFIG, shoppers=64, pages=4, batch=64, epochs=1)
    model, keep = model_of(Constraints(0.1, (ALDER,)), config), Keep()
    model.set_logger(Logger(None, []))
    model.learn(2 * 256, callback=keep)
    kept, second = model.rollout_buffer._kept, keep.logged[1]
    assert second["rollout/reward"] == pytest.approx(float(kept["rewards"].mean()), rel=1e-5)
    assert second["rollout/penalty"] == pytest.approx(float(kept["penalties"].mean()), rel=1e-4)
    assert second["constraint/ad_load"] == pytest.approx(second["rollout/ads"])
    assert keep.logged[0]["rollout/penalty"] == 0
    paid = [keep.logged[0][f"constraint/{name}.multiplier"] for name in model.policy.prices.names]
    unit = np.sqrt(second_moment(model))
    excess = [second[f"constraint/{name}.excess"] for name in model.policy.prices.names]
    # No slot was empty, so that pages count alike in every denominator.
    assert second["rollout/empty_slots"] == 0
    by_hand = unit * sum(price * broken for price, broken in zip(paid, excess, strict=True))
    assert second["rollout/penalty"] == pytest.approx(by_hand, rel=1e-3)


def second_moment(model):
    """Return the mean square of the first rollout's rewards, from that of both and the second's own."""
    prices, rewards = model.policy.prices, model.rollout_buffer.rewards
    return 2 * float(prices.square) - float(np.square(rewards, dtype=np.float64).mean())


def test_the_step_size_falls_evenly_to_its_last_share():
    config = dataclasses.replace(CONFIG, shoppers=16, pages=4, batch=64, epochs=1, final_rate=0.25, learning_rate=0.01)
    model, rates = model_of(Constraints(), config), []
    model.set_logger(Logger(None, []))

    class Rates(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            rates.append(model.policy.optimizer.param_groups[0]["lr"])

    model.learn(4 * 64, callback=Rates())
    rates.append(model.policy.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, *(0.01 * (0.25 + 0.75 * left) for left in (0.75, 0.5, 0.25, 0.0))])


@pytest.mark.slow
def test_what_binds_is_held():
    """Without limits nine pages of ten have an ad, and Ivory Lane has less than 8% of the impressions."""
    larger = dataclasses.replace(CONFIG, shoppers=512, batch=1024, hidden=64)
    found, keep = {}, Keep()
    for steps, constraints in (
        (60_000, Constraints()),
        (400_000, Constraints(0.1, (ProviderShare("Ivory Lane", 0.14),))),
    ):
        model = model_of(constraints, larger)
        model.set_logger(Logger(None, []))
        model.learn(steps, callback=keep)
        strategy = PageStrategy(model.policy.actor, WORLD.builder, WORLD.lines, {})
        totals = rollout(WORLD, strategy, 4000, 28, torch.Generator().manual_seed(1))
        own = totals.exposure[torch.from_numpy(items_of("Ivory Lane", CATALOG))]
        found[steps] = float(totals.ads.sum() / totals.pages.sum()), float(own.sum() / totals.exposure.sum())
    (free_load, free_share), (load, share) = found.values()
    assert free_load > 0.5
    assert free_share < 0.09
    late = [rollout["constraint/ad_load"] for rollout in keep.logged[-25:]]
    assert np.mean(late) == pytest.approx(0.1, abs=0.02), "a limit that costs reward is used up"
    assert 0.05 < load < 0.15, "prices and policy swing around the limit: the last policy is within 5 points of it"
    assert share > 0.12
