"""The simulated A/B test: honest about chance, honest about the model, the same for the same seed."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from hawker.benchmarks import abtest, comparison
from hawker.benchmarks.abtest import ab_test, member_views, play
from hawker.policies.baselines import LoggingClone, Popularity, RandomStrategy
from hawker.policies.protocol import SlateDistribution, Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.appeal import Architecture
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.shopper import IDENTITY, Ensemble, ShopperModel
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers, World


def named(strategy: Strategy, name: str) -> Strategy:
    strategy.name = name
    return strategy


def uniform(name: str = "random", size: int = 3) -> Strategy:
    return named(RandomStrategy(size), name)


class Fixed(Strategy):
    """Always the same slate."""

    def __init__(self, name: str, slate: list[int]) -> None:
        self.name, self.size, self._slate = name, len(slate), torch.tensor(slate)

    def distribution(self, context: Context[Tensor]) -> SlateDistribution:
        raise NotImplementedError

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        n = len(context.shopper)
        return Decision(self._slate.expand(n, -1), torch.zeros(n))


class Best(Strategy):
    """The best slate of a planted world, whose shoppers it knows by their features (every bank row has its own)."""

    def __init__(self, world: PlantedWorld, bank: Context[Tensor]) -> None:
        self.name, self.size, self._bank = "best", world.size, bank.shopper
        self._slates = world.best_slate(torch.arange(len(bank.shopper)))

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        slate = self._slates[torch.cdist(context.shopper, self._bank).argmin(1)]
        rank = torch.arange(self.size, 0, -1) * 15.0
        return PlackettLuce(
            torch.zeros_like(context.affinity).scatter(1, slate, rank.expand(slate.shape)), context.mask, self.size
        )


def bank_of(world: PlantedWorld) -> Context[Tensor]:
    """Every shopper of a planted world once, in order."""
    shoppers = world.arrive(50_000, torch.Generator().manual_seed(0))
    rows, where = np.unique(shoppers.member.numpy(), return_index=True)
    assert len(rows) == rows[-1] + 1  # with so many arrivals nobody is missing
    return shoppers.context.map(lambda array: array[torch.from_numpy(where)])


def true_lift(world: PlantedWorld, n_shoppers: int) -> float:
    """Relative lift in expected clicks of the best slate over uniform slates."""
    rows = torch.arange(n_shoppers)
    best = world.click_probability(rows, world.best_slate(rows)).sum(1).mean()
    # Under the uniform strategy every item is equally likely at every position.
    items = [
        world.click_probability(rows, torch.full((n_shoppers, world.size), i)).sum(1)
        for i in range(len(world.builder.catalog))
    ]
    return float(best / torch.stack(items).mean() - 1)


def learned_world(own_effects: list[dict[int, float]], size: int = 3) -> LearnedWorld:
    """A judge whose models know nothing but a click rate of 10% and, each, effects of some items on the log-odds."""
    world = small_world(size=size)
    members = []
    for effects in own_effects:
        member = ShopperModel(world.builder, size, Architecture(1, 1), 0.1, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for name, parameter in member.named_parameters():
                if name != "click.base":
                    parameter.zero_()
            for item, effect in effects.items():
                member.click.own_effect.weight[item] = effect
        members.append(member)
    bank = world.arrive(400, torch.Generator().manual_seed(1)).context
    return LearnedWorld(world.builder, Ensemble(members, IDENTITY), bank, size)


def without_figures(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "figures"}


# What is counted


def test_visits_are_counted_by_arm() -> None:
    world = small_world()
    visits = play([uniform(), Fixed("one", [4, EMPTY, EMPTY])], world, 6_000, 0, RewardSpec(response="sampled"))
    assert len(visits) == 6_000
    assert (visits["pages"] == 1).all()
    assert (visits["impressions"] == np.where(visits["arm"] == "one", 1, 3)).all()
    assert visits["clicks"].between(0, visits["impressions"]).all()
    np.testing.assert_array_equal(visits["reward"], visits["clicks"])
    assert abs((visits["arm"] == "one").sum() - 3_000) < 4 * math.sqrt(6_000) / 2


class LongVisits:
    """Item i is clicked always (i = 0) or never; a visit lasts as many pages as the shopper's member says."""

    def __init__(self, pages: int) -> None:
        world = small_world(size=1)
        self.builder, self.size, self.device = world.builder, 1, torch.device("cpu")
        self.choices, self.offers, self.lines, self.bids = world.choices, 1, (), world.bids
        self._bank, self._pages = world.arrive(1, torch.Generator().manual_seed(0)).context, pages

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        context = self._bank.map(lambda array: array.expand(n, -1))
        return Shoppers(context, torch.arange(n), {"seen": torch.zeros(n, dtype=torch.long)})

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        seen = shoppers.state["seen"] + 1
        clicked = (decision.slate == 0).float()
        gone = seen > shoppers.member % self._pages
        return dataclasses.replace(shoppers, state={"seen": seen}), Outcome(clicked, clicked, gone)


