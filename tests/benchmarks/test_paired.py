"""Arms that have met the same shoppers: figures and p-values by hand, and worlds in which nothing or much differs."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.paired import UNITS, compare_paired, holm
from hawker.benchmarks.rollout import Totals, Visits, rollout
from hawker.policies.shopkeeper import Habits, Shopkeeper
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar

REWARD = RewardSpec(conversion=5.0)


def totals(clicks: Any, purchases: Any, impressions: Any, back: Any, segment: Any = None) -> Totals:
    parts = [torch.tensor(part, dtype=torch.float32) for part in (clicks, purchases, impressions, back)]
    none, nobody = torch.zeros(len(parts[0])), torch.zeros(0, dtype=torch.int64)
    return Totals(
        clicks=parts[0],
        purchases=parts[1],
        revenue=none,
        ad_income=none,
        ads=none,
        impressions=parts[2],
        pages=none,
        back=parts[3],
        exposure=torch.zeros(2),
        offers=torch.zeros(1),
        visits=Visits(nobody, nobody, nobody, nobody),
        segment=None if segment is None else torch.tensor(segment),
    )


A = totals([2.0, 1.0, 4.0, 1.0], [1.0, 0.0, 2.0, 0.0], [10.0, 5.0, 20.0, 5.0], [0.5, 0.2, 0.9, 0.4])
B = totals([1.0, 1.0, 3.0, 0.0], [0.0, 0.0, 1.0, 0.0], [10.0, 10.0, 10.0, 10.0], [0.4, 0.2, 0.7, 0.3])


def test_figures_by_hand():
    found = compare_paired({"a": A, "b": B}, [("a", "b")], REWARD)
    figures = found["figures"]
    assert set(figures) == {f"{kind}.{key}" for kind in ("arm.a", "arm.b", "pair.a - b") for key in UNITS}
    assert all(each["n"] == found["shoppers"] == 4 for each in figures.values())
    # Rewards: 7, 1, 14, 1 and 1, 1, 8, 0; differences 6, 0, 6, 1.
    assert figures["arm.a.reward"]["value"] == pytest.approx(5.75)
    assert figures["arm.b.reward"]["value"] == pytest.approx(2.5)
    pair = figures["pair.a - b.reward"]
    half = 1.959964 * np.std([6, 0, 6, 1], ddof=1) / 2
    assert (pair["value"], pair["low"], pair["high"]) == pytest.approx((3.25, 3.25 - half, 3.25 + half), rel=1e-6)
    # Of rates: sums over sums.
    assert figures["arm.a.ctr"]["value"] == pytest.approx(8 / 40)
    assert figures["arm.b.cvr"]["value"] == pytest.approx(1 / 5)
    assert figures["arm.a.d7"]["value"] == pytest.approx(0.5)
    # The delta method: CTR of a is 0.2 of impressions, 10 on average; of b 0.125 of 10.
    a = (np.array([2, 1, 4, 1]) - 0.2 * np.array([10, 5, 20, 5])) / 10
    b = (np.array([1, 1, 3, 0]) - 0.125 * 10) / 10
    half = 1.959964 * np.std(a - b, ddof=1) / 2
    ctr = figures["pair.a - b.ctr"]
    assert (ctr["value"], ctr["high"] - ctr["value"]) == pytest.approx((0.075, half), rel=1e-6)


def test_a_verdict_says_no_more_than_its_interval():
    found = compare_paired({"a": A, "b": B}, [("a", "b"), ("b", "a"), ("a", "a")], REWARD)
    first, second, same = found["pairs"]
    # z = 3.25 / (3.2016 / 2), the deviation of 6, 0, 6, 1 over the root of 4, = 2.0303; p = .0423, times 3 = .127
    assert first["p"] == second["p"] == pytest.approx(0.0423, abs=1e-4)
    assert first["p_corrected"] == pytest.approx(3 * first["p"])
    assert not first["distinguishable"]
    assert first["verdict"].startswith("a is not distinguishable from b: +3.25 of reward a shopper [+0.11, +6.39]")
    assert (same["p"], same["p_corrected"], same["distinguishable"]) == (1.0, 1.0, False)
    alone = compare_paired({"a": A, "b": B}, [("b", "a")], REWARD)["pairs"][0]
    assert alone["distinguishable"]
    assert alone["verdict"] == "b earns less than a among these shoppers: -3.25 of reward a shopper [-6.39, -0.11]"


def test_nothing_shown_or_clicked_has_no_rate():
    nobody = totals([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    found = compare_paired({"a": nobody, "b": nobody}, [("a", "b")], REWARD)
    for key in ("ctr", "cvr"):
        assert found["figures"][f"arm.a.{key}"]["value"] is None
        assert found["figures"][f"pair.a - b.{key}"]["low"] is None
    assert found["figures"]["arm.a.reward"]["value"] == 0
    assert not found["pairs"][0]["distinguishable"]


def test_other_shoppers_are_not_paired():
    ones = [1.0, 1.0]
    for other in (totals(ones, ones, ones, ones, [0, 2]), totals([1.0], [1.0], [1.0], [1.0], [0])):
        with pytest.raises(ValueError, match="the same shoppers"):
            compare_paired({"a": totals(ones, ones, ones, ones, [0, 1]), "b": other}, [("a", "b")], REWARD)


def test_pairs_of_a_gold_world():
    """The same shoppers come to every arm, and what is far better is found out with few of them."""
    world = BazaarWorld(load_bazaar(), torch.device("cpu"))
    popularity = torch.tensor(world.items.table["popularity"].to_numpy(), dtype=torch.float32)
    arms = {
        "logging": logging_strategy(world, "popularity"),
        "again": logging_strategy(world, "popularity"),
        "worst": Shopkeeper("worst", world.size, -popularity, Habits(exploration=0.0)),
    }
    met = {name: rollout(world, arm, 200, 7, torch.Generator().manual_seed(3)) for name, arm in arms.items()}
    found = compare_paired(met, [("again", "logging"), ("worst", "logging")], REWARD)
    same, worse = found["pairs"]
    assert found["figures"]["pair.again - logging.reward"]["value"] == 0.0
    assert (same["p"], same["distinguishable"]) == (1.0, False)
    assert worse["distinguishable"]
    assert "worst earns less than logging" in worse["verdict"]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_raises_and_keeps_the_order(p: list[float]):
    found = holm(p)
    assert all(plain <= raised <= 1 for plain, raised in zip(p, found, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(found)[order]) >= -1e-12).all()
    assert min(found) == pytest.approx(min(1.0, len(p) * min(p)))
