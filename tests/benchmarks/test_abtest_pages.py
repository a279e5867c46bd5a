"""A simulated A/B test of whole pages: a shopper's whole time is its unit, and the models have their own view of it."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.agents.page_world import read
from hawker.benchmarks import abtest_pages
from hawker.benchmarks.abtest_pages import DECIDING, METRICS, PageArm, _views, ab_pages
from hawker.benchmarks.arms import load_page_arm
from hawker.envs.page import Rules
from hawker.policies.baselines import RandomStrategy
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")
REWARD = RewardSpec(conversion=5.0)


@pytest.fixture(scope="module")
def shoppers(remembering) -> FittedShoppers:
    return load_shoppers(remembering / "run" / "shoppers", CPU)


def arm_of(shoppers: FittedShoppers, name: str) -> PageArm:
    strategy = RandomStrategy(shoppers.size)
    strategy.name = name
    return PageArm(strategy, read(shoppers, shoppers.world("judge"), REWARD), Rules())


def test_the_report_says_what_it_is_of(shoppers, remembering):
    run = Run(remembering / "run")
    arms = [load_page_arm(name, shoppers, run, REWARD) for name in ("random", "myopic", "clone")]
    reports = [ab_pages(arms, shoppers=300, days=6.0, seed=seed, reward=REWARD) for seed in (1, 1, 2)]
    assert json.dumps(reports[0], allow_nan=False) == json.dumps(reports[1])
    assert reports[0]["figures"] != reports[2]["figures"]
    report = reports[0]
    assert (report["unit"], report["days"], report["shoppers"]) == ("shopper's 6 days", 6.0, 300)
    assert (report["control"], report["deciding_metric"]) == ("random", DECIDING)
    assert [pair["treatment"] for pair in report["pairs"]] == ["myopic", "clone"]
    assert "2 models" in report["judged_by"]
    figures = report["figures"]
    assert {name.removeprefix("arm.random.") for name in figures if name.startswith("arm.random.")} == set(METRICS)
    for pair in ("myopic", "clone"):
        assert {f"pair.{pair}.{metric}_lift" for metric in METRICS} <= set(figures)
        assert figures[f"pair.{pair}.model_lift"]["n"] == 2
    assert sum(figures[f"arm.{name}.ctr"]["n"] for name in report["arms"]) == 300
    assert all(0 < figures[f"arm.{name}.{rate}"]["value"] < 1 for name in report["arms"] for rate in ("ctr", "d7"))
    assert figures["arm.random.ad_load"]["value"] == 0 < figures["arm.clone.ad_load"]["value"]
    assert "reward per shopper" in report["pairs"][0]["verdict"]
    assert report["reward"]["conversion"] == 5.0


def test_what_was_counted_is_what_is_said(shoppers, monkeypatch):
    """Two arms of one and the same strategy; the rows that the figures are made of are looked at."""
    kept = []
    original = abtest_pages._followed

    def keeping(*args):
        kept.append(original(*args))
        return kept[-1]

    monkeypatch.setattr(abtest_pages, "_followed", keeping)
    monkeypatch.setattr(abtest_pages, "CHUNK", 70)
    arms = [arm_of(shoppers, name) for name in "ab"]
    report = ab_pages(arms, shoppers=400, days=8.0, seed=0, reward=dataclasses.replace(REWARD, disagreement=0.3))
    one, other = kept
    figures = report["figures"]
    assert figures["arm.a.reward_per_shopper"]["value"] == pytest.approx(one["reward"].mean())
    assert figures["arm.b.cvr"]["value"] == pytest.approx(other["purchases"].sum() / other["clicks"].sum())
    assert figures["arm.b.d7"]["value"] == pytest.approx(other["back"].mean())
    lift = figures["pair.b.reward_per_shopper_lift"]["value"]
    assert lift == pytest.approx(other["reward"].mean() / one["reward"].mean() - 1)
    lifts = [
        other["reward"][other["member"] == m].mean() / one["reward"][one["member"] == m].mean() - 1 for m in (0, 1)
    ]
    assert figures["pair.b.model_lift"]["value"] == pytest.approx(np.mean(lifts))
    assert not report["pairs"][0]["distinguishable"]
    assert report["reward"]["disagreement"] == 0.0  # the judge tells no doubts
    assert one["member"].value_counts().min() > 70


def test_models_without_shoppers_have_no_view():
    table = pd.DataFrame({"arm": ["a", "a", "b"], "member": [0, 1, 0], "reward": [2.0, 4.0, 3.0]})
    lifts = _views(table, ["a", "b"], 3)["b"]
    assert lifts[0] == pytest.approx(0.5)
    assert np.isnan(lifts[1:]).all()


def test_what_the_log_does_not_know_is_not_measured(remembering_items):
    shoppers = load_shoppers(remembering_items / "run" / "shoppers", CPU)
    run = Run(remembering_items / "run")
    arms = [load_page_arm(name, shoppers, run, RewardSpec()) for name in ("popularity", "clone", "myopic")]
    report = ab_pages(arms, shoppers=300, days=5.0, seed=0, reward=RewardSpec())
    metrics = {name.removeprefix("arm.myopic.") for name in report["figures"] if name.startswith("arm.myopic.")}
    assert metrics == {DECIDING, "ctr", "d7", "visits_per_shopper"}


def test_a_strategist_beside_the_likeliest_pages(served_bank):
    """Their shoppers live in the same models: what says lines lives in one with audiences."""
    run = Run(served_bank / "run")
    shoppers = load_shoppers(run.shoppers, CPU)
    arms = [load_page_arm(name, shoppers, run, REWARD) for name in ("likeliest", "strategist")]
    for pair in (arms, arms[::-1]):
        report = ab_pages(pair, shoppers=300, days=5.0, seed=0, reward=REWARD)
        assert "2 models" in report["judged_by"]
        treatment = pair[1].strategy.name
        assert {f"pair.{treatment}.{metric}_lift" for metric in METRICS} <= set(report["figures"])
        assert report["figures"][f"pair.{treatment}.model_lift"]["n"] == 2


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("a", {}, "arms: an A/B test compares two or more arms; got ['a']"),
        ("", {}, "arms: an A/B test compares two or more arms; got []"),
        ("aba", {}, "arms: two arms have one name; got 'a'"),
        ("ab", {"shoppers": 199}, "shoppers: bad number of shoppers; got 199, expected an integer of at least 200"),
        ("ab", {"days": 0.0}, "days: bad number of days; got 0.0, expected a number from 1 to 365"),
        ("ab", {"days": float("nan")}, "days: bad number of days; got nan"),
        ("ab", {"seed": -1}, "seed: bad seed; got -1"),
    ],
    ids=["one arm", "no arm", "names", "shoppers", "no days", "nan days", "seed"],
)
def test_bad_input(shoppers, names, options, message):
    with pytest.raises(InputError) as caught:
        ab_pages(
            [arm_of(shoppers, name) for name in names],
            **{"shoppers": 200, "days": 2.0, "seed": 0, "reward": REWARD, **options},
        )
    assert message in str(caught.value)