class Returning(LongVisits):
    """Nobody is ever gone: whoever leaves is back tomorrow."""

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        after, outcome = super().respond(shoppers, decision, generator)
        return after, dataclasses.replace(outcome, gone=torch.zeros_like(outcome.gone), leave=outcome.gone)


@pytest.mark.parametrize("kind", [LongVisits, Returning])
def test_visits_are_played_until_the_shopper_leaves(kind: type[LongVisits]) -> None:
    visits = play([Fixed("hit", [0]), Fixed("miss", [1])], kind(pages=4), 400, 0, RewardSpec())
    assert sorted(visits["pages"].unique()) == [1, 2, 3, 4]
    assert (visits["impressions"] == visits["pages"]).all()
    assert (visits["clicks"] == np.where(visits["arm"] == "hit", visits["pages"], 0)).all()
    assert (visits["pages"] == np.arange(400) % 4 + 1).all()


def test_a_world_that_nobody_leaves_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abtest, "MAX_PAGES", 3)
    with pytest.raises(RuntimeError, match="after 3 pages"):
        play([uniform(size=1), uniform("b", 1)], LongVisits(pages=10), 100, 0, RewardSpec())


# What is said of it


def test_figures_agree_with_hand_computation() -> None:
    world = small_world(ctr=0.1)
    arms = [Fixed("left", [0, 1, EMPTY]), Fixed("right", [2, 3, 4])]
    report = ab_test(arms, world, shoppers=4_000, seed=3)
    play_seed = int(np.random.SeedSequence(3).generate_state(3, np.uint64)[0])
    visits = play(arms, world, 4_000, play_seed, RewardSpec())
    left, right = (visits[visits["arm"] == name] for name in ("left", "right"))
    figures = report["figures"]
    for name, frame in (("left", left), ("right", right)):
        seen = figures[f"arm.{name}.ctr"]
        assert seen["value"] == pytest.approx(frame["clicks"].sum() / frame["impressions"].sum())
        seen, mean = figures[f"arm.{name}.clicks_per_visit"], frame["clicks"].mean()
        half = stats.t.ppf(0.975, len(frame) - 1) * frame["clicks"].sem()
        assert (seen["value"], seen["low"], seen["high"]) == pytest.approx((mean, mean - half, mean + half))
        assert seen["n"] == len(frame)
    welch = stats.ttest_ind(right["clicks"], left["clicks"], equal_var=False)
    difference = figures["pair.right.clicks_per_visit_difference"]
    assert report["pairs"][0]["p"]["clicks_per_visit"] == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval(0.95)
    assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high))
    lift = figures["pair.right.clicks_per_visit_lift"]
    assert lift["value"] == pytest.approx(right["clicks"].mean() / left["clicks"].mean() - 1)
    assert lift["n"] == len(visits)
    assert report["pairs"][0]["p_sample_ratio"] == pytest.approx(
        2 * stats.norm.sf((abs(len(right) - 2_000) - 0.5) / math.sqrt(1_000))
    )
    assert "truth is known" in report["judged_by"]
    assert "pair.right.model_lift" not in figures


