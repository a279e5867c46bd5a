"""The writer's commands, one after the other, with a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hawker.agents.writer_config import SftConfig
from hawker.agents.writer_data import LoggedLine
from hawker.agents.writer_sft import sft
from hawker.app.cli import main
from hawker.app.commands import COMMANDS, CONFIGS
from hawker.app.tables import number
from hawker.app.writer_commands import WRITER, WRITER_CONFIGS
from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import ChoiceConfig, CopyBank
from hawker.policies.guardrails import Guardrails
from hawker.policies.small_writer import small_model
from hawker.shop.audiences import Audiences
from hawker.shop.logs import read_logs
from hawker.shop.models import model_digest
from hawker.shop.run import Run
from hawker.simulators.store import load_shoppers

SAID = ["A quiet pot for slow mornings", "Made to last a while", "Fine for every day", "Warm wool for cold days"]
SMALL = "steps: 2\nbatch: 4\nrows: 4\nrank: 2\ncheckpoint_every: 1\ndevice: cpu\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tables, write_tables) -> Path:
    """A run with shoppers of a log that shows four lines, a tiny model, pairs, configs, and what each stage made."""
    home = tmp_path_factory.mktemp("writer")
    impressions, items = tables
    generator = np.random.default_rng(0)
    said = generator.integers(4, size=len(impressions))
    rate = np.array([0.05, 0.05, 0.05, 0.6])[said]
    impressions = impressions.assign(
        copy=np.array(SAID, dtype=object)[said], clicked=(generator.random(len(said)) < rate).astype(np.int8)
    )
    write_tables(home / "logs", impressions=impressions, items=items.assign(title="A thing"))
    (home / "fit.yaml").write_text("members: 2\nepochs: 4\n")
    (home / "small.yaml").write_text(SMALL)
    (home / "grpo.yaml").write_text(SMALL + "group: 2\ntokens: 8\n")
    (home / "rwr.yaml").write_text(SMALL + "briefs: 3\nlines: 2\n")
    pairs = [{"prompt": f"Sell {i}", "chosen": "warm words", "rejected": "cold words"} for i in range(12)]
    (home / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    small_model(home / "model", SAID)
    run, small = home / "run", ["--config", home / "small.yaml"]
    brief = Brief("headline", title="A thing")
    logged = [LoggedLine(brief, line, 1, 1, 1.0, 1.0) for line in SAID]
    tuning = SftConfig(steps=80, batch=8, rows=8, rank=0, learning_rate=1e-2, decay=False, device="cpu")
    fluent, _ = sft(
        Run(home / "fluent"), str(home / "model"), logged, Guardrails.load(), tuning, False, lambda *_: None
    )
    for words in (
        ["fit", home / "logs", "--out", run / "shoppers", "--config", home / "fit.yaml"],
        ["writer", "sft", run, "--model", home / "model", *small, "--json", home / "sft.json"],
        ["writer", "reward", run, "--pairs", home / "pairs.jsonl", *small, "--json", home / "reward.json"],
        ["writer", "dpo", run, *small, "--json", home / "dpo.json"],
        ["writer", "rwr", run, "--model", fluent, "--config", home / "rwr.yaml", "--json", home / "rwr.json"],
        ["writer", "grpo", run, "--config", home / "grpo.yaml", "--items", "item-3", "--json", home / "grpo.json"],
    ):
        assert main([str(word) for word in words]) == 0
    return home


def test_every_command_of_the_writer_is_one():
    assert {name: COMMANDS[name] for name in WRITER} == WRITER
    assert {name: CONFIGS[name] for name in WRITER_CONFIGS} == WRITER_CONFIGS


def test_each_stage_reports(home: Path):
    for name, begun, steps in (
        ("sft", "model", 2),
        ("reward", "run/writer/sft", 2),
        ("dpo", "run/writer/sft", 2),
        ("rwr-1", "fluent/writer/sft", 1),
        ("rwr", "run/writer/rwr-1", 1),
        ("grpo", "run/writer/rwr", 2),
    ):
        report = json.loads((home / f"run/writer/{name}/train.json").read_text())
        assert (report["stage"], report["steps"], report["model"]) == (name, steps, str(home / begun))
        assert name == "rwr-1" or json.loads((home / f"{name}.json").read_text()) == report
        assert list((home / f"run/tensorboard/writer-{name}").iterdir())
    grpo = json.loads((home / "grpo.json").read_text())
    assert "preference" in grpo["history"][0]  # RUN/writer/reward was there
    assert {"shoppers/click", "shoppers/total"} <= set(grpo["history"][0])
    assert "prefs.accuracy" in json.loads((home / "reward.json").read_text())["figures"]


def test_training_is_shown(home: Path, capsys: pytest.CaptureFixture[str]):
    words = ["writer", "grpo", home / "run", "--config", home / "grpo.yaml", "--items", "item-3", "--resume"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    assert "shoppers/click" in printed
    assert "tokens/s of whole steps" in printed
    assert f"grpo: {home / 'run/writer/grpo'}" in printed


def test_write(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--items", "item-1", "--items", "item-2", "--audience", "new", "--audience", "returning", "--seed", "3"]
    words = ["writer", "write", home / "run", tmp_path / "lines.jsonl", "--count", "2", "--discount", "0.1"]
    assert main([*map(str, words), *options, "--json", str(tmp_path / "report.json")]) == 0
    written = (tmp_path / "lines.jsonl").read_text()
    rows = [json.loads(row) for row in written.splitlines()]
    asked = {(row["item_id"], row["audience"]) for row in rows}
    assert asked == {(f"item-{i}", who) for i in (1, 2) for who in ("new", "returning")}
    rules = Guardrails.load()
    for row in rows:
        brief = Brief(row["surface"], "A thing", audience=row["audience"], discount=row["discount"])
        assert (row["surface"], row["discount"]) == ("headline", 0.1)
        assert not rules.hits(row["line"], brief)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["drawn"], report["lines"]) == (8, len(rows))
    assert report["fell_back"] == sum(row["source"] == "fallback" for row in rows)
    assert report["refused"] <= sum(report["rejected"].values())
    printed = capsys.readouterr().out
    assert all(f"broke the rule {rule}" in printed for rule in report["rejected"])
    assert main([*map(str, words), *options]) == 0
    assert (tmp_path / "lines.jsonl").read_text() == written
    judged = ["copy", "score", tmp_path / "lines.jsonl", "--json", tmp_path / "scores.json"]
    assert main([*map(str, judged)]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["lines"]
    assert [(score["line"], score["discount"], score["hits"]) for score in scores] == [
        (row["line"], 0.1, []) for row in rows
    ]


def test_bank(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = home / "run"
    words = ["writer", "bank", run, "--items", "item-1", "--items", "item-2", "--count", "6", "--temperature", "0.5"]
    words += ["--audience", "all", "--choice.floor", "0.3", "--json", tmp_path / "report.json"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    bank = CopyBank.load(run / "writer/bank", Guardrails.load())
    shoppers = load_shoppers(run / "shoppers", torch.device("cpu"))
    impressions, items = shoppers.read_part("train"), read_logs(shoppers.logs).items
    labels = {"", *Audiences.fit(impressions, items).label(impressions, items)}
    assert report["briefs"] == 2 * len(labels)
    assert (
        report["drawn"] == 6 * report["briefs"] == sum(report[n] for n in ("repeated", "refused", "unscored", "lines"))
    )
    assert report["lines"] == len(bank) > 0
    assert set(bank.table["audience"]) <= labels
    assert set(bank.table["item_id"]) <= {"item-1", "item-2"}
    assert (set(bank.table["surface"]), set(bank.table["discount"])) == ({"headline"}, {0.0})
    spoken = bank.table[["audience", "item_id"]].drop_duplicates()
    assert report["fell_back"] == report["briefs"] - len(spoken)
    assert report["refused"] == bank.filled.rejected <= sum(report["rejected"].values())
    assert bank.choice == ChoiceConfig(floor=0.3)
    assert report["writer"] == bank.writer == model_digest(run / "writer/grpo")
    means = (bank.table["effect"] * bank.propensity).groupby([bank.table["audience"], bank.table["item_id"]]).sum()
    assert report["gain"] == pytest.approx(means.mean())
    assert f"{number(report['gain'], '')} of reward" in printed
    assert all(f"broke the rule {rule}" in printed for rule in report["rejected"])
    written = (run / "writer/bank/checksums.json").read_text()
    assert main([str(word) for word in words]) == 0
    assert (run / "writer/bank/checksums.json").read_text() == written
    assert main([*map(str, words), "--seed", "1"]) == 0
    assert (run / "writer/bank/checksums.json").read_text() != written


def test_bank_for_anybody_by_default(home: Path, tmp_path: Path):
    words = ["writer", "bank", home / "run", "--items", "item-4", "--count", "2", "--json", tmp_path / "report.json"]
    assert main([str(word) for word in words]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["briefs"] == 1
    assert set(CopyBank.load(home / "run/writer/bank").table["audience"]) <= {""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "RUN", "--model", "nothing"], "model: no such language model; got 'nothing'"),
        (["sft", "RUN", "--model", "HOME/logs"], "HOME/logs: not a language model"),
        (["sft", "HOME"], "HOME/shoppers: no shoppers here"),
        (["sft", "RUN", "--steps", "0"], "writer.steps: bad config; got 0"),
        (["grpo", "HOME", "--model", "HOME/model"], "no shoppers here"),
        (["grpo", "HOME"], "HOME/writer/sft: no writer here; run hawker writer sft first"),
        (["grpo", "RUN", "--items", "item-99"], "items: no such item; got 'item-99'"),
        (["grpo", "RUN", "--batch", "9", "--rows", "9"], "writer.batch: bad config; got 9, expected a multiple of"),
        (["dpo", "RUN", "--pairs", "HOME/none.jsonl"], "HOME/none.jsonl: no such file"),
        (["dpo", "RUN", "--pairs", "HOME/fit.yaml"], "fit.yaml line 1: not JSON"),
        (["reward", "RUN", "--pairs", "HOME/few.jsonl"], "too few pairs to judge what was learned"),
        (["write", "RUN", "HOME/lines.jsonl", "--model", "RUN/writer/reward"], "a directory of another kind"),
        (["write", "RUN", "HOME/lines.jsonl", "--surface", "banner"], "brief: unknown surface; got 'banner'"),
        (["write", "RUN", "HOME/lines.jsonl", "--count", "0"], "cannot write so; got 'count 0"),
        (["write", "RUN", "HOME/lines.jsonl", "--rules", "HOME/none.yaml"], "none.yaml: no such file"),
        (["bank", "HOME"], "no shoppers here"),
        (["bank", "RUN", "--audience", "nobody"], "copy bank: no page of the log has this audience; got 'nobody'"),
        (["bank", "RUN", "--items", "item-99"], "items: no such item; got 'item-99'"),
        (["bank", "RUN", "--count", "0"], "cannot write so; got 'count 0"),
        (["bank", "RUN", "--rules", "HOME/none.yaml"], "none.yaml: no such file"),
    ],
    ids=lambda value: "-".join(value[:1] + value[2:4]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    (home / "few.jsonl").write_text((home / "pairs.jsonl").read_text().splitlines()[0])
    before = {path: path.stat().st_mtime_ns for path in (home / "run").rglob("*")}
    capsys.readouterr()
    assert main(["writer", *(word.replace("RUN", str(home / "run")).replace("HOME", str(home)) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said.replace(str(home), "HOME")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in (home / "run").rglob("*")} == before
    assert not (home / "lines.jsonl").exists()
