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
        return {"reward": reward, "ad_load": load, "shares": {"a": 1 - share, "b": share}}

    return {
        "seed": seed,
        "limits": {"ad_load": 0.1, "provider": "b", "share": 0.15},
        "free": judged(20.0, 0.6, 0.05),
        "bound": judged(reward, load, share),
        "free_gold": judged(10.0, 0.5, 0.04),
        "bound_gold": judged(reward / 2, load + 0.02, share - 0.01),
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
            "gold.ad_load": 0.121,
            "gold.share": 0.143,
            "gold.price": (0.1 + 0.05) / 2,
        }
    )
    price = figures["constraint.price"]
    assert price["low"] < 0.05 < 0.1 < price["high"]


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
        fit=FitConfig(members=1, epochs=1),
        train=PageTrainConfig(steps=1024, shoppers=64, pages=4, batch=128),
    )
    report = bench_constraints(small, lambda _: None)
    json.dumps(report, allow_nan=False)
    detail = report["details"][0]
    limits = detail["limits"]
    assert limits["share"] == pytest.approx(detail["free"]["shares"][limits["provider"]] + small.raised)
    for arm in ("free", "bound", "free_gold", "bound_gold"):
        assert sum(detail[arm]["shares"].values()) == pytest.approx(1.0)
        assert detail[arm]["ad_load_error"] > 0
    curve = detail["curves"]["bound"]
    assert [point["pages"] for point in curve] == [256, 512, 768, 1024]
    assert {"constraint/ad_load.multiplier", f"constraint/share.{limits['provider']}.excess"} <= set(curve[0])
    assert curve[-1]["constraint/ad_load.multiplier"] > 0, "pages chosen by chance have too many ads"
    assert set(detail["curves"]["free"][0]) == {"pages", "rollout/reward", "rollout/penalty"}