def test_the_report_is_json_and_follows_the_seed() -> None:
    world = learned_world([{0: 1.0}, {0: 0.9}, {}])
    arms = [uniform(), Fixed("zero", [0, 1, 2])]
    first, again, other = (ab_test(arms, world, shoppers=1_000, seed=seed) for seed in (5, 5, 6))
    assert json.dumps(first, allow_nan=False) == json.dumps(again)
    assert first["figures"] != other["figures"]
    assert first["arms"] == ["random", "zero"]
    assert first["control"] == "random"


def test_holm_corrects_over_the_arms() -> None:
    arms = [uniform("a"), uniform("b"), uniform("c"), uniform("d")]
    report = ab_test(arms, small_world(), shoppers=4_000, seed=2)
    for metric in abtest.METRICS:
        raw = np.array([pair["p"][metric] for pair in report["pairs"]])
        corrected = np.array([pair["p_corrected"][metric] for pair in report["pairs"]])
        order = raw.argsort()
        by_hand = np.maximum.accumulate(raw[order] * [3, 2, 1]).clip(max=1.0)
        np.testing.assert_allclose(corrected[order], by_hand)
    assert report["correction"] == "Holm over 3 comparisons"


def test_an_a_a_test_is_calibrated() -> None:
    metrics = {abtest.DECIDING: abtest.METRICS[abtest.DECIDING]}
    repeats, shoppers = 200, 1_200
    arms = [uniform("a"), uniform("b"), uniform("c")]
    visits = play(arms, small_world(ctr=0.1), repeats * shoppers, 0, RewardSpec())
    experiment = np.arange(len(visits)) // (len(visits) // repeats)
    raw, family = [], []
    for _, rows in visits.groupby(experiment):
        results = comparison._compare(comparison._aggregate(rows, metrics), "a", metrics)
        raw.append(results["a", "b"]["clicks_per_visit"].pvalue)
        corrected = comparison._holm(results, metrics)
        family.append(min(corrected["a", name]["clicks_per_visit"]["pvalue_adj"] for name in "bc"))
    wrong, wrong_in_family = ((np.array(p) < 0.05).sum() for p in (raw, family))
    assert 3 <= wrong <= 19  # 10 expected; either bound has a chance of 1 in 400
    assert wrong_in_family <= 19
    assert stats.kstest(raw, "uniform").pvalue > 0.01


def coverage(repeats: int, shoppers: int) -> int:
    """How often, of ``repeats`` tests of the best slate against random, the lift is found and its interval right."""
    world = small_world(n_items=20, ctr=0.1, seed=4)
    bank = bank_of(world)
    truth, arms, covered = true_lift(world, len(bank.shopper)), [uniform(), Best(world, bank)], 0
    for seed in range(repeats):
        report = ab_test(arms, world, shoppers=shoppers, seed=seed)
        lift = report["figures"]["pair.best.clicks_per_visit_lift"]
        assert report["pairs"][0]["distinguishable"]
        assert report["verdict"].startswith("best does better than random")
        covered += lift["low"] <= truth <= lift["high"]
    return covered


def test_a_planted_lift_is_found() -> None:
    assert coverage(20, 2_000) >= 16


@pytest.mark.slow
def test_intervals_cover_a_planted_lift() -> None:
    assert coverage(100, 4_000) >= 90


# What the judge's models say


def test_every_model_gives_its_own_lift() -> None:
    world = learned_world([{0: 1.0}, {0: 2.0}, {1: 1.0}])
    views = member_views([Fixed("a", [5, 6, 7]), Fixed("b", [0, 1, EMPTY])], world, 1_000, 1, 2)
    assert views is not None

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    base = math.log(0.1 / 0.9)
    np.testing.assert_allclose(views[0], [0.3, 0.3, 0.3], rtol=1e-5)
    np.testing.assert_allclose(
        views[1], [sigmoid(base + 1) + 0.1, sigmoid(base + 2) + 0.1, sigmoid(base + 1) + 0.1], rtol=1e-5
    )


