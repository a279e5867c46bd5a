"""What the writer learns from, against numbers worked out by hand."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hawker.agents.writer_data import (
    LoggedLine,
    Pair,
    discount_of_tiers,
    draw_assignments,
    draw_lines,
    expected_clicks,
    item_brief,
    logged_lines,
    read_pairs,
    tier_discounts,
)
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.shop.errors import InputError

RULES = Guardrails.load()
ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b"],
        "title": ["Tea pot", None],
        "category": ["kitchen", "hats"],
        "price": [20.0, np.nan],
        "stock": [1, 2],
    }
)


def test_item_brief():
    pot, hat = ITEMS.to_dict("records")
    assert item_brief(pot, "title", "new", 0.1) == Brief("title", "Tea pot", "", "kitchen", 20.0, 0.1, "new")
    assert item_brief(hat, "headline") == Brief("headline", "", "", "hats", None)


def test_tier_discounts():
    rows = pd.DataFrame(
        {"item_id": ["a", "a", "a", "a", "b"], "offer": [0, 2, 2, 1, 3], "price_shown": [20.0, 16.0, 17.9, 19.0, 5.0]}
    )
    assert tier_discounts(rows, ITEMS) == {0: 0.0, 1: 0.05, 2: 0.15, 3: 0.0}  # the median of two; no price, no share
    assert tier_discounts(rows[["item_id"]], ITEMS) == {0: 0.0}
    assert discount_of_tiers(rows[rows["offer"] != 1], ITEMS, 5) == (0.0, 0.0, 0.15, 0.0, 0.0)  # 1 and 4 are not shown


def planted(n: int = 60_000, seed: int = 0) -> pd.DataFrame:
    """A log whose good line stands low on the page and with the dull item: by bare click rates it looks worse."""
    generator = np.random.default_rng(seed)
    good, position = generator.random(n) < 0.5, generator.integers(3, size=n)
    low = generator.random(n) < 0.7
    position = np.where(good & low, 2, position)
    item = np.where(generator.random(n) < np.where(good, 0.7, 0.3), "b", "a")
    older = generator.random(n) < 0.5
    rate = 0.3 * np.array([1.0, 0.6, 0.3])[position] * np.where(item == "a", 1.0, 0.6)
    rate *= np.where(good, np.where(older, 1.5, 1.1), 1.0)
    return pd.DataFrame(
        {
            "item_id": item,
            "position": position,
            "clicked": (generator.random(n) < rate).astype(np.int8),
            "copy": np.where(good, "good", "plain"),
            "who": np.where(older, "older", "younger"),
        }
    )


def test_lift_is_what_the_line_does_and_not_its_place():
    log = planted()
    by_line = log.groupby("copy")["clicked"].mean()
    assert by_line["good"] < by_line["plain"]
    lines = logged_lines(log, ITEMS, "headline", log["who"].tolist())
    lift = {(line.brief.audience, line.line): line.lift for line in lines}
    assert lift["older", "good"] / lift["older", "plain"] == pytest.approx(1.5, rel=0.08)
    assert lift["younger", "good"] / lift["younger", "plain"] == pytest.approx(1.1, rel=0.08)
    assert sum(line.shown for line in lines) == len(log)
    assert {line.brief.title for line in lines} == {"Tea pot", ""}


def test_expected_clicks_add_up():
    log = planted(5_000).assign(copy="the same", audience="")
    expected = expected_clicks(log, prior=1e-3)
    for factor in ("position", "item_id"):
        sums = log.assign(expected=expected).groupby(factor)[["clicked", "expected"]].sum()
        assert sums["expected"].to_numpy() == pytest.approx(sums["clicked"].to_numpy(), rel=0.01)


def test_lift_by_hand():
    """One position, item and audience: clicks are expected at the mean rate, 0.5; the prior is 2 clicks."""
    log = pd.DataFrame({"item_id": "a", "position": 0, "clicked": [1, 1, 1, 0, 0, 0], "copy": ["x"] * 4 + ["y"] * 2})
    x, y = logged_lines(log, ITEMS, "headline", prior=2.0)
    assert (x.clicks, x.expected, x.shown) == (3, 2.0, 4)
    assert x.lift == pytest.approx((3 + 2 * (3 + 2) / (2 + 2)) / (2 + 2))  # shrunk to everybody's, itself shrunk to 1
    assert y.lift == pytest.approx((0 + 2 * (0 + 2) / (1 + 2)) / (1 + 2))


@pytest.mark.parametrize("copy", [None, [None, None]])
def test_a_log_without_lines(copy: list[None] | None):
    log = pd.DataFrame({"item_id": ["a", "b"], "position": 0, "clicked": [0, 1]})
    with pytest.raises(InputError, match="the log shows no lines"):
        logged_lines(log if copy is None else log.assign(copy=pd.Series(copy, dtype="str")), ITEMS, "headline")


def line(text: str, shown: int, lift: float, clicks: float = 100.0) -> LoggedLine:
    return LoggedLine(Brief("headline", title="Tea pot"), text, shown, clicks, clicks / lift, lift)


def test_lines_are_drawn_by_impressions_and_lift(nothing_global: None):
    lines = [line("x", 10, 1.0), line("y", 10, 2.0), line("z", 40, 1.0)]
    shout = line("BUY NOW!!!", 90, 3.0)  # refused, so that the others' shares are as if it were not there
    drawn = Counter(
        drew.line for drew in draw_lines([*lines, shout], RULES, 1_800, 2.0, 1, seed=0)
    )  # 10 : 40 : 40 of 90
    assert [drawn[name] / 1_800 for name in "xyz"] == pytest.approx([1 / 9, 4 / 9, 4 / 9], abs=0.04)
    assert draw_lines(lines, RULES, 50, 2.0, 1, seed=1) == draw_lines(lines, RULES, 50, 2.0, 1, seed=1)
    with pytest.raises(InputError, match="no lines to learn from"):
        draw_lines([], RULES, 3, 1.0, 1, 0)
    with pytest.raises(InputError, match="refuse nearly every line of the log; got '0 of 60 pass'"):
        draw_lines([shout], RULES, 3, 1.0, 1, 0)


def test_lines_of_a_brief_come_together_and_as_often():
    """A brief with three lines and one with a single line: runs of three and of one, shares by weight all the same."""
    lone = replace(line("w", 30, 1.0), brief=Brief("headline", title="Wool hat"))
    drawn = draw_lines([line("x", 10, 1.0), line("y", 10, 2.0), line("z", 40, 1.0), lone], RULES, 2_400, 2.0, 4, seed=0)
    shares = Counter(drew.line for drew in drawn)
    assert [shares[name] / 2_400 for name in "wxyz"] == pytest.approx([1 / 4, 1 / 12, 1 / 3, 1 / 3], abs=0.04)
    runs = [
        len(list(run)) for title, run in itertools.groupby(drew.brief.title for drew in drawn) if title == "Tea pot"
    ]
    assert all(run % 3 == 0 for run in runs[:-1])


def test_read_pairs(tmp_path: Path):
    chat = [{"role": "user", "content": "Sell it"}]
    rows = [
        {"prompt": "Sell it", "chosen": "a", "rejected": "b", "note": 1},
        {"prompt": chat, "chosen": "é\u2028e", "rejected": "b"},
    ]
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8-sig")
    assert read_pairs(tmp_path / "pairs.jsonl") == [Pair("Sell it", "a", "b"), Pair(chat, "é\u2028e", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pairs in the file"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt"', "pairs.jsonl line 2: not JSON"),
        ("[1]", r"line 1: not a pair; got \[1\], expected an object"),
        ('{"prompt": "p", "chosen": "a"}', r"not a pair; got \['chosen', 'prompt'\]"),
        ('{"prompt": " ", "chosen": "a", "rejected": "b"}', "not a prompt"),
        ('{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}', "not a prompt"),
        ('{"prompt": "p", "chosen": "", "rejected": "b"}', "chosen is not a line"),
        ('{"prompt": "p", "chosen": "a", "rejected": 3}', "rejected is not a line; got 3"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a"}', "the two lines are the same; got 'a'"),
        ("\udcff", "not a text file"),
    ],
    ids=["empty", "torn", "list", "lacks one", "blank prompt", "bad message", "blank", "number", "same", "bytes"],
)
def test_malformed_pairs(tmp_path: Path, text: str, message: str):
    (tmp_path / "pairs.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")


def test_no_pairs_file(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match="not a text file"):
        read_pairs(tmp_path)


def test_assignments_cover_the_items():
    drawn = draw_assignments(ITEMS, "title", ["new", "old"], [0.0, 0.1], 200, seed=3, voice=("Hello",))
    assert Counter(each.item_id for each in drawn) == {"a": 100, "b": 100}
    assert {(each.brief.audience, each.brief.discount) for each in drawn} == {
        (w, d) for w in ("new", "old") for d in (0, 0.1)
    }
    assert {each.brief.voice for each in drawn} == {("Hello",)}
    assert drawn == draw_assignments(ITEMS, "title", ["new", "old"], [0.0, 0.1], 200, seed=3, voice=("Hello",))
