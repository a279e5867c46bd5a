"""The Pareto front: its arithmetic by hand, a sweep over a run's shoppers, and the whole benchmark in small."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.benchmarks.pareto import (
    AIMS,
    QUICK,
    ParetoConfig,
    bench_pareto,
    hypervolume,
    non_dominated,
    outcome_rates,
    summary,
    sweep,
    trade,
    weightings,
)
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.config import FitConfig
from hawker.simulators.store import load_shoppers

TRAIN = replace(QUICK.train, steps=128, shoppers=32, pages=4, batch=64, horizon=7.0, hidden=16)


def test_weightings_by_hand():
    rates = {"click": 0.5, "conversion": 0.1, "return_visit": 0.2}
    assert weightings(rates, 2) == {
        "clicks": RewardSpec(click=2.0),
        "clicks + purchases": RewardSpec(click=1.0, conversion=5.0),
        "clicks + returns": RewardSpec(click=1.0, return_visit=2.5),
        "purchases": RewardSpec(click=0.0, conversion=10.0),
        "purchases + returns": RewardSpec(click=0.0, conversion=5.0, return_visit=2.5),
        "returns": RewardSpec(click=0.0, return_visit=5.0),
    }
    thirds = weightings(rates, 3)
    assert len(thirds) == 10
    assert list(thirds)[1] == "2 clicks + purchases"
    assert thirds["clicks + purchases + returns"].conversion == pytest.approx(10 / 3)
    assert list(weightings(rates | {"conversion": 0.0}, 1)) == ["clicks", "returns"]


def test_who_is_dominated_by_hand():
    points = np.array([[1.0, 1.0, 1.0], [2.0, 0.5, 1.0], [1.0, 1.0, 0.9], [2.0, 0.5, 1.0], [0.5, 0.5, 2.0]])
    assert non_dominated(points).tolist() == [True, True, False, True, True], "equals do not dominate each other"


def test_hypervolume_by_hand():
    reference = np.array([2.0, 4.0, 1.0])
    one, other = [3.0, 8.0, 1.1], [2.2, 6.0, 1.3]  # gains .5, 1, .1 and .1, .5, .3
    assert hypervolume(np.array([one]), reference) == pytest.approx(0.5 * 1 * 0.1)
    both = 0.5 * 1 * 0.1 + 0.1 * 0.5 * 0.3 - 0.1 * 0.5 * 0.1
    assert hypervolume(np.array([one, other, [9.0, 9.0, 0.9]]), reference) == pytest.approx(both)
    assert hypervolume(np.array([[9.0, 4.0, 9.0]]), reference) == 0.0


@given(st.lists(st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 1.5, 2.0])] * 3), min_size=1, max_size=6))
def test_hypervolume_counts_what_a_grid_of_points_counts(points):
    rows = np.array(points)
    centres = np.arange(0.125, 1, 0.25)  # of cells that no point cuts
    grid = np.stack(np.meshgrid(centres, centres, centres), -1).reshape(-1, 1, 3)
    covered = (grid <= rows - 1).all(2).any(1).mean()
    assert hypervolume(rows, np.ones(3)) == pytest.approx(covered)
    better = hypervolume(rows[non_dominated(rows)], np.ones(3))
    assert better == pytest.approx(covered), "the front alone counts"


def test_a_trade_by_hand():
    values = np.array([[[0.20, 0.1, 0.40], [0.16, 0.1, 0.44]], [[0.22, 0.1, 0.41], [0.18, 0.1, 0.44]]])
    figures, note = trade(values, ["a", "b"], "ctr", "d7")
    assert figures["trade.d7_for_ctr.gain"]["value"] == pytest.approx(0.035)
    assert figures["trade.d7_for_ctr.cost"]["value"] == pytest.approx((0.2 + 4 / 22) / 2)
    assert "whether D7 gains is not shown" in note, "two seeds that differ by so much"
    values[1, 0, 2] = 0.401
    figures, note = trade(values, ["a", "b"], "ctr", "d7")
    cost = (0.2 + 4 / 22) / 2 / 0.0395 / 100
    assert note == (
        "From the highest CTR (a) to the highest D7 (b): D7 40.05% to 44.00%, CTR 21.00% to 17.00%: "
        f"one point of D7 costs {cost:.1%} of CTR."
    )
    figures, note = trade(values, ["a", "b"], "ctr", "cvr")
    assert note == "a has both the highest CTR and the highest CVR: nothing is traded."
    assert figures["trade.cvr_for_ctr.gain"]["value"] == 0


def details(*shifts: float) -> list[dict]:
    def met(ctr: float, cvr: float, d7: float) -> dict:
        return {where: dict(zip(AIMS, (ctr, cvr, d7), strict=True)) for where in ("judge", "gold")}

    rows = []
    for shift in shifts:
        arms = {"logging": met(0.10, 0.10, 0.30), "clicks": met(0.20, 0.10, 0.36 + shift)}
        arms |= {"both": met(0.18, 0.15, 0.33 + shift), "neither": met(0.15, 0.12, 0.32)}
        rows.append({"seed": 1, "arms": arms})
    rows[0]["arms"]["both"]["judge"]["ctr"] = 0.01
    return rows


def test_the_summary_by_hand():
    found = summary(details(0.0, 0.03))
    front = {name: (arm["front"], arm["front_seeds"]) for name, arm in found["arms"].items()}
    assert front == {"logging": (False, 0), "clicks": (True, 2), "both": (True, 2), "neither": (False, 0)}
    assert found["arms"]["clicks"]["gold"]["d7"]["value"] == pytest.approx(0.375)
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    # "clicks" has no gain in CVR and adds no volume.
    volumes = [0.8 * 0.5 * 0.1 + 0.0, 0.8 * 0.5 * 0.2]
    assert figures["pareto.hypervolume"] == pytest.approx(np.mean(volumes), rel=1e-6)
    assert figures["pareto.front"] == 2
    assert figures["pareto.spread.ctr"] == pytest.approx(0.2)
    assert figures["pareto.spread.d7"] == pytest.approx(0.1)
    assert figures["pareto.front_agreement"] == pytest.approx(2 / 3), "the judge thinks too ill of one, too well of one"
    assert figures["trade.cvr_for_ctr.cost"] == pytest.approx(0.1)
    assert len(found["notes"]) == 3
    alone = summary(
        [row | {"arms": {"logging": row["arms"]["clicks"], "x": row["arms"]["neither"]}} for row in details(0)]
    )
    assert alone["figures"]["pareto.spread.ctr"]["value"] == 0, "no weighting is on the front"
    assert alone["figures"]["pareto.hypervolume"]["value"] == 0


def test_a_runs_shoppers_can_be_swept(remembering: Path):
    shoppers = load_shoppers(remembering / "run" / "shoppers", torch.device("cpu"))
    rates = outcome_rates(shoppers, TRAIN, 20)
    assert all(rate > 0 for rate in rates.values())
    told: list[str] = []
    arms = sweep(shoppers, TRAIN, 1, 10, told.append)
    assert list(arms) == ["clicks", "purchases", "returns"]
    assert all(set(arm) == {"judge"} for arm in arms.values())
    assert all(0 <= arm["judge"][aim] <= 1 for arm in arms.values() for aim in AIMS)
    assert any(line.startswith("returns, judge: CTR 0.") for line in told)
    assert sweep(shoppers, TRAIN, 1, 10, told.append) == arms, "the same seed, the same strategies"


def test_shoppers_who_never_buy_are_swept_without_purchases(remembering_items: Path):
    shoppers = load_shoppers(remembering_items / "run" / "shoppers", torch.device("cpu"))
    assert list(sweep(shoppers, TRAIN, 1, 10, lambda _: None)) == ["clicks", "returns"]


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match="bad seeds"):
        bench_pareto(ParetoConfig(seeds=()), lambda _: None)


@pytest.mark.slow
def test_the_whole_benchmark_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    small = ParetoConfig((1,), 1, shoppers=80, days=28, followed=20, fit=FitConfig(members=1, epochs=1), train=TRAIN)
    report = bench_pareto(small, lambda _: None)
    json.dumps(report, allow_nan=False)
    assert list(report["arms"]) == ["logging", "clicks", "purchases", "returns"]
    assert {"pareto.hypervolume", "pareto.spread.d7", "trade.d7_for_ctr.cost"} <= set(report["figures"])
    assert {"judge", "gold"} == set(report["details"][0]["arms"]["returns"])
