import json
from pathlib import Path

import numpy as np
import pytest

from hawker.agents.prefs import read_preferences
from hawker.app.cli import main
from hawker.app.commands import COMMANDS
from hawker.app.copy_commands import COPY
from hawker.app.copy_scores import read_lines, score_lines

SAID = ["Brew slow", "Good for gardens", "our bestseller", "only today"]


def lines_file(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def shoppers(tmp_path_factory: pytest.TempPathFactory, tables, write_tables) -> Path:
    """Shoppers of a log that shows four lines, the last of them the best."""
    home = tmp_path_factory.mktemp("copy")
    impressions, items = tables
    generator = np.random.default_rng(0)
    said = generator.integers(4, size=len(impressions))
    rate = np.array([0.05, 0.05, 0.05, 0.6])[said]
    impressions = impressions.assign(
        copy=np.array(SAID, dtype=object)[said],
        clicked=(generator.random(len(said)) < rate).astype(np.int8),
    )
    write_tables(home / "logs", impressions=impressions, items=items.assign(title="Item of ours"))
    (home / "fit.yaml").write_text("members: 2\nepochs: 8\n")
    assert main(["fit", str(home / "logs"), "--out", str(home / "shoppers"), "--config", str(home / "fit.yaml")]) == 0
    return home / "shoppers"


def test_every_command_about_copy_is_one():
    assert {name: COMMANDS[name] for name in COPY} == COPY


def test_lines_are_judged_by_the_rules_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = lines_file(
        tmp_path / "lines.jsonl",
        [
            {"item_id": 7, "line": "A pot for slow mornings"},
            {"item_id": 7, "line": "FREE pots!!", "surface": "promotion"},
        ],
    )
    assert main(["copy", "score", str(file), "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "free: 'free', and the catalogue" in " ".join(printed.split())
    assert "1 of 2 lines break a rule (shouting 1, free 1)" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["lines"][0]["hits"] == []
    assert {hit["rule"] for hit in report["lines"][1]["hits"]} == {"shouting", "free"}
    assert len(report["guardrails"]["digest"]) == 64


def test_learned_shoppers_tell_a_good_line_from_a_poor_one(shoppers: Path, tmp_path: Path, capsys):
    rows = [{"item_id": "item-0", "line": line} for line in (*SAID, "", "never seen before")]
    file = lines_file(tmp_path / "lines.jsonl", rows)
    assert main(["copy", "score", str(file), "--shoppers", str(shoppers), "--json", str(tmp_path / "one.json")]) == 0
    assert "expected CTR" in capsys.readouterr().out
    rates = [line["ctr"] for line in json.loads((tmp_path / "one.json").read_text())["lines"]]
    assert rates[3]["value"] > 1.5 * rates[0]["value"]
    for rate in rates:
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
        assert (rate["n"], rate["unit"]) == (2, "probability")
    again = score_lines(read_lines(file), shoppers, None, 0)
    assert [line["ctr"] for line in again["lines"]] == rates


def test_claims_are_held_against_the_shops_catalogue(shoppers: Path, tmp_path: Path):
    file = lines_file(tmp_path / "lines.jsonl", [{"item_id": "item-0", "line": "ITEM of ours"}])
    (line,) = score_lines(read_lines(file), shoppers, None, 0)["lines"]
    assert [hit["rule"] for hit in line["hits"]] == ["shouting"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"item_id": "item-99", "line": "x"},
            "line 1: no such item in the catalogue; got 'item-99'; did you mean 'item-9'?",
        ),
        (
            {"item_id": "item-0", "line": "x", "audience": "nev"},
            "line 1: no page of the log has this audience; got 'nev'",
        ),
    ],
)
def test_strangers_are_named(shoppers: Path, tmp_path: Path, capsys, row: dict[str, object], message: str):
    file = lines_file(tmp_path / "lines.jsonl", [row])
    assert main(["copy", "score", str(file), "--shoppers", str(shoppers), "--json", str(tmp_path / "report.json")]) == 2
    assert f"hawker: {file} {message}" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()


def test_preferences_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pair = {"prompt": "A teapot", "chosen": "Brew slow", "rejected": "Buy now"}
    file = lines_file(tmp_path / "pairs.jsonl", [pair, pair])
    words = ["prefs", "import", str(file), str(tmp_path / "prefs"), "--json", str(tmp_path / "report.json")]
    assert main(words) == 0
    assert "repeated" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "pairs": 2,
        "prompts": 1,
        "repeated": 1,
        "contradicted": 0,
    }
    assert len(read_preferences(tmp_path / "prefs")) == 2


def test_malformed_preferences_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = lines_file(tmp_path / "pairs.jsonl", [{"prompt": "A teapot", "chosen": "Brew slow"}])
    assert main(["prefs", "import", str(file), str(tmp_path / "prefs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hawker: {file} line 1: not a pair")
    assert error.count("\n") == 1
    assert not (tmp_path / "prefs").exists()
