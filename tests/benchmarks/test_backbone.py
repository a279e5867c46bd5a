"""The benchmark of the tuned backbone: its arithmetic by hand, and the whole of it in small."""

from dataclasses import replace

import pytest
import torch

from hawker.agents import tuned_pages
from hawker.agents.backbone import BackboneConfig
from hawker.benchmarks.backbone import ARMS, POOLS, QUICK, _figures, _notes, bench_backbone
from hawker.benchmarks.leaderboard import METRICS
from hawker.policies.small_writer import small_model
from hawker.shop.errors import InputError
from hawker.shop.figures import figure
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig


def detail(seed: int, gain: float, low: float | None, moved: list[float]) -> dict:
    pools = {
        pool: {"frozen": {"reward": 10.0 + i}, "tuned": {"reward": 10.0 + i + gain * (i + 1)}}
        for i, pool in enumerate(POOLS)
    }
    judged = {"reward_per_shopper.gain": figure(gain / 2, low, gain, 8_000, "reward per shopper")}
    kept = "tuned" if low and low > 0 else "frozen"
    return {"seed": seed, "pools": pools, "judged": judged, "kept": kept, "steps": [{"moved": far} for far in moved]}


def test_figures_by_hand():
    figures = _figures([detail(1, 1.0, 0.2, [0.1, 0.5]), detail(2, 3.0, -0.1, [])])
    assert figures["known.frozen"]["value"] == 10.0
    assert figures["known.tuned"]["value"] == pytest.approx(12.0)
    gain = figures["known.tuned_minus_frozen"]
    assert gain["value"] == pytest.approx(2.0)
    assert gain["low"] < 0 < gain["high"], "two seeds, one and three, say little"
    assert figures["new.tuned_minus_frozen"]["value"] == pytest.approx(4.0)
    assert figures["judge.tuned_minus_frozen"]["value"] == pytest.approx(1.0)
    assert figures["judge.kept"]["value"] == 0.5
    assert figures["judge.kept"]["low"] is None
    assert figures["moved"]["value"] == pytest.approx(0.25)


def test_notes_say_what_is_kept_and_why():
    assert _notes([detail(1, 1.0, 0.2, []), detail(2, 3.0, None, [])]) == [
        "seed 1: on the judge's shoppers tuned - frozen is +0.500 [+0.200, +1.000] reward a shopper: tuned is kept",
        "seed 2: on the judge's shoppers tuned - frozen is +1.500 [-, +3.000] reward a shopper: frozen is kept",
    ]


def test_without_seeds_there_is_nothing_to_say():
    with pytest.raises(InputError, match="seeds"):
        bench_backbone(replace(QUICK, seeds=()), lambda line: None)


@pytest.mark.slow
def test_the_whole_of_it_in_small(tmp_path, monkeypatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tuned_pages, "JUDGED_SHOPPERS", 50)
    items = BazaarWorld(load_bazaar(), torch.device("cpu")).items.table
    small_model(tmp_path / "model", [*items["title"].head(200), *items["description"].head(200)])
    train = replace(QUICK.train, steps=3_072, shoppers=128, pages=4, batch=256, critic_first=512)
    backbone = BackboneConfig(str(tmp_path / "model"), every=2, rank=4)
    fit = FitConfig(members=1, epochs=1)
    config = replace(QUICK, shoppers=150, followed=50, fit=fit, train=train, backbone=backbone)
    said: list[str] = []
    report = bench_backbone(config, said.append)
    assert set(report["arms"]) == set(POOLS)
    assert all(set(values) == set(METRICS) for arms in report["arms"].values() for values in arms.values())
    assert set(report["arms"]["new"]) == set(ARMS)
    assert report["arms"]["new"]["tuned"] != report["arms"]["new"]["frozen"]
    found = report["details"][0]
    assert [each["pages"] for each in found["steps"]] == [1_536, 2_560]
    assert found["kept"] in ARMS
    assert found["judged"]["reward_per_shopper.gain"]["n"] == 50
    assert any(line.startswith("tuned: 3,072 pages") for line in said)
