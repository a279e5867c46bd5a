"""``hawker logs simulate``: what it writes, what it refuses, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hawker.app.cli import main
from hawker.shop.artefacts import verify_directory
from hawker.shop.logs import digest, read_logs

SMALL = ["--shoppers", "20", "--days", "7"]


def simulate(out: Path, *options: str) -> int:
    return main(["logs", "simulate", "bazaar", str(out), *SMALL, *options])


def test_a_log_is_written_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = tmp_path / "report.json"
    assert simulate(tmp_path / "logs", "--seed", "4", "--variant", "cascade", "--json", str(report)) == 0
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is not None
    told = json.loads(report.read_text())
    assert told == json.loads((tmp_path / "logs/meta.json").read_text())
    assert (told["variant"], told["strategy"], told["seed"]) == ("cascade", "popularity", 4)
    assert told["rows"]["impressions"] == len(logs.impressions)
    assert f"{len(logs.impressions):,}" in capsys.readouterr().out
    assert main(["logs", "check", str(tmp_path / "logs")]) == 0


def test_a_variant_from_a_file(tmp_path: Path):
    variant = tmp_path / "dull.yaml"
    variant.write_text("shop: {items: 60}\nclick: {base: -20}\n")
    assert simulate(tmp_path / "logs", "--variant", str(variant), "--strategy", "random") == 0
    meta = json.loads((tmp_path / "logs/meta.json").read_text())
    assert (meta["variant"], meta["clicks"], meta["rows"]["items"]) == ("dull", 0, 60)


def test_another_seed_another_log(tmp_path: Path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert simulate(tmp_path / name, "--seed", seed) == 0
    digests = [digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "{variant}"], "leave: unknown key 'bose'; did you mean 'base'?"),
        (["--variant", "inrt"], "inrt: no such variant; expected a file or a shipped variant; did you mean 'inert'?"),
        (["--variant", "."], ".: the file cannot be read; got "),
        (["--strategy", "popular"], "--strategy: unknown logging strategy; got 'popular'; did you mean 'popularity'?"),
        (["--shoppers", "0"], "shoppers: too few; got 0, expected at least 1"),
        (["--days", "-1"], "days: too few; got -1, expected at least 1"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str):
    variant = tmp_path / "variant.yaml"
    variant.write_text("leave: {bose: 1}\n")
    out = tmp_path / "logs"
    assert simulate(out, *(option.replace("{variant}", str(variant)) for option in options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["variant.yaml"]


def test_other_files_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/letter").write_text("dear")
    assert simulate(tmp_path / "logs") == 2
    assert "the directory holds files that Hawker did not write" in capsys.readouterr().err


@pytest.mark.parametrize("written", [False, True])
def test_a_kill_leaves_the_last_good_log(tmp_path: Path, written: bool):
    """SIGKILL once the scratch directory is there, or once impressions are being written to it."""
    out = tmp_path / "logs"
    assert simulate(out) == 0
    good = digest(out)
    command = [sys.executable, "-m", "hawker.app.cli", "logs", "simulate", "bazaar", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "--shoppers", "500000"], env=environment, stdout=subprocess.DEVNULL) as writer:
        deadline = time.monotonic() + 60
        wanted = ".logs.*/impressions.parquet" if written else ".logs.*"
        while not list(tmp_path.glob(wanted)):
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2
    assert digest(verify_directory(out, "logs")) == good
    assert simulate(out, "--seed", "1") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert digest(out) != good
