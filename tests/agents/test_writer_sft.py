"""Supervised fine-tuning: what it learns, what it leaves alone, and that it can be interrupted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hawker.agents.writer_config import SftConfig
from hawker.agents.writer_data import LoggedLine
from hawker.agents.writer_sft import sft
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer, load_causal
from hawker.shop.errors import InputError
from hawker.shop.run import Run

CPU, RULES = torch.device("cpu"), Guardrails.load()
POT, HAT = Brief("headline", title="Tea pot"), Brief("headline", title="Wool hat")
LINES = [
    LoggedLine(POT, "A quiet pot for slow mornings", 10, 9, 6.0, 1.5),
    LoggedLine(HAT, "Warm wool for cold days", 10, 5, 6.0, 0.8),
]
CONFIG = SftConfig(steps=4, batch=4, rows=2, rank=4, learning_rate=2e-2, decay=False, checkpoint_every=2, device="cpu")


def quiet(done: int, total: int, value: float) -> None:
    """Show nothing."""


def run_sft(where: Path, model: Path, config: SftConfig = CONFIG, resume: bool = False, progress: Any = quiet) -> Any:
    return sft(Run(where), str(model), LINES, RULES, config, resume, progress)


def losses(report: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in report["history"]]


@pytest.fixture(scope="module")
def trained(small_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path, report = run_sft(tmp_path_factory.mktemp("sft"), small_lm)
    return path, report


def test_the_log_becomes_likelier(trained: tuple[Path, dict[str, Any]], small_lm: Path):
    before, after = (
        Writer.load(str(path), CPU).log_likelihood([POT, HAT], [line.line for line in LINES])[0]
        for path in (small_lm, trained[0])
    )
    assert (after > before + 0.1).all()
    assert losses(trained[1])[-1] < losses(trained[1])[0]
    assert json.loads((trained[0] / "source.json").read_text())["made_from"] == str(small_lm)
    assert json.loads((trained[0] / "train.json").read_text()) == trained[1]
    assert trained[1]["steps"] == len(trained[1]["history"]) == 4
    assert 0 < trained[1]["history"][0]["seconds/step"] <= trained[1]["seconds"]


def test_same_seed_same_weights_and_nothing_global(
    trained: tuple[Path, dict[str, Any]],
    small_lm: Path,
    tmp_path: Path,
    nothing_global: None,
    no_network: None,
    capfd: pytest.CaptureFixture[str],
):
    path, report = run_sft(tmp_path, small_lm)
    assert losses(report) == losses(trained[1])
    assert (path / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert capfd.readouterr() == ("", "")
    left = {item.name for item in (tmp_path / "writer").iterdir()}
    assert left == {"sft", "sft-checkpoint"}
    assert not [item for item in tmp_path.rglob("*") if item.suffix in {".bin", ".pkl"}]


def test_interrupted_and_resumed(trained: tuple[Path, dict[str, Any]], small_lm: Path, tmp_path: Path):
    def interrupt(done: int, total: int, value: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sft(tmp_path, small_lm, progress=interrupt)
    assert not (tmp_path / "writer/sft").exists()
    seen = []
    path, report = run_sft(tmp_path, small_lm, resume=True, progress=lambda done, total, value: seen.append(done))
    assert seen == [3, 4]
    assert losses(report) == losses(trained[1])
    assert (path / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    again, report = run_sft(tmp_path, small_lm, resume=True)  # all steps are done: only written anew
    assert losses(report) == losses(trained[1])
    assert (again / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def test_a_checkpoint_of_something_else(trained: tuple[Path, dict[str, Any]], small_lm: Path, tmp_path: Path):
    run = trained[0].parents[1]
    other = SftConfig(**{**CONFIG.__dict__, "learning_rate": 1e-3})
    with pytest.raises(InputError, match="the checkpoint was made with other options, another model or other data"):
        run_sft(run, small_lm, other, resume=True)
    model = small_model(tmp_path / "other", ["words"], seed=1)
    with pytest.raises(InputError, match="the checkpoint was made with other options"):
        run_sft(run, model, resume=True)


def test_a_damaged_checkpoint(small_lm: Path, tmp_path: Path):
    run_sft(tmp_path, small_lm)
    (tmp_path / "writer/sft-checkpoint/optimizer.pt").write_bytes(b"")
    with pytest.raises(InputError, match="the file was changed after it was written"):
        run_sft(tmp_path, small_lm, resume=True)


@pytest.mark.parametrize("chat", [True, False])
def test_only_the_line_counts(chat: bool, tmp_path: Path):
    """The first step's loss is the mean over the line's tokens, its end included, given the prompt."""
    model = small_model(tmp_path / "model", [line.line for line in LINES], chat=chat, pad=False)
    config = SftConfig(**{**CONFIG.__dict__, "steps": 1, "batch": 1, "rows": 1})
    _, report = sft(Run(tmp_path), str(model), LINES[:1], RULES, config, False, quiet)
    writer, lm = Writer.load(str(model), CPU), load_causal(model, torch.float32)
    start = writer._prompt_ids(POT)
    said = writer.tokenizer(LINES[0].line if chat else f" {LINES[0].line}")["input_ids"] + [0]
    said += writer.tokenizer("\n")["input_ids"] if chat else []  # the template ends a turn so
    with torch.no_grad():
        log_probs = lm(torch.tensor([start + said])).logits[0].log_softmax(-1)
    by_hand = -np.mean([float(log_probs[len(start) - 1 + k, token]) for k, token in enumerate(said)])
    assert losses(report)[0] == pytest.approx(by_hand, abs=1e-4)


def test_every_weight_may_be_trained(small_lm: Path, tmp_path: Path):
    config = SftConfig(**{**CONFIG.__dict__, "rank": 0, "steps": 2})
    path, report = run_sft(tmp_path, small_lm, config)
    assert losses(report)[1] < losses(report)[0]
    assert Writer.load(str(path), CPU).write([POT], seed=1)


@pytest.mark.parametrize(("lines", "message"), [([], "no lines to learn from")])
def test_nothing_to_learn(small_lm: Path, tmp_path: Path, lines: list[LoggedLine], message: str):
    with pytest.raises(InputError, match=message):
        sft(Run(tmp_path), str(small_lm), lines, RULES, CONFIG, False, quiet)
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(small_lm: Path, tmp_path: Path):
    run_sft(tmp_path, small_lm)
    before = {path.name: path.read_bytes() for path in (tmp_path / "writer/sft-checkpoint").iterdir()}
    made = (tmp_path / "writer/sft/checksums.json").read_bytes()
    broken = load_causal(small_lm, torch.float32)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight.fill_(torch.nan)
    tokenizer = Writer.load(str(small_lm), CPU).tokenizer
    Writer("", small_lm, broken, tokenizer, CPU).save(tmp_path / "broken")
    with pytest.raises(InputError, match="writer sft: the loss is not finite at step 1; lower --learning-rate"):
        run_sft(tmp_path, tmp_path / "broken")
    assert {path.name: path.read_bytes() for path in (tmp_path / "writer/sft-checkpoint").iterdir()} == before
    assert (tmp_path / "writer/sft/checksums.json").read_bytes() == made
    assert {item.name for item in (tmp_path / "writer").iterdir()} == {"sft", "sft-checkpoint"}
