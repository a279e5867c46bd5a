import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hawker.app.copy_scores import _rates, read_lines, score_lines
from hawker.shop.errors import InputError

HEADER = "item_id,line,surface,audience,discount,title,price\n"


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_both_forms_say_the_same(tmp_path: Path):
    rows = [
        {
            "item_id": "7",
            "line": 'Brew "slow",\u2028friend \u2615',
            "surface": "winback",
            "audience": "new",
            "discount": 0.2,
        },
        {"item_id": "8", "line": "", "title": "Teapot", "price": 35.0},
    ]
    table = HEADER + '7,"Brew ""slow"",\u2028friend \u2615",winback,new,0.2,,\n8,,,,,Teapot,35\n'
    ours = read_lines(written(tmp_path / "lines.jsonl", "\ufeff" + "\n\n".join(json.dumps(row) for row in rows)))
    theirs = read_lines(written(tmp_path / "lines.csv", table))
    assert [(g.item_id, g.line, g.surface, g.audience, g.discount, g.told) for g in ours] == [
        ("7", 'Brew "slow",\u2028friend \u2615', "winback", "new", 0.2, {}),
        ("8", "", "headline", "", 0.0, {"title": "Teapot", "price": 35.0}),
    ]
    assert [g.told for g in ours] == [g.told for g in theirs]
    assert [(g.line, g.surface, g.discount) for g in ours] == [(g.line, g.surface, g.discount) for g in theirs]
    assert ours[1].where == f"{tmp_path / 'lines.jsonl'} line 3"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"item_id": "a", "line": "b"}\n{', " line 2: not JSON"),
        ("a.jsonl", "[1]", " line 1: not an object"),
        ("a.jsonl", '{"item_id": "a"}', " line 1: line is missing; expected item_id, line"),
        ("a.jsonl", '{"item_id": "a", "line": null}', "line is missing"),
        ("a.jsonl", '{"item_id": "a", "line": 3}', "line is not text; got 3"),
        ("a.jsonl", '{"item_id": true, "line": "x"}', "item_id is not text; got True"),
        (
            "a.jsonl",
            '{"item_id": "a", "line": "x", "discount": 20}',
            "bad discount; got 20, expected a share of the price, 0..1",
        ),
        ("a.jsonl", '{"item_id": "a", "line": "x", "discount": NaN}', "bad discount"),
        ("a.jsonl", '{"item_id": "a", "line": "x", "price": "dear"}', "bad price; got 'dear'"),
        ("a.jsonl", '{"item_id": "a", "line": "x", "surface": "headlin"}', "did you mean 'headline'?"),
        ("a.jsonl", '{"item_id": "a", "line": "x", "lines": 1}', "unknown column 'lines'; did you mean 'line'?"),
        ("a.jsonl", "\n \n", ": no lines in the file"),
        ("a.csv", "item_id,line\n", ": no lines in the file"),
        ("a.csv", "item,line\n1,x\n", " line 2: unknown column 'item'; did you mean 'item_id'?"),
        ("a.csv", "item_id,line\n1,x\n2,y,z\n", " line 3: the row does not fit the header; got 'more cells'"),
        ("a.csv", "item_id,line\n1\n", "got 'fewer cells'"),
        ("a.csv", 'item_id,line\n1,"x\n', "not CSV"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(InputError) as caught:
        read_lines(written(tmp_path / name, text))
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    for name, message in (("missing.csv", "no such file"), ("binary.csv", "not a text file"), (".", "not a text file")):
        with pytest.raises(InputError, match=message):
            read_lines(tmp_path / name)


def test_what_the_file_tells_of_an_item_is_what_claims_are_held_against(tmp_path: Path):
    rows = [
        {"item_id": "a", "line": "Now $28", "price": 35, "discount": 0.2},
        {"item_id": "a", "line": "Now $28", "price": 36, "discount": 0.2},
        {"item_id": "a", "line": "since 1921", "description": "Founded in 1921."},
        {"item_id": "a", "line": "A pot\nfor two", "surface": "description"},
    ]
    given = read_lines(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    report = score_lines(given, None, None, 0)
    assert [[hit["rule"] for hit in line["hits"]] for line in report["lines"]] == [[], ["price"], [], ["markup"]]
    assert [line["ctr"] for line in report["lines"]] == [None] * 4


def test_interval_is_students_of_one_more_member(tmp_path: Path):
    given = read_lines(written(tmp_path / "a.csv", "item_id,line\na,x\nb,y\n"))
    click = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5]])
    one, other = _rates(given, SimpleNamespace(by_member=lambda *asked: {"click": click}))
    half = 4.302653 * 0.1 * np.sqrt(4 / 3)  # t with 2 degrees of freedom
    assert (one["value"], one["low"], one["high"]) == pytest.approx((0.2, max(0.2 - half, 0), 0.2 + half))
    assert (other["low"], other["high"], other["n"]) == (0.5, 0.5, 3)
    (alone,) = _rates(given[:1], SimpleNamespace(by_member=lambda *asked: {"click": click[:1, :1]}))
    assert (alone["value"], alone["low"], alone["high"]) == (0.1, None, None)
