"""The leaderboard: its arithmetic by hand, and the whole of it in small."""

import json
from pathlib import Path

import pytest
import torch

from hawker.agents.config import PageTrainConfig
from hawker.benchmarks.leaderboard import (
    BASELINES,
    CONTROL,
    METRICS,
    LeaderboardConfig,
    _figures,
    bench_leaderboard,
    metrics,
)
from hawker.benchmarks.rollout import Totals, Visits
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.config import FitConfig


def test_metrics_by_hand():
    t = torch.tensor
    visits = Visits(t([0, 0, 1]), t([0, 1, 0]), t([2, 1, 1]), t([1, 0, 0]))
    totals = Totals(
        clicks=t([2.0, 1.0]),
        purchases=t([0.5, 0.1]),
        revenue=t([10.0, 0.0]),
        ad_income=t([0.2, 0.0]),
        ads=t([1.0, 0.0]),
        impressions=t([12.0, 4.0]),
        pages=t([3.0, 1.0]),
        back=t([0.75, 0.25]),
        exposure=t([8.0, 8.0, 0.0, 0.0]),
        offers=t([3.0, 1.0]),
        visits=visits,
        segment=t([4, 1]),
    )
    got = metrics(totals, RewardSpec(click=1.0, conversion=5.0))
    assert set(got) == set(METRICS)
    expected = {
        "reward": (2 + 1 + 5 * 0.6) / 2,
        "worst_segment": 1.5 / 3.0,
        "visits": 1.5,
        "pages": 2.0,
        "ctr": 3 / 16,
        "cvr": 0.6 / 3,
        "d7": 0.5,
        "revenue": 5.0,
        "ad_income": 0.1,
        "ad_load": 0.25,
        "items": 2.0,
        "gini": 0.5,
    }
    assert got == pytest.approx(expected, rel=1e-6)


def row(variant: str, shift: float) -> dict:
    rewards = {
        "logging": 10.0,
        "privileged": 30.0 + shift,
        "ppo": 26.0 + shift,
        "cautious ppo": 24.0,
        "myopic": 20.0,
        "greedy on clicks": 15.0,
    }
    arms = {name: {"reward": rewards.get(name, 12.0), "d7": 0.5} for name in {*rewards, *BASELINES}}
    arms["ppo"]["d7"] = 0.6 + shift / 100
    if variant == CONTROL:
        del arms["privileged"]
    judged = {"ppo": 24.0 + shift, "cautious ppo": 27.0, "logging": 12.0}
    return {"variant": variant, "arms": arms, "judged": judged}


def test_figures_by_hand():
    figures = _figures([row("base", 0.0), row("base", 2.0)], control=False)
    assert figures["ppo.gap_closed"]["value"] == pytest.approx((16 / 20 + 18 / 22) / 2)
    assert figures["ppo_minus_best_baseline.reward"]["value"] == pytest.approx(7.0)
    assert figures["ppo_minus_myopic.ltv"]["value"] == pytest.approx(7.0)
    assert figures["ppo_minus_myopic.d7"]["value"] == pytest.approx(0.11)
    assert figures["proxy_gap.plain"]["value"] == pytest.approx((4 / 16 + 4 / 18) / 2)
    assert figures["gap"]["value"] == pytest.approx(21.0)
    assert figures["ppo.cautious_gap_closed"]["value"] == pytest.approx((14 / 20 + 14 / 22) / 2)
    assert figures["cautious_minus_ppo.ltv"]["value"] == pytest.approx(-3.0)
    assert figures["proxy_gap.pessimistic"]["value"] == pytest.approx(1 / 14)
    assert set(_figures([row(CONTROL, 0.0), row(CONTROL, 1.0)], control=True)) == {"control.d7"}
    assert all(name.startswith("cascade.") for name in _figures([row("cascade", 0.0)], control=False))


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match="bad seeds"):
        bench_leaderboard(LeaderboardConfig(seeds=()), lambda _: None)


@pytest.mark.slow
def test_the_whole_leaderboard_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    small = LeaderboardConfig(
        seeds=(1,),
        variants=(None, CONTROL),
        shoppers=80,
        followed=30,
        fit=FitConfig(members=1, epochs=1),
        train=PageTrainConfig(steps=512, shoppers=64, pages=4, batch=128),
        privileged=1,
    )
    report = bench_leaderboard(small, lambda _: None)
    json.dumps(report, allow_nan=False)
    arms = report["arms"]["base"]
    assert set(arms) == {"logging", "ppo", "cautious ppo", "privileged", *BASELINES}
    assert all(set(arm) == set(METRICS) for arm in arms.values())
    assert {name: len(curve) for name, curve in report["details"][0]["curves"].items()} == dict.fromkeys(
        ("ppo", "cautious ppo", "privileged"), 2
    )
    assert set(report["arms"][CONTROL]) == {"logging", "ppo", "cautious ppo", *BASELINES}
    assert "control.d7" in report["figures"]
    assert {"ppo.gap_closed", "ppo_minus_myopic.ltv"} <= set(report["figures"])
