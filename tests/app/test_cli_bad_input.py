"""Bad input but for logs, one case a row: what is broken in a finished shop, the command, and its line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hawker.app.cli import main
from hawker.shop.artefacts import CHECKSUMS
from hawker.shop.importers import shipped


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file of an artefact as a program would that also keeps the checksums."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    listed = json.loads((path.parent / CHECKSUMS).read_text())
    listed["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / CHECKSUMS).write_text(json.dumps(listed))


def config(text: str) -> Callable[[Path], None]:
    return lambda home: (home / "bad.yaml").write_text(text) and None


def request(text: str) -> Callable[[Path], None]:
    return lambda home: (home / "context.json").write_text(text) and None


def nothing(home: Path) -> None:
    """Break nothing: the command itself is wrong."""


def missing(*names: str) -> Callable[[Path], None]:
    return lambda home: home.joinpath(*names).unlink()


def changed(*names: str) -> Callable[[Path], None]:
    return lambda home: flip(home.joinpath(*names))


def moved(name: str) -> Callable[[Path], None]:
    return lambda home: home.joinpath(name).rename(home / "elsewhere") and None


def other_log(home: Path) -> None:
    """The log that the shoppers were fitted on is written anew with another value in it."""
    frame = pd.read_parquet(home / "logs" / "impressions.parquet")
    frame.assign(age=1.0).to_parquet(home / "logs" / "impressions.parquet")
    rewrite(home / "run" / "shoppers" / "shoppers.json", lambda meta: meta.update(logs=str(home / "logs")))


def other_shoppers(home: Path) -> None:
    """The shoppers are fitted anew after the strategy was trained."""
    words = ["fit", home / "logs", "--out", home / "run" / "shoppers", "--config", home / "fit.yaml", "--seed", 1]
    assert main([str(word) for word in words]) == 0


FIT = "fit HOME/logs --out HOME/run/shoppers"
TRAIN = "train HOME/run --config HOME/train.yaml"
DECIDE = "decide HOME/bundle --context HOME/context.json"

CASES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # configs and options
    "an unknown key": (
        config("membrs: 3\n"),
        f"{FIT} --config HOME/bad.yaml",
        "HOME/bad.yaml: unknown option 'membrs'; did you mean 'members'?",
    ),
    "an unknown key within": (
        config("reward:\n  clicks: 2\n"),
        "train HOME/run --config=HOME/bad.yaml",
        "HOME/bad.yaml: reward: unknown option 'clicks'; did you mean 'click'?",
    ),
    "a word for a number in a config": (
        config("members: many\n"),
        f"{FIT} --config HOME/bad.yaml",
        "HOME/bad.yaml: members: wrong type; got 'many', expected int",
    ),
    "no YAML": (
        config("members: [1\n"),
        f"{FIT} --config HOME/bad.yaml",
        "HOME/bad.yaml line 2: not a YAML file; got 'while parsing a flow sequence'",
    ),
    "no mapping": (
        config("- 1\n"),
        f"{FIT} --config HOME/bad.yaml",
        "HOME/bad.yaml: not a mapping of options; got [1], expected 'key: value' lines",
    ),
    "no config": (nothing, f"{FIT} --config HOME/no.yaml", "HOME/no.yaml: no such file"),
    "no members": (nothing, f"{FIT} --members 0", "fit.members: bad config; got 0, expected a number from 1 to 100"),
    "shares over 1": (
        nothing,
        f"{FIT} --shares 0.5 0.5 0.5",
        "shares: bad shares; got (0.5, 0.5, 0.5), expected three positive numbers that sum to 1",
    ),
    "an unknown device": (
        nothing,
        f"{FIT} --device tpu",
        "device: unknown device; got 'tpu', expected auto, cpu, cuda or cuda:N",
    ),
    "nothing to learn for": (
        config("reward:\n  click: 0\n"),
        "train HOME/run --config HOME/bad.yaml",
        "reward: every weight is 0; expected at least one weight that is not",
    ),
    "a reward for what these shoppers do not do": (
        nothing,
        f"{TRAIN} --revenue 1",
        "reward.revenue: the shoppers have no revenue head; got 1.0, expected 0; their logs recorded no revenue",
    ),
    # where to write
    "foreign files in the way": (
        nothing,
        "fit HOME/logs --out HOME",
        "HOME: the directory holds files that Hawker did not write; name another directory",
    ),
    "a file in the way": (
        nothing,
        "export HOME/run HOME/fit.yaml",
        "HOME/fit.yaml: a file stands where a directory is to be written",
    ),
    "a file on the way": (
        nothing,
        "export HOME/run HOME/fit.yaml/bundle",
        "HOME/fit.yaml: cannot write here (File exists)",
    ),
    "a report where a directory stands": (
        nothing,
        "logs check HOME/logs --json HOME/run",
        "HOME/run: cannot write here (Is a directory)",
    ),
    # imports
    "no data set": (
        nothing,
        "logs import obd HOME HOME/imported",
        "HOME/random/all/all.csv: no such file; expected the Open Bandit Dataset's folder, with random/all/all.csv "
        "in it",
    ),
    "no CDNOW": (
        nothing,
        "logs import cdnow HOME HOME/imported",
        "HOME/CDNOW_master.txt: no such file; expected the CDNOW files",
    ),
    "the Open Bandit Dataset before its import": (
        nothing,
        f"fit {shipped('obd')} --out HOME/run/shoppers",
        f"{shipped('obd')}: no impressions and no events here; expected impressions.parquet; this looks like the Open "
        f"Bandit Dataset: run `hawker logs import obd {shipped('obd')} OUT` first",
    ),
    # shoppers, policies, checkpoints
    "a run without shoppers": (
        moved("run/shoppers"),
        TRAIN,
        "HOME/run/shoppers: no shoppers here; expected a directory with shoppers",
    ),
    "shoppers without a list of checksums": (
        missing("run", "shoppers", CHECKSUMS),
        "ope HOME/run --policy random",
        "HOME/run/shoppers: not a directory of shoppers; expected a checksums.json in it",
    ),
    "shoppers with a byte changed": (
        changed("run", "shoppers", "train.safetensors"),
        TRAIN,
        "HOME/run/shoppers/train.safetensors: the file was changed after it was written; got '",
    ),
    "a checkpoint of another config": (
        nothing,
        f"{TRAIN} --resume --learning-rate 0.1",
        "HOME/run/checkpoint: the checkpoint was made with another value of config.learning_rate; got 0.003, "
        "expected 0.1; train without --resume to start anew",
    ),
    "a checkpoint of other shoppers": (
        other_shoppers,
        f"{TRAIN} --resume",
        "HOME/run/checkpoint: the checkpoint was made with another value of shoppers; got '",
    ),
    "a checkpoint with a byte changed": (
        changed("run", "checkpoint", "state.safetensors"),
        f"{TRAIN} --resume",
        "HOME/run/checkpoint/state.safetensors: the file was changed after it was written; got '",
    ),
    "a run without a policy": (
        moved("run/policy"),
        "ab HOME/run",
        "HOME/run: the run has no trained policy; train one with `hawker train HOME/run`",
    ),
    "a policy with a byte changed": (
        changed("run", "policy", "actor.safetensors"),
        "export HOME/run HOME/bundle",
        "HOME/run/policy/actor.safetensors: the file was changed after it was written; got '",
    ),
    "a policy with a missing file": (
        missing("run", "policy", "policy.json"),
        "export HOME/run HOME/bundle",
        "HOME/run/policy/policy.json: a file is missing; write the policy anew",
    ),
    # estimates and tests
    "an unknown policy": (
        nothing,
        "ope HOME/run --policy trainde",
        "arms: unknown strategy; got 'trainde', expected a known name, or the directory of a run or a bundle; "
        "did you mean 'trained'?",
    ),
    "a policy twice": (
        nothing,
        "ope HOME/run --policy random --policy random",
        "ope: two strategies have the same name; got ['random', 'random']",
    ),
    "slates without candidates": (
        nothing,
        "ope HOME/run --level page",
        "LOGS table pages: whole slates cannot be valued: the candidates of the logged pages are unknown; expected "
        "columns log_prob_slate and candidates without gaps; log them, or estimate by row (--level row), which "
        "assumes that positions add up",
    ),
    "a log that has changed": (
        other_log,
        "ope HOME/run --policy random",
        "HOME/logs: the log has changed since the shoppers were fitted; fit the shoppers anew with `hawker fit`",
    ),
    "a negative seed of estimates": (
        nothing,
        "ope HOME/run --policy random --seed -1",
        "seed: bad seed; got -1, expected an integer from 0 to 2**63 - 1",
    ),
    "one arm": (
        nothing,
        "ab HOME/run --arms random",
        "arms: an A/B test compares two or more arms; got ['random'], expected 2 or more",
    ),
    "too few shoppers": (
        nothing,
        "ab HOME/run --shoppers 10",
        "shoppers: bad number of shoppers; got 10, expected an integer of at least ",
    ),
    "a negative seed of a test": (
        nothing,
        "ab HOME/run --seed -1",
        "seed: bad seed; got -1, expected an integer of at least 0",
    ),
    "no repeats": (
        nothing,
        "bench signal --logs HOME/logs --repeats 0",
        "signal.repeats: too few; got 0, expected at least 1",
    ),
    # bundles and requests
    **{
        f"a bundle with a byte changed in {name}": (
            changed("bundle", name),
            DECIDE,
            f"HOME/bundle/{name}: the file was changed after it was written; got '",
        )
        for name in ("actor.onnx", "items.safetensors", "golden.safetensors", "manifest.json")
    },
    **{
        f"a bundle without {name}": (
            missing("bundle", name),
            DECIDE,
            f"HOME/bundle/{name}: a file is missing; write the bundle anew",
        )
        for name in ("actor.onnx", "items.safetensors", "golden.safetensors", "manifest.json")
    },
    "a bundle of another format": (
        lambda home: rewrite(home / "bundle" / "manifest.json", lambda manifest: manifest.update(format=99)),
        DECIDE,
        "HOME/bundle/manifest.json: a bundle of another format; got 99, expected format 1; ",
    ),
    "shoppers for a bundle": (
        nothing,
        "decide HOME/run/shoppers --context HOME/context.json",
        "HOME/run/shoppers: a directory of another kind; got 'shoppers', expected bundle",
    ),
    "a bundle written over shoppers": (
        nothing,
        "export HOME/run HOME/run/shoppers",
        "HOME/run/shoppers: the directory holds something else; got 'shoppers', expected bundle; name another ",
    ),
    "no bundle": (
        nothing,
        "decide HOME/none --context HOME/context.json",
        "HOME/none: no bundle here; expected a directory with bundle",
    ),
    "no request": (nothing, "decide HOME/bundle --context HOME/none.json", "HOME/none.json: no such file"),
    "a request that is no JSON": (request("{"), DECIDE, "HOME/context.json: not a JSON file; got "),
    "a request with an unknown key": (
        request('{"timestmp": "2026-01-01T00:00Z"}'),
        DECIDE,
        "HOME/context.json: unknown key 'timestmp'; did you mean 'timestamp'?",
    ),
    "a request without a time": (
        request("{}"),
        DECIDE,
        "HOME/context.json: no timestamp; expected ISO 8601 with a time zone",
    ),
    "a request without a zone": (
        request('{"timestamp": "2026-01-01T00:00"}'),
        DECIDE,
        "HOME/context.json: bad timestamp; got '2026-01-01T00:00', expected ISO 8601 with a time zone",
    ),
    "a request with a word for an age": (
        request('{"timestamp": "2026-01-01T00:00Z", "shopper": {"age": "old"}}'),
        DECIDE,
        "HOME/context.json: shopper.age: not a number; got 'old', expected a number",
    ),
    "a request for an unknown item": (
        request('{"timestamp": "2026-01-01T00:00Z", "candidates": ["item-99"]}'),
        DECIDE,
        "HOME/context.json: candidates: item not in the catalog; got 'item-99'; did you mean 'item-9'?",
    ),
    "a negative seed of a decision": (nothing, f"{DECIDE} --seed -1", "seed: bad seed; got -1, expected at least 0"),
    # commands
    "an unknown command": (nothing, "fti HOME/logs", "command: unknown command; got 'fti'; did you mean 'fit'?"),
    "half a command": (nothing, "logs", "command: unknown command; got 'logs'; commands: logs import, logs check"),
    "another half": (
        nothing,
        "logs chek HOME/logs",
        "command: unknown command; got 'logs chek'; commands: logs import, logs check",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, home: Path, finished: Path, refused: Any):
    broken, command, message = CASES[case]
    broken(home)
    line = refused(command.replace("HOME", str(home)).split())
    assert line.startswith(message.replace("LOGS", str(finished / "logs")))


def test_a_refused_estimate_keeps_its_report(home: Path, capsys: pytest.CaptureFixture[str]):
    """The one case that writes: the report says who was refused and why."""
    (home / "train.yaml").write_text((home / "train.yaml").read_text() + "entropy: 0.0\nlearning_rate: 0.1\n")
    assert main(["train", str(home / "run"), "--config", str(home / "train.yaml"), "--steps", "60000"]) == 0
    capsys.readouterr()
    assert main(["ope", str(home / "run"), "--json", str(home / "ope.json")]) == 2
    printed, line = capsys.readouterr()
    assert line.count("\n") == 1
    assert line.startswith(f"hawker: {home}/run: no estimate for trained: the effective sample size is ")
    assert "trained: no estimate: " in printed
    report = json.loads((home / "ope.json").read_text())
    assert list(report["refused"]) == ["trained"]
    assert "dr.random" in report["figures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "logs", "--out", "out", "--membres", "3"], "--membres"),
        (["fit", "logs"], "--out"),
        (["fit", "logs", "--out", "out", "--members", "many"], "--members"),
        (["logs", "import", "obdd", "a", "b"], "obdd"),
        (["fit", "logs", "--out", "out", "--config"], "--config"),
    ],
)
def test_words_that_cannot_be_parsed(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """tyro's own errors: more than a line, but no traceback, and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
