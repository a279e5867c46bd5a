"""The benchmark of constraints: its arithmetic by hand, and the whole of it in small."""

import json
from pathlib import Path

import pytest

from hawker.agents.config import PageTrainConfig
from hawker.benchmarks.constraints import ConstraintsConfig, _figures, bench_constraints
from hawker.shop.errors import InputError
from hawker.simulators.config import FitConfig


def row(seed: int, reward: float, load: float, share: float) -> dict:
    def judged(reward: float, load: float, share: float) -> dict:
        shares = {"shares": {"a": 1 - share, "b": share}, "share_errors": {"a": 0.5, "b": 0.002 * seed}}
        return {"reward": reward, "ad_load": load, "ad_load_error": 0.001 * seed, **shares}

    return {
        "seed": seed,
        "limits": {"ad_load": 0.1, "provider": "b", "share": 0.15},
        "free": judged(20.0, 0.6, 0.05),
        "trained": judged(reward + 1, load + 0.03, share - 0.02),
        "bound": judged(reward, load, share),
        "thinned": judged(reward - 2, load, share),
        "free_gold": judged(10.0, 0.5, 0.04),
        "trained_gold": judged(reward / 2, load + 0.05, share),
        "bound_gold": judged(reward / 2, load + 0.02, share - 0.01),
        "thinned_gold": judged(reward / 4, load, share),
    }


def test_figures_by_hand():
    figures = _figures([row(1, 18.0, 0.095, 0.16), row(2, 19.0, 0.107, 0.146)])
    value = {name: entry["value"] for name, entry in figures.items()}
    assert value == pytest.approx(
        {
            "constraint.ad_load_excess": 0.007,
            "constraint.share_deficit": 0.004,
            "constraint.price": (0.1 + 0.05) / 2,
            "constraint.ad_load": 0.101,
            "constraint.share": 0.153,
            "unconstrained.ad_load": 0.6,
            "unconstrained.share": 0.05,
            "unconstrained.share_deficit": 0.1,
            "unsettled.ad_load_excess": 0.037,
            "unsettled.share_deficit": 0.024,
            "settling.price": (1 / 19 + 1 / 20) / 2,
            "thinned.ad_load_excess": 0.007,
            "thinned.share_deficit": 0.004,
            "thinned.price": (0.2 + 0.15) / 2,
            "gold.ad_load_excess": 0.027,
            "gold.share_deficit": 0.014,
            "gold.ad_load": 0.121,
            "gold.share": 0.143,
            "gold.unsettled_ad_load": 0.151,
            "gold.price": (0.1 + 0.05) / 2,
            "gold.settling_price": 0.0,
            "gold.thinned_price": (0.55 + 0.525) / 2,
        }
    )
    price = figures["constraint.price"]
    assert price["low"] < 0.05 < 0.1 < price["high"]
    worst = figures["constraint.ad_load_excess"]
    assert (worst["low"], worst["high"]) == pytest.approx((0.007 - 1.96 * 0.002, 0.007 + 1.96 * 0.002)), (
        "the second seed"
    )
    assert figures["constraint.share_deficit"]["high"] == pytest.approx(0.004 + 1.96 * 0.004)


@pytest.mark.parametrize("seeds", [(), (1, -1)], ids=str)
def test_bad_seeds_are_refused(seeds: tuple[int, ...]):
    with pytest.raises(InputError, match="bad seeds"):
        bench_constraints(ConstraintsConfig(seeds=seeds), lambda _: None)


@pytest.mark.slow
def test_the_whole_benchmark_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    small = ConstraintsConfig(
        seeds=(1,),
        shoppers=80,
        followed=30,
        settled=30,
        fit=FitConfig(members=1, epochs=1),
        train=PageTrainConfig(steps=1024, shoppers=64, pages=4, batch=128),
    )
    report = bench_constraints(small, lambda _: None)
    json.dumps(report, allow_nan=False)
    detail = report["details"][0]
    limits = detail["limits"]
    assert limits["share"] == pytest.approx(detail["free"]["shares"][limits["provider"]] + small.raised)
    for arm in ("free", "trained", "bound", "thinned"):
        for where in ("", "_gold"):
            assert sum(detail[arm + where]["shares"].values()) == pytest.approx(1.0)
            assert detail[arm + where]["ad_load_error"] > 0
    assert set(detail["settled"]) == {"bound", "thinned"}
    assert detail["settled"]["thinned"]["numbers"]["ad_load"] > 0
    assert detail["thinned"]["ad_load"] < detail["free"]["ad_load"], "the free strategy is judged as it was"
    curve = detail["curves"]["bound"]
    assert [point["pages"] for point in curve] == [256, 512, 768, 1024]
    assert {"constraint/ad_load.multiplier", f"constraint/share.{limits['provider']}.excess"} <= set(curve[0])
    assert curve[-1]["constraint/ad_load.multiplier"] > 0, "pages chosen by chance have too many ads"
    assert set(detail["curves"]["free"][0]) == {"pages", "rollout/reward", "rollout/penalty"}
