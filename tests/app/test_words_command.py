"""``hawker words``, for shoppers who see one slate and for those who are followed over their visits."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hawker.app.cli import main
from hawker.benchmarks.arms import load_page_arm
from hawker.policies.choice_prompts import LETTERS
from hawker.policies.small_writer import small_model
from hawker.policies.word_choice import WordChoice
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.store import load_shoppers

OPTIONS = {"steps": 2, "batch": 2, "rows": 2, "rank": 2, "slates": 2, "checkpoint-every": 1, "device": "cpu"}
SMALL = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with more labels than a page has candidates."""
    return small_model(tmp_path_factory.mktemp("models") / "words", [" " + " ".join(LETTERS), "< Eco pot >, 12"] * 9)


def words(run: Path, model: Path, *options: str) -> int:
    return main(["words", str(run), "--model", str(model), *SMALL, *options])


def test_slates(finished: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, report = tmp_path / "run", tmp_path / "report.json"
    shutil.copytree(finished / "run" / "shoppers", run / "shoppers")
    assert words(run, model, "--json", str(report)) == 0
    printed = capsys.readouterr().out
    assert f"words: {run / 'words'}" in printed
    assert "reward.untrained" in printed
    told = json.loads(report.read_text())
    assert told["steps"] == 2
    assert told == json.loads((run / "words" / "train.json").read_text())
    assert main(["ab", str(run), "--arms", "random", "words", "--shoppers", "200"]) == 0
    assert "words" in capsys.readouterr().out
    assert words(run, model, "--resume", "--seed", "1") == 2
    assert "the checkpoint was made with other options" in capsys.readouterr().err


def test_shoppers_with_a_memory(remembering: Path, model: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    shutil.copytree(remembering / "run" / "shoppers", run.shoppers)
    assert words(run.path, model) == 0
    choice = WordChoice.load(run.path / "words", torch.device("cpu"))
    assert choice.size == 8
    assert any(name.startswith("history.") for name in choice.builder.shopper.numeric)
    assert choice.trained_on["reward"]["conversion"] == 5.0
    assert list(choice.label_bias) == [30]
    assert words(run.path, model, "--resume") == 0  # all steps are done: only written anew
    arm = load_page_arm("words", load_shoppers(run.shoppers, torch.device("cpu")), run, RewardSpec(conversion=5.0))
    generator = torch.Generator().manual_seed(0)
    here = arm.world.arrive(2, generator)
    decision = arm.strategy.propose(here.context, generator)
    assert torch.isfinite(arm.world.respond(here, decision, generator)[1].click_probability).all()
    assert (decision.slate >= 0).all()


def test_no_shoppers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert words(tmp_path, model) == 2
    assert "no shoppers here" in capsys.readouterr().err


def test_an_arm_without_a_model(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ab", str(finished / "run"), "--arms", "random", "words"]) == 2
    assert "train one with `hawker words" in capsys.readouterr().err
