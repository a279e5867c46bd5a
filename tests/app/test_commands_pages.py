"""Whole pages on the command line: what was learned of a run goes into a bundle, and a bundle decides."""

import json

import pytest

from hawker.agents import page_export
from hawker.app.cli import main
from hawker.shop.figures import figure
from hawker.shop.run import Run


def test_export_takes_whatever_the_run_has_learned(tmp_path, monkeypatch, capsys):
    seen = []
    report = {"figures": {"bytes": figure(3.0, None, None, 1, "bytes")}, "digest": "d", "seed": 0, "seconds": 1.0}
    monkeypatch.setattr(page_export, "export_run", lambda *given: seen.append(given) or report)
    words = ["export", str(tmp_path / "run"), str(tmp_path / "bundle"), "--json", str(tmp_path / "report.json")]
    assert main(words) == 0
    more = ["--rules", str(tmp_path / "rules.yaml"), "--writer", str(tmp_path / "sft"), "--voice", "A", "--voice", "B"]
    assert main([*words, *more]) == 0
    where = Run(tmp_path / "run"), tmp_path / "bundle"
    assert seen == [(*where, None, None, ()), (*where, tmp_path / "rules.yaml", tmp_path / "sft", ("A", "B"))]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert "bytes" in capsys.readouterr().out


def test_decide_answers_with_a_whole_page_and_takes_it_back(served_pages, tmp_path, capsys):
    request = tmp_path / "page.json"
    request.write_text(json.dumps({"timestamp": "2026-11-22T10:00:00Z"}))
    words = ["decide", str(served_pages / "bundle"), "--context", str(request)]
    assert main([*words, "--seed", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["drawn"] == "sampled"
    page = {key: answer[key] for key in ("timestamp", "slate", "ad", "offer", "copy", "lines")} | {"clicked": [1]}
    next_one = {"timestamp": "2026-11-23T10:00:00Z", "state": answer["state"], "history": [page]}
    request.write_text(json.dumps(next_one))
    assert main([*words, "--greedy", "--json", str(tmp_path / "answer.json")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["drawn"], told["pages_read"]) == ("likeliest", 1)
    assert json.loads((tmp_path / "answer.json").read_text()) == told


def test_decide_says_why(served_pages, tmp_path, capsys):
    request = tmp_path / "page.json"
    request.write_text(json.dumps({"timestamp": "2026-11-22T10:00:00Z"}))
    words = ["decide", str(served_pages / "bundle"), "--context", str(request), "--greedy"]
    assert main([*words, "--why"]) == 0
    why = json.loads(capsys.readouterr().out)["why"]
    assert why["slate"][-1]["sentence"].startswith("slot ")
    assert main(words) == 0
    assert "why" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"state": "AAAA"}, "page.json: state: a state of another size; got 3, expected"),
        ({"history": [{"timestamp": "2027-01-01T00:00Z", "slate": []}]}, "timestamp: earlier than the page before"),
        ({"copy": []}, "page.json: unknown key 'copy'"),
    ],
)
def test_bad_requests_end_in_one_line(served_pages, tmp_path, capsys, change, line):
    request = tmp_path / "page.json"
    request.write_text(json.dumps({"timestamp": "2026-11-22T10:00:00Z"} | change))
    assert main(["decide", str(served_pages / "bundle"), "--context", str(request)]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_decide_answers_with_a_line_of_the_bank(served_bank, tmp_path, capsys):
    request = tmp_path / "page.json"
    request.write_text(json.dumps({"timestamp": "2026-11-22T10:00:00Z", "candidates": ["i0001", "i0003"]}))
    words = ["decide", str(served_bank / "bundle"), "--context", str(request), "--why"]
    answers = []
    for more in (["--seed", "3"], ["--seed", "3"], ["--greedy"]):
        assert main([*words, *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0]["audience"] == "new"
    shown = [i for i, line in enumerate(answers[2]["copy"]) if line is not None]
    assert len(shown) == 2
    for slot in shown:
        said = answers[2]["why"]["copy"][slot]
        assert said["choices"] == 3
        assert said["propensity"] > 1 / 3
        assert answers[2]["copy"][slot] in said["sentence"]


def test_decide_lets_the_writer_write(served_live, tmp_path, capsys):
    request = tmp_path / "page.json"
    request.write_text(json.dumps({"timestamp": "2026-11-22T10:00:00Z"}))
    words = ["decide", str(served_live / "bundle"), "--context", str(request), "--seed", "3"]
    answers = []
    for more in ([], ["--live", "300"], ["--live", "300"], ["--live", "1e-6"]):
        assert main([*words, *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    plain, spoken, again, late = answers
    assert spoken == again
    assert {line["reason"] for line in spoken["live"]} <= {"written", "refused"}
    assert {line["reason"] for line in late["live"]} == {"late"}
    assert late["copy"] == plain["copy"]
    kept = [line["source"] != "live" for line in spoken["live"]]
    assert [own == line for own, line in zip(plain["copy"], spoken["copy"], strict=True)] == kept
    same = ("slate", "ad", "offer", "propensities", "state")
    assert [spoken[key] for key in same] == [late[key] for key in same] == [plain[key] for key in same]
    assert (spoken["log_prob"], spoken["log_probs"]["copy"], plain.get("live")) == (None, None, None)
    page = {key: spoken[key] for key in ("timestamp", "slate", "ad", "offer", "copy", "lines")} | {"clicked": [1]}
    request.write_text(json.dumps({"timestamp": "2026-11-23T10:00:00Z", "history": [page]}))
    assert main([*words, "--live", "1e-6"]) == 0
    assert json.loads(capsys.readouterr().out)["pages_read"] == 1


@pytest.mark.parametrize(
    ("which", "seconds", "line"),
    [
        ("served_bank", "2", "bundle: the bundle has no writer; export it with --writer, from a run with a copy bank"),
        ("served_live", "0", "live copy: bad deadline; got 0.0, expected seconds above 0, at most 3,600"),
    ],
)
def test_live_that_cannot_be(request, which, seconds, line, tmp_path, capsys):
    (tmp_path / "page.json").write_text(json.dumps({"timestamp": "2026-11-22T10:00:00Z"}))
    bundle = str(request.getfixturevalue(which) / "bundle")
    assert main(["decide", bundle, "--context", str(tmp_path / "page.json"), "--live", seconds]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
