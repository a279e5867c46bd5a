"""The strategist's benchmark: its arithmetic by hand, and the whole of it in small."""

from dataclasses import replace

import pytest
import torch

from hawker.agents.writer_config import SftConfig
from hawker.benchmarks.leaderboard import METRICS
from hawker.benchmarks.strategist import ARMS, QUICK, _figures, bench_strategist
from hawker.policies.small_writer import small_model
from hawker.shop.errors import InputError
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar

FLUENT = SftConfig(steps=80, batch=8, rows=8, rank=0, learning_rate=1e-2, decay=False)
"""Enough for a tiny model to say what the log says: with nothing but refused lines there is nothing to learn from."""


def detail(cotrained: float) -> dict:
    rewards = {"logged lines": 10.0, "template copy": 8.0, "sft copy": 9.0, "cotrained": cotrained}
    return {"arms": {name: {"reward": value, "ctr": 0.1, "cvr": 0.2, "d7": 0.5} for name, value in rewards.items()}}


def test_figures_by_hand():
    figures = _figures([detail(9.0), detail(12.0)])
    assert figures["arms.cotrained"]["value"] == pytest.approx(10.5)
    assert figures["arms.template_copy.d7"]["value"] == 0.5
    gain = figures["cotrained_minus_template.reward"]
    assert gain["value"] == pytest.approx(2.5)
    assert gain["low"] < 0 < gain["high"], "two seeds, one and four, say little"
    assert figures["cotrained_minus_sft.reward"]["value"] == pytest.approx(1.5)
    assert figures["cotrained_minus_logged_lines.reward"]["value"] == pytest.approx(0.5)


def test_without_seeds_there_is_nothing_to_say():
    with pytest.raises(InputError, match="seeds"):
        bench_strategist(replace(QUICK, seeds=()), lambda line: None)


@pytest.mark.slow
def test_the_whole_of_it_in_small(tmp_path, monkeypatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path / "home"))
    said = BazaarWorld(load_bazaar(), torch.device("cpu")).lines
    small_model(tmp_path / "model", [*said, "Item: Category: Details: Price: Offer: Written for"])
    config = replace(QUICK, model=str(tmp_path / "model"), shoppers=150, followed=50, sft=FLUENT)
    report = bench_strategist(config, lambda line: None, keep=tmp_path / "kept")
    assert set(report["arms"]) == set(ARMS)
    assert all(set(values) == set(METRICS) for values in report["arms"].values())
    assert report["arms"]["template copy"] != report["arms"]["logged lines"]
    again = bench_strategist(config, lambda line: None, keep=tmp_path / "kept")
    assert again["figures"] == report["figures"]
