"""``hawker train`` in rounds, on the command line: from fitted shoppers to pages and a bank of lines."""

import json
import shutil
from pathlib import Path

import pytest

from hawker.agents import page_world, rounds
from hawker.app.cli import main
from hawker.app.commands import COMMANDS
from hawker.app.train_commands import Train, training_defaults
from hawker.policies.small_writer import small_model

TRAIN = "steps: 256\nshoppers: 16\npages: 4\nbatch: 64\ncritic_first: 64\nhidden: 8\nhorizon: 4.0\ndevice: cpu\n"
WRITING = "steps: 1\nbatch: 4\nrows: 4\ngroup: 2\ntokens: 6\nrank: 2\ndevice: cpu\n"


@pytest.fixture
def home(remembering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with fitted shoppers, a model that says nothing sensible, and small configs."""
    monkeypatch.setattr(page_world, "EVALUATION_SHOPPERS", 6)
    monkeypatch.setattr(rounds, "SHOWN_SHOPPERS", 8)
    monkeypatch.setattr(rounds, "JUDGED_SHOPPERS", 8)
    shutil.copytree(remembering / "run", tmp_path / "run")
    small_model(tmp_path / "model", ["A quiet pot for slow mornings", "Warm wool for cold days"])
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "writing.yaml").write_text(WRITING)
    return tmp_path


def in_rounds(home: Path, *more: object) -> list[str]:
    words = ["train", home / "run", "--config", home / "train.yaml", "--writer", home / "model"]
    return [str(word) for word in (*words, "--writing", home / "writing.yaml", "--places", 4, "--lines", 2, *more)]


@pytest.mark.slow
def test_rounds_from_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(in_rounds(home, "--rounds", 2, "--json", home / "report.json")) == 0
    report = json.loads((home / "report.json").read_text())
    assert report == json.loads((home / "run/rounds/report.json").read_text())
    assert [each["filled"]["written"] for each in report["rounds"]] == [8, 8]
    printed = capsys.readouterr().out
    assert f"{report['best']}, kept" in printed
    assert "round 2.reward_per_shopper.gain" in printed
    assert all((home / "run" / name).is_dir() for name in ("policy", "writer/bank", "writer/grpo"))
    assert main(["export", str(home / "run"), str(home / "bundle")]) == 0
    assert (home / "bundle/bank").is_dir()
    assert main(in_rounds(home, "--rounds", 1, "--resume", "--json", home / "again.json")) == 0
    again = json.loads((home / "again.json").read_text())
    assert again == report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "2"], "rounds: no writer to train in rounds; got 2; name a language model with --writer"),
        (["--voice", "Plain words"], "voice: no writer to train in rounds"),
        (["--writing", "HOME/writing.yaml"], "writing: no writer to train in rounds"),
        (["--writer", "nothing"], "model: no such language model; got 'nothing'"),
        (["--writer", "HOME/model", "--rounds", "0"], "train.rounds: bad config; got 0"),
        (["--writer", "HOME/model", "--writing", "HOME/none.yaml"], "HOME/none.yaml: no such file"),
        (["--writer", "HOME/model", "--writing", "HOME/paid.yaml"], "writing.reward: the writer is rewarded as"),
    ],
)
def test_bad_input_is_one_line(home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    (home / "paid.yaml").write_text("reward:\n  click: 3.0\n")
    assert main(["train", str(home / "run"), *(word.replace("HOME", str(home)) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said.replace(str(home), "HOME")
    assert said.count("\n") == 1
    assert {path.name for path in (home / "run").iterdir()} == {"shoppers"}


def test_the_command_trains_pages_alone_by_default(remembering: Path):
    assert COMMANDS["train"] is Train
    run = Train(remembering / "run", training=training_defaults([str(remembering / "run")]))
    assert (run.writer, run.rounds) == ("none", 1)
    assert run.training.reward.conversion == 5.0
    assert training_defaults(["nowhere"]).reward.conversion == 0.0
