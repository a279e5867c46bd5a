"""Optimising the writer: that it learns, stays where it is told to, can be interrupted, and refuses bad answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hawker.agents.writer_config import GrpoConfig, SftConfig
from hawker.agents.writer_data import Assignment, LoggedLine
from hawker.agents.writer_grpo import grpo
from hawker.agents.writer_sft import sft
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer
from hawker.shop.errors import InputError
from hawker.shop.run import Run

CPU = torch.device("cpu")
ASSIGNMENTS = [Assignment(name, Brief("headline", title=name)) for name in ("pot", "hat", "lamp")]
CONFIG = GrpoConfig(
    steps=4, batch=8, rows=4, group=4, tokens=8, rank=4, learning_rate=1e-2, checkpoint_every=2, device="cpu"
)
LENIENT: Any = SimpleNamespace(digest="", tidy=str.strip, hits=lambda line, brief: [])
"""Guardrails that take the noise of a random model for copy."""


def quiet(done: int, total: int, value: float) -> None:
    """Show nothing."""


def short(items: Sequence[str], audiences: Sequence[str], discounts: Sequence[float], lines: Sequence[str]) -> Any:
    """Shoppers who like capitals and spaces as little as they are many."""
    click = np.array([np.mean([c.islower() for c in line]) if line else 0.0 for line in lines])
    return {"click": click, "total": click}


def run_grpo(where: Path, model: Path, config: GrpoConfig = CONFIG, resume: bool = False, **options: Any) -> Any:
    options = {"answers": short, "guardrails": LENIENT, "progress": quiet, "assignments": ASSIGNMENTS} | options
    return grpo(Run(where), str(model), config=config, resume=resume, **options)


def curve(report: dict[str, Any]) -> list[tuple[float, float, float]]:
    return [(entry["loss"], entry["reward"], entry["kl"]) for entry in report["history"]]


@pytest.fixture(scope="module")
def optimised(small_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path, report = run_grpo(tmp_path_factory.mktemp("grpo"), small_lm)
    return path, report


def test_every_part_is_logged_by_itself(optimised: tuple[Path, dict[str, Any]], small_lm: Path):
    path, report = optimised
    for entry in report["history"]:
        parts = {"shoppers/click", "shoppers/total", "line/nats", "line/repeated", "refused/unfinished", "kl", "reward"}
        parts |= {f"penalty/{name}" for name in ("fluency", "diversity", "refused")} | {"reward/unscored"}
        assert parts <= set(entry)
        assert 0 < entry["seconds/reward"] < entry["seconds/step"]
    assert report["history"][0]["kl"] == pytest.approx(0, abs=1e-6)  # it begins as its own reference
    assert report["history"][-1]["kl"] > 0
    assert 0 < report["reward_seconds"] < report["seconds"]
    assert 4 * 8 < report["tokens"] <= 4 * 8 * 8
    assert json.loads((path / "train.json").read_text()) == report
    assert json.loads((path / "source.json").read_text())["made_from"] == str(small_lm)


def test_same_seed_same_copy_and_nothing_global(
    optimised: tuple[Path, dict[str, Any]],
    small_lm: Path,
    tmp_path: Path,
    nothing_global: None,
    no_network: None,
    capfd: pytest.CaptureFixture[str],
):
    path, report = run_grpo(tmp_path, small_lm)
    assert curve(report) == curve(optimised[1])
    assert capfd.readouterr() == ("", "")
    briefs = [each.brief for each in ASSIGNMENTS]
    lines = [Writer.load(str(made), CPU).write(briefs, 2, seed=3) for made in (path, optimised[0], small_lm)]
    assert lines[0] == lines[1] != lines[2]


def test_interrupted_and_resumed(optimised: tuple[Path, dict[str, Any]], small_lm: Path, tmp_path: Path):
    def interrupt(done: int, total: int, value: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grpo(tmp_path, small_lm, progress=interrupt)
    path, report = run_grpo(tmp_path, small_lm, resume=True)
    assert curve(report) == curve(optimised[1])
    assert (path / "model.safetensors").read_bytes() == (optimised[0] / "model.safetensors").read_bytes()


def test_it_learns_what_shoppers_like_and_keeps_the_rules(small_lm: Path, tmp_path: Path):
    """A writer who has learned two lines; shoppers like the one, and the other they have no reason to see."""
    said = ("A quiet pot for slow mornings", "Warm wool for cold days")
    logged = [LoggedLine(each.brief, line, 1, 1, 1.0, 1.0) for each in ASSIGNMENTS for line in said]
    tuning = SftConfig(steps=60, batch=8, rows=8, rank=0, learning_rate=1e-2, decay=False, device="cpu")
    fluent, _ = sft(Run(tmp_path), str(small_lm), logged, LENIENT, tuning, False, quiet)

    def warm(items: Any, audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        return {"total": np.array([0.1 + 0.05 * ("Warm" in line) for line in lines])}

    options = {"steps": 15, "batch": 16, "rows": 16, "group": 8, "tokens": 16, "diversity": 0.0, "decay": False}
    config = GrpoConfig(**{**CONFIG.__dict__, **options})
    path, report = run_grpo(tmp_path, fluent, config, answers=warm, guardrails=Guardrails.load())
    totals = [entry["shoppers/total"] for entry in report["history"]]
    assert np.mean(totals[-3:]) > np.mean(totals[:3]) + 0.01
    before, after = (
        sum("Warm" in line for line in Writer.load(str(model), CPU).write([ASSIGNMENTS[0].brief], 32)[0])
        for model in (fluent, path)
    )
    assert after > before + 4
    assert json.loads((path / "source.json").read_text())["made_from"] == str(small_lm)  # not the tuned one


def test_every_weight_trained_the_reference_is_the_model_on_disk(small_lm: Path, tmp_path: Path):
    config = GrpoConfig(**{**CONFIG.__dict__, "rank": 0, "steps": 2})
    _, report = run_grpo(tmp_path, small_lm, config)
    assert report["history"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert report["history"][1]["kl"] > 0


def test_without_chat_template_and_with_real_guardrails(tmp_path: Path):
    model = small_model(tmp_path / "plain", ["warm pot", "cold pot"], chat=False, pad=False)
    config = GrpoConfig(**{**CONFIG.__dict__, "steps": 1})
    _, report = run_grpo(tmp_path, model, config, guardrails=Guardrails.load())
    assert report["history"][0]["penalty/refused"] > 0


def test_a_model_of_preferences_is_asked(small_lm: Path, tmp_path: Path):
    asked = []

    def score(prompts: Sequence[Any], lines: Sequence[str]) -> Any:
        asked.append(len(lines))
        return np.arange(len(lines), dtype=float)

    config = GrpoConfig(**{**CONFIG.__dict__, "steps": 1})
    _, report = run_grpo(tmp_path, small_lm, config, preferences=SimpleNamespace(score=score, digest="taste"))
    assert asked == [8, 8]  # the first writer's lines, then the step's
    assert report["history"][0]["preference"] == 3.5


def test_answers_that_stop_being_finite(small_lm: Path, tmp_path: Path):
    calls = []

    def failing(items: Any, audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        calls.append(len(lines))
        answers = short(items, audiences, discounts, lines)
        return answers if len(calls) < 4 else {"total": np.full(len(lines), np.nan)}

    with pytest.raises(InputError, match="no answer of the shoppers is finite; fit the shoppers anew"):
        run_grpo(tmp_path, small_lm, answers=failing)
    _, report = run_grpo(tmp_path, small_lm, resume=True)  # the checkpoint of step 2 is whole
    assert report["steps"] == 4
    assert not (tmp_path / "writer/.grpo.writing").exists()


def test_answers_that_are_not_finite_from_the_start(small_lm: Path, tmp_path: Path):
    with pytest.raises(InputError, match="the shoppers' answers are not finite"):
        run_grpo(tmp_path, small_lm, answers=lambda *asked: {"total": np.full(len(asked[3]), np.nan)})
    assert not (tmp_path / "writer/grpo").exists()


def test_nothing_to_write_for(small_lm: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nothing to write for"):
        run_grpo(tmp_path, small_lm, assignments=[])


def test_no_vllm(small_lm: Path, tmp_path: Path):
    with pytest.raises(InputError, match="vLLM needs a GPU and its package"):
        run_grpo(tmp_path, small_lm, GrpoConfig(**{**CONFIG.__dict__, "vllm": True}))
