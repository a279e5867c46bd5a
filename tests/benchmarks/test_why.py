"""Whether faithful reasons are found faithful, and others not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hawker.agents.config import PageTrainConfig
from hawker.benchmarks import why
from hawker.benchmarks.fidelity_artefacts import Fit
from hawker.benchmarks.why import QUICK, Removals, bench_why, faithfulness
from hawker.shop.errors import InputError


def removals(size: np.ndarray, moved: np.ndarray) -> Removals:
    part = np.where(np.arange(len(size)) % 2, "slate", "offer")
    return Removals(part, size, moved, moved)


def test_reasons_that_say_what_removal_does_are_faithful_and_the_reverse_are_not():
    generator = np.random.default_rng(0)
    size = generator.normal(size=(400, 5))
    size[:, 4] = np.nan  # a group that is no reason here is never named nor drawn
    moved = np.where(np.isnan(size), 99.0, np.abs(size))
    figures = faithfulness(removals(size, moved), 1)
    assert figures["why.faithful"]["value"] == 1.0
    assert figures["why.faithful"]["low"] > 0.98
    assert figures["why.faithful.against_second"]["value"] == 1.0
    assert figures["why.faithful.last"]["value"] == 0.0
    assert figures["why.faithful.random"]["value"] == pytest.approx(0.5, abs=0.08)
    assert (figures["why.faithful.slate"]["n"], figures["why.faithful.offer"]["n"]) == (200, 200)
    assert figures["why.first_moves"]["value"] == pytest.approx(np.nanmax(np.abs(size), 1).mean())
    wrong = faithfulness(removals(size, -moved), 1)
    assert wrong["why.faithful"]["value"] == 0.0


def test_reasons_by_chance_are_as_good_as_chance_and_ties_do_not_count():
    generator = np.random.default_rng(1)
    size, moved = generator.normal(size=(2, 2000, 6))
    figures = faithfulness(removals(size, np.abs(moved)), 1)
    assert figures["why.faithful"]["value"] == pytest.approx(0.5, abs=0.04)
    assert figures["why.faithful"]["low"] < 0.5 < figures["why.faithful"]["high"]
    assert faithfulness(removals(size, np.zeros_like(size)), 1)["why.faithful"]["value"] == 0.0
    assert figures == faithfulness(removals(size, np.abs(moved)), 1)


def test_the_benchmark_runs_from_a_log_to_figures(remembering: Path, monkeypatch: pytest.MonkeyPatch):
    fit = Fit(remembering / "run" / "shoppers", 1.0, 1.0, 1, True)
    monkeypatch.setattr(why, "cached_logs", lambda *_: remembering / "logs")
    monkeypatch.setattr(why, "cached_fit", lambda *_: fit)
    monkeypatch.setattr(why, "WHOLE", 4)
    train = PageTrainConfig(steps=128, shoppers=32, pages=4, batch=64, hidden=8, greedy=2.0)
    config = replace(QUICK, seeds=(3,), decisions=24, draws=5, train=train)
    said: list[str] = []
    report = bench_why(config, said.append)
    assert any(line.startswith("faithful: ") for line in said)
    assert set(report) == {"figures", "seeds", "details", "seconds"}
    figures = report["figures"]
    assert figures["why.faithful"]["n"] == 24
    assert 0 <= figures["why.faithful"]["low"] <= figures["why.faithful"]["value"] <= 1
    assert figures["why.first_moves"]["value"] > figures["why.other_moves"]["value"]
    assert figures["why.seconds"]["value"] > 0
    assert sum(figures[name]["n"] for name in figures if name.split(".")[-1] in why.PARTS) == 24


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match=r"why\.seeds"):
        bench_why(replace(QUICK, seeds=()), print)
