"""The curve along an optimisation: what is kept of it, its KL by hand, and what stands at its points."""

import json
from pathlib import Path

import pytest
import torch

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_training import Stage
from hawker.benchmarks import writer_curve
from hawker.benchmarks.writer_copy import Shipped
from hawker.benchmarks.writer_curve import ADAPTER, STATE, Quarters, along, kl_at, quarter
from hawker.policies.briefs import Brief
from hawker.policies.writer import Writer
from hawker.shop.artefacts import verify_directory
from hawker.shop.run import Run

CPU = torch.device("cpu")


def train(stage: Stage, config: GrpoConfig, watch: Quarters, begun: int = 0, until: int | None = None) -> None:
    """Log every step and then, every quarter, put a checkpoint in the place of the last, as trl does."""
    for step in range(begun + 1, (until or config.steps) + 1):
        watch(step, config.steps, 0.5)
        if step % quarter(config) == 0:
            stage.checkpoint.mkdir(parents=True, exist_ok=True)
            for name in ADAPTER:
                (stage.checkpoint / name).write_text(f"{name} {step}")
            (stage.checkpoint / STATE).write_text(json.dumps({"global_step": step}))


@pytest.mark.parametrize(("steps", "kept"), [(60, [15, 30, 45]), (50, [12, 24, 36]), (3, [1, 2]), (2, [1]), (1, [])])
def test_adapters_are_kept_at_quarters(steps: int, kept: list[int], tmp_path: Path):
    told: list[tuple[int, int, float]] = []
    config, stage = GrpoConfig(steps=steps), Stage(Run(tmp_path), "grpo")
    watch = Quarters(stage, config, lambda *step: told.append(step))
    train(stage, config, watch)
    assert list(watch.kept()) == kept
    for step, path in watch.kept().items():
        verify_directory(path, "writer adapter")
        assert [(path / name).read_text() for name in ADAPTER] == [f"{name} {step}" for name in ADAPTER]
    assert told == [(step, steps, 0.5) for step in range(1, steps + 1)]


def test_a_training_that_was_broken_off_keeps_what_is_due(tmp_path: Path):
    config, stage = GrpoConfig(steps=8), Stage(Run(tmp_path), "grpo")
    train(stage, config, Quarters(stage, config, lambda *_: None), until=4)  # no step told that step 4's is whole
    watch = Quarters(stage, config, lambda *_: None)
    assert list(watch.kept()) == [2]
    train(stage, config, watch, begun=4)
    assert list(watch.kept()) == [2, 4, 6]


def test_a_training_of_every_weight_keeps_none(tmp_path: Path):
    config, stage = GrpoConfig(steps=8), Stage(Run(tmp_path), "grpo")
    watch = Quarters(stage, config, lambda *_: None)
    stage.checkpoint.mkdir(parents=True)
    (stage.checkpoint / STATE).write_text(json.dumps({"global_step": 2}))
    watch(3, 8, 0.0)
    assert watch.kept() == {}


def test_kl_by_hand():
    history = [{"kl": 0.01 * step, "completions/mean_length": 10.0} for step in range(8)]
    assert kl_at(history, 0) == 0.0
    assert kl_at(history, 1) == pytest.approx(10 * (0.00 + 0.01 + 0.02 + 0.03) / 4)
    assert kl_at(history, 4) == pytest.approx(10 * 0.04)
    assert kl_at(history, 8) == pytest.approx(10 * (0.06 + 0.07) / 2)
    assert kl_at(history[:1], 3) == 0.0  # the last there is


def test_points_stand_in_order_and_are_judged_on_the_same_assignments(monkeypatch: pytest.MonkeyPatch):
    given = [Assignment(name, Brief("headline", title=name)) for name in ("a", "b")]
    asked: list[tuple[str, Path, int]] = []

    class Shop:
        guardrails = "rules"

        def judged(self, some: list[Assignment], lines: list[list[str]]) -> dict[str, float]:
            assert some is given
            assert [len(each) for each in lines] == [2, 2]
            return {"gold": float(lines[0][0])}

    monkeypatch.setattr(Writer, "load", lambda name, device, adapter: (name, adapter))

    def ship(writer: tuple[str, Path], rules: str, briefs: list[Brief], count: int, seed: int) -> Shipped:
        asked.append((*writer, seed))
        assert (rules, briefs, count) == ("rules", [each.brief for each in given], 2)
        return Shipped([[writer[1].name] * 2] * 2, 0.0)

    monkeypatch.setattr(writer_curve, "ship", ship)
    ends = ([["0", "0", "0"]] * 2, [["9", "9", "9"]] * 2)
    history = [{"kl": 0.1, "completions/mean_length": 10.0}] * 8
    points = along("first", {4: Path("4"), 2: Path("2")}, Shop(), given, ends, history, 5, CPU)
    assert [(point["step"], point["gold"]) for point in points] == [(0, 0.0), (2, 2.0), (4, 4.0), (8, 9.0)]
    assert [point["kl"] for point in points] == pytest.approx([0.0, 1.0, 1.0, 1.0])
    assert asked == [("first", Path("2"), 5), ("first", Path("4"), 5)]
