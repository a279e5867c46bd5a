"""The command line itself: names, help, configs, what it needs to be installed."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hawker.app import commands
from hawker.app.cli import TRAIN_ONLY, main, overview
from hawker.app.commands import COMMANDS, CONFIGS, Fit, Train

HEAVY = {"torch", "transformers", "trl", "stable_baselines3", "gymnasium", "sklearn", "tea_tasting", "onnx"}


def python(code: str, cwd: Path, *words: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed == overview() + "\n"
    listed = [line.split("  ")[1] for line in printed.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


def test_help_of_every_command_prints_and_loads_no_torch(tmp_path: Path):
    code = f"""
import contextlib, sys
from hawker.app.cli import COMMANDS, main
for name in COMMANDS:
    try:
        main([*name.split(), "--help"])
    except SystemExit as done:
        assert done.code == 0, name
loaded = {HEAVY!r} & set(sys.modules)
assert not loaded, loaded
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"usage: hawker {name} " in done.stdout
    assert "--learning-rate FLOAT" in done.stdout
    assert "Write the report as JSON here, for machines." in done.stdout


def test_every_command_writes_a_report():
    for name, command in COMMANDS.items():
        assert "json" in {field.name for field in fields(command)}, name


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from hawker.app.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_extra(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command where the extra `train` is not installed."""
    return python(f"HEAVY = {HEAVY!r}\n{BLOCK}", home, *words)


@pytest.mark.parametrize(
    "words",
    [
        "fit logs --out new",
        "train run",
        "ope run",
        "ab run",
        "export run new",
        "bench signal --logs logs",
        "demo --out new",
    ],
)
def test_a_missing_extra_is_named(words: str, home: Path):
    done = without_extra(home, *words.split())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("hawker: ")
    assert done.stderr.endswith(" is not installed; run pip install 'hawker[train]'\n")
    assert done.stderr.split()[1].partition(".")[0] in TRAIN_ONLY
    assert not (home / "new").exists()


def test_logs_and_bundles_need_no_extra(home: Path):
    done = without_extra(home, "decide", "bundle", "--context", "context.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["slate"]) == 3
    done = without_extra(home, "logs", "check", "logs", "--clean", "clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "clean" / "impressions.parquet").is_file()


def test_every_module_that_only_training_needs_is_known():
    assert set(TRAIN_ONLY) >= HEAVY - {"transformers", "trl"}


def test_a_module_that_no_extra_holds_is_a_defect(monkeypatch: pytest.MonkeyPatch):
    def run(self: object) -> None:
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    monkeypatch.setattr(commands.Ab, "run", run)
    with pytest.raises(ModuleNotFoundError):
        main(["ab", "run"])


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Ab, "run", run)
    assert main(["ab", "run"]) == 130
    assert capsys.readouterr().err == "hawker: interrupted; what was written before is intact\n"


def test_the_program_and_the_module_are_the_same(tmp_path: Path):
    program = Path(sys.executable).with_name("hawker")
    called = ([str(program)], [sys.executable, "-m", "hawker.app.cli"])
    for words in called:
        done = subprocess.run([*words, "fti"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == "hawker: command: unknown command; got 'fti'; did you mean 'fit'?\n"


# Configs


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Fit | Train]:
    """The commands that were run, without running them."""
    ran: list[Fit | Train] = []

    def run(self: Fit | Train) -> None:
        ran.append(self)

    for command in (Fit, Train):
        monkeypatch.setattr(command, "run", run)
    return ran


@pytest.mark.parametrize("form", ["two words", "one word", "last"])
def test_options_win_over_the_config_and_the_config_over_defaults(seen: list[Fit], tmp_path: Path, form: str):
    file = tmp_path / "c.yaml"
    file.write_text("members: 3\nepochs: 7\nshares: [0.5, 0.25, 0.25]\nlearning_rate: 1e-3\n")
    config = [f"--config={file}"] if form == "one word" else ["--config", str(file)]
    words = ["logs", "--out", "o", "--epochs", "9"]
    assert main(["fit", *words, *config] if form == "last" else ["fit", *config, *words]) == 0
    (fit,) = seen
    got = fit.fitting
    assert (got.members, got.epochs, got.batch, got.learning_rate) == (3, 9, 2048, 0.001)
    assert got.shares == (0.5, 0.25, 0.25)
    assert (fit.logs, fit.out, fit.config, fit.json) == (Path("logs"), Path("o"), file, None)


def test_a_config_reaches_the_reward_too(seen: list[Train], tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("reward:\n  click: 2\n  response: sampled\n")
    assert main(["train", "run", "--resume", "--config", str(file), "--revenue", "0.5"]) == 0
    (train,) = seen
    reward = train.training.reward
    assert (reward.click, reward.revenue, reward.response) == (2.0, 0.5, "sampled")
    assert train.resume
    assert train.run_ == Path("run")


def test_an_empty_config_is_the_defaults(seen: list[Fit], tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("")
    assert main(["fit", "logs", "--out", "o", "--config", str(file)]) == 0
    assert main(["fit", "logs", "--out", "o"]) == 0
    assert seen[0].fitting == seen[1].fitting


def test_configs_are_fields_of_their_commands():
    for name, (field, config) in CONFIGS.items():
        built = COMMANDS[name](Path("x")) if name == "train" else COMMANDS[name](Path("x"), Path("y"))
        assert type(getattr(built, field)) is config


def test_a_reader_who_has_seen_enough(finished):
    program = "import sys; from hawker.app.cli import main; sys.exit(main())"
    bundle, context = finished / "bundle", finished / "context.json"
    command = f"{sys.executable} -c '{program}' decide {bundle} --context {context}"
    script = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("0", "141")  # 0 where the reader was slower to leave than the writer to write
    assert done.stderr == ""