def test_models_see_one_strategy_twice_as_equal() -> None:
    world = learned_world([{0: 1.0, 3: -1.0}, {1: 2.0}])
    views = member_views([uniform("a"), uniform("b")], world, 15_000, 1, 2)
    assert views is not None
    np.testing.assert_array_equal(views[0], views[1])
    report = ab_test([uniform("a"), uniform("b")], world, shoppers=2_000, seed=0)
    assert report["figures"]["pair.b.model_lift"]["value"] == 0.0
    assert not report["pairs"][0]["distinguishable"]


def test_a_gold_world_has_no_models() -> None:
    assert member_views([uniform(), uniform("b")], small_world(), 100, 1, 2) is None


def test_many_shoppers_do_not_hide_that_the_models_disagree() -> None:
    world = learned_world([{0: 1.5}, {0: -1.5}, {0: 1.2}, {0: -0.7}, {0: 0.9}])
    report = ab_test([Fixed("plain", [5, 6, 7]), Fixed("bold", [0, 1, 2])], world, shoppers=80_000, seed=0)
    pair = report["pairs"][0]
    assert pair["p_corrected"]["clicks_per_visit"] < 1e-6
    assert report["figures"]["pair.bold.model_lift"]["low"] < 0 < report["figures"]["pair.bold.model_lift"]["high"]
    assert not pair["distinguishable"]
    assert pair["doubts"] == ["the log behind the judge does not tell them apart (its models' interval holds zero)"]
    assert report["verdict"] == "not distinguishable from plain: bold"


def test_models_that_agree_tell_arms_apart() -> None:
    world = learned_world([{0: 0.8}, {0: 0.9}, {0: 0.7}, {0: 0.85}])  # lifts of about a third
    arms = [Fixed("plain", [5, 6, 7]), Fixed("bold", [0, 1, 2]), Fixed("plain too", [7, 6, 5])]
    report = ab_test(arms, world, shoppers=12_000, seed=0)
    bold, same = report["pairs"]
    assert bold["distinguishable"]
    assert bold["doubts"] == []
    assert bold["p"]["reward_per_visit"] == bold["p_corrected"]["reward_per_visit"] == 0.0  # expected clicks: no noise
    assert not same["distinguishable"]
    assert report["verdict"].startswith("bold does better than plain among these shoppers: +")
    assert report["verdict"].endswith("not distinguishable from plain: plain too")
    assert report["cautions"] == []
    reversed_ = ab_test([arms[1], arms[0]], world, shoppers=12_000, seed=0)
    assert reversed_["verdict"].startswith("plain does worse than bold among these shoppers: -")


def test_one_model_is_not_enough_and_great_lifts_earn_a_caution() -> None:
    world = learned_world([{0: 2.0}])
    report = ab_test([Fixed("plain", [5, 6, 7]), Fixed("bold", [0, 1, 2])], world, shoppers=12_000, seed=0)
    assert report["cautions"] == ["a lift of bold beyond 50% is a mistake until shown otherwise"]
    assert report["figures"]["pair.bold.model_lift"]["low"] is None
    assert report["pairs"][0]["doubts"] == ["one model cannot say how far it may be wrong"]


# What cannot be used


def test_arms_without_clicks_give_no_winner() -> None:
    world = LongVisits(pages=1)
    report = ab_test([Fixed("miss", [1]), Fixed("miss too", [2]), Fixed("hit", [0])], world, shoppers=600, seed=0)
    miss, hit = report["pairs"]
    assert report["figures"]["arm.miss.ctr"] == {
        "value": 0.0,
        "low": None,
        "high": None,
        "n": report["figures"]["arm.miss.ctr"]["n"],
        "unit": "probability",
    }
    assert report["figures"]["pair.hit.ctr_lift"]["value"] is None
    assert miss["p"]["ctr"] is None
    assert "only 0 clicks" in miss["verdict"]
    assert "no lift can be given" in hit["verdict"]
    assert not miss["distinguishable"]
    assert not hit["distinguishable"]
    json.dumps(report, allow_nan=False)


