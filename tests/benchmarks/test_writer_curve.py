"""The curve along an optimisation: what is kept of it, KL divergence by hand, and what stands at its points."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_training import Stage
from hawker.benchmarks import writer_curve
from hawker.benchmarks.writer_copy import Shipped
from hawker.benchmarks.writer_curve import ADAPTER, STATE, Quarters, along, divergence, quarter
from hawker.policies.briefs import Brief
from hawker.shop.artefacts import verify_directory
from hawker.shop.run import Run


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


class Fixed:
    """A writer who always says the same, and finds every token of a line as likely as any other."""

    def __init__(self, said: str, nats: float) -> None:
        self.said, self.nats = said, nats

    def log_likelihood(self, briefs: list[Brief], lines: list[str]) -> tuple[Any, Any]:
        tokens = np.array([len(line.split()) for line in lines])
        return np.where(tokens > 0, self.nats, np.nan), tokens


BRIEFS = [Brief("headline", title=name) for name in ("a", "b")]


def test_divergence_by_hand():
    """Of tokens of -1 nat, where the first writer has -1.5: half a nat a token, of 2 and 4 tokens, 1.5 nats a line."""
    lines = [["two words"], ["now there are four"]]
    one: Any = Fixed("", -1.0)
    other: Any = Fixed("", -1.5)
    assert divergence(one, other, BRIEFS, lines) == pytest.approx(1.5)
    assert divergence(one, one, BRIEFS, lines) == 0.0
    assert divergence(one, other, BRIEFS, [["two words"], [""]]) == pytest.approx(1.0)


def test_points_stand_in_order_and_are_judged_on_the_same_assignments(monkeypatch: pytest.MonkeyPatch):
    given = [Assignment(brief.title, brief) for brief in BRIEFS]
    seeds: list[int] = []

    class Shop:
        guardrails = "rules"

        def judged(self, some: list[Assignment], lines: list[list[str]]) -> dict[str, float]:
            assert some is given
            return {"gold": float(len(lines[0][0].split()))}

    def ship(writer: Fixed, rules: str, briefs: list[Brief], count: int, seed: int) -> Shipped:
        assert (rules, briefs, count) == ("rules", BRIEFS, 2)
        seeds.append(seed)
        return Shipped([[writer.said] * 2] * 2, 0.0)

    monkeypatch.setattr(writer_curve, "ship", ship)
    writers: Any = {"sft": Fixed("one", -2.0), 2: Fixed("one two", -1.5), "grpo": Fixed("one two three", -1.0)}
    shop: Any = Shop()
    points = along(writers, shop, given, 5)
    assert points == [
        {"at": "sft", "kl": 0.0, "gold": 1.0},
        {"at": 2, "kl": 1.0, "gold": 2.0},
        {"at": "grpo", "kl": 3.0, "gold": 3.0},
    ]
    assert seeds == [5, 5, 5]