def test_an_unfair_assignment_voids_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    original = abtest.play

    def lose_some(*args: Any) -> pd.DataFrame:
        visits = original(*args)
        return visits.drop(visits.index[visits["arm"] == "bold"][:500])

    monkeypatch.setattr(abtest, "play", lose_some)
    world = learned_world([{0: 1.0}, {0: 1.1}, {0: 0.9}])
    report = ab_test([Fixed("plain", [5, 6, 7]), Fixed("bold", [0, 1, 2])], world, shoppers=12_000, seed=0)
    assert len(report["pairs"][0]["doubts"]) == 1
    assert "no fair assignment" in report["pairs"][0]["doubts"][0]


class Diverged(Fixed):
    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        decision = super().propose(context, generator)
        return Decision(decision.slate, decision.log_prob * torch.nan)


class Broken(LongVisits):
    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        after, outcome = super().respond(shoppers, decision, generator)
        return after, Outcome(outcome.clicked, outcome.click_probability * torch.nan, outcome.gone)


@pytest.mark.parametrize(
    ("arms", "world", "options", "message"),
    [
        ([uniform()], small_world(), {}, "arms: an A/B test compares two or more arms; got ['random']"),
        ([], small_world(), {}, "arms: an A/B test compares two or more arms; got []"),
        ([uniform(), uniform("b"), uniform()], small_world(), {}, "arms: two arms have one name; got 'random'"),
        ([uniform(), uniform("b", 4)], small_world(), {}, "arm b: slates of another size; got 4, expected 3"),
        ([uniform(), uniform("b")], small_world(), {"shoppers": 0}, "shoppers: bad number of shoppers; got 0"),
        (
            [uniform(), uniform("b")],
            small_world(),
            {"shoppers": -5},
            "got -5, expected an integer of at least 200, 100 for each arm",
        ),
        ([uniform(), uniform("b")], small_world(), {"shoppers": math.nan}, "shoppers: bad number of shoppers; got nan"),
        ([uniform(), uniform("b")], small_world(), {"shoppers": 1e4}, "shoppers: bad number of shoppers; got 10000.0"),
        ([uniform(), uniform("b")], small_world(), {"shoppers": True}, "shoppers: bad number of shoppers; got True"),
        ([uniform(), uniform("b")], small_world(), {"seed": -1}, "seed: bad seed; got -1"),
        ([uniform(), uniform("b")], small_world(), {"seed": math.nan}, "seed: bad seed; got nan"),
        ([uniform(), Diverged("b", [1, 2, 3])], small_world(), {}, "arm b: a slate's log-probability is not a number"),
        ([uniform("a", 1), uniform("b", 1)], Broken(1), {}, "the world's click probability is not a number"),
        ([uniform(), uniform("b")], small_world(), {"reward": RewardSpec(revenue=1.0)}, "have no revenue head"),
    ],
)
def test_bad_input(arms: list[Strategy], world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        ab_test(arms, world, **{"shoppers": 200, "seed": 0, **options})
    assert message in str(error.value)


def test_every_kind_of_strategy_can_be_an_arm() -> None:
    generator = np.random.default_rng(0)
    arms = [
        uniform(),
        Popularity(generator.uniform(0.01, 0.1, 20), 3),
        LoggingClone(generator.dirichlet([1.0] * 20, 3)),
    ]
    report = ab_test(arms, small_world(), shoppers=900, seed=0)
    assert [pair["treatment"] for pair in report["pairs"]] == ["popularity", "clone"]
    assert set(without_figures(report)) == {
        "pairs",
        "verdict",
        "cautions",
        "judged_by",
        "control",
        "arms",
        "deciding_metric",
        "correction",
        "shoppers",
        "reward",
        "seed",
        "unit",
    }
