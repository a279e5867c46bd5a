import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from hawker.agents.prefs import Imported, import_preferences, logged_pairs, read_preferences
from hawker.agents.writer_data import Pair
from hawker.policies.guardrails import Guardrails
from hawker.shop.errors import InputError

CHAT = [{"role": "system", "content": "Write."}, {"role": "user", "content": "Teapot\u2028for two"}]
GOOD = [
    {"prompt": "A teapot", "chosen": "Brew slow", "rejected": "Buy now"},
    {"prompt": "A teapot", "chosen": "Brew slow", "rejected": "Buy now"},
    {"prompt": "A teapot", "chosen": "Buy now", "rejected": "Brew slow"},
    {"prompt": CHAT, "chosen": "\u0634\u0627\u064a \u2615", "rejected": "Tea", "annotator": "ignored"},
]


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_pairs_of_people_are_imported_whole(tmp_path: Path):
    source = written(tmp_path / "pairs.jsonl", GOOD)
    found = import_preferences(source, tmp_path / "prefs")
    assert found == Imported(pairs=4, prompts=2, repeated=1, contradicted=3)
    pairs = read_preferences(tmp_path / "prefs")
    assert pairs == read_preferences(source)
    assert pairs[0] == Pair("A teapot", "Brew slow", "Buy now")
    assert pairs[3] == Pair(CHAT, "\u0634\u0627\u064a \u2615", "Tea")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a pair"),
        ({"prompt": "x", "chosen": "y"}, "not a pair"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "not a prompt"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "not a prompt"),
        ({"prompt": 7, "chosen": "a", "rejected": "b"}, "not a prompt"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "chosen is not a line"),
        ({"prompt": "x", "chosen": "a", "rejected": None}, "rejected is not a line"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "the two lines are the same"),
    ],
)
def test_malformed_line_is_named_and_nothing_is_written(tmp_path: Path, bad: object, message: str):
    source = written(tmp_path / "pairs.jsonl", [*GOOD, bad])
    import_preferences(written(tmp_path / "old.jsonl", GOOD[:1]), tmp_path / "prefs")
    for out in ("prefs", "new"):
        with pytest.raises(InputError) as caught:
            import_preferences(source, tmp_path / out)
        assert str(caught.value).startswith(f"{source} line 5: {message}")
    assert not (tmp_path / "new").exists()
    assert len(read_preferences(tmp_path / "prefs")) == 1


def test_files_that_are_no_pairs_are_named(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "no pairs"), ("binary", "not a text file"), ("missing", "no such file")):
        with pytest.raises(InputError, match=message):
            import_preferences(tmp_path / f"{name}.jsonl", tmp_path / "out")
    with pytest.raises(InputError, match="files that Hawker did not write"):
        import_preferences(written(tmp_path / "pairs.jsonl", GOOD), tmp_path)


ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Teapot", "Pan", "Tent"],
        "category": ["kitchen", "kitchen", "outdoor"],
        "price": [35.0, 40.0, 90.0],
    }
)
RATES = {"Good line": 0.30, "Fair line": 0.20, "Poor line": 0.08}


def log(n: int, seed: int, rates: dict[str, float], biased: bool = False) -> pd.DataFrame:
    """Impressions where position halves the clicks, and, if biased, better positions get the poorer line."""
    generator = np.random.default_rng(seed)
    position = generator.integers(0, 2, n)
    names = list(rates)
    line = generator.integers(0, len(names), n)
    if biased:
        line = np.where(generator.random(n) < 0.8, 1 - position, position)
    item = generator.choice(["a", "b"], n)
    rate = np.array(list(rates.values()))[line] * np.where(position == 0, 1.0, 0.4) * np.where(item == "a", 1.0, 0.7)
    return pd.DataFrame(
        {
            "item_id": item,
            "copy": np.array(names, dtype=object)[line],
            "position": position,
            "placement": "organic",
            "offer": 0,
            "clicked": (generator.random(n) < rate).astype(int),
        }
    )


def by_hand(rows: pd.DataFrame, one: str, other: str) -> float:
    """The z of Mantel and Haenszel, cell by cell."""
    gain = variance = 0.0
    for _, cell in rows.groupby(["item_id", "position"]):
        n1, n0 = (int((cell["copy"] == line).sum()) for line in (one, other))
        c1, c0 = (int(cell.loc[cell["copy"] == line, "clicked"].sum()) for line in (one, other))
        if n1 and n0:
            total, clicked = n1 + n0, c1 + c0
            gain += c1 - n1 * clicked / total
            variance += n1 * n0 * clicked * (total - clicked) / (total**2 * (total - 1))
    return gain / variance**0.5


def by_rate(rows: pd.DataFrame) -> float:
    """The p-value of a test of two click rates that knows nothing of positions."""
    n, c = (rows.groupby("copy")["clicked"].agg(how).to_numpy(float) for how in ("size", "sum"))
    rate = c.sum() / n.sum()
    return float(2 * norm.sf(abs(c[0] / n[0] - c[1] / n[1]) / np.sqrt(rate * (1 - rate) * (1 / n).sum())))


def test_clear_differences_are_found_in_the_right_order():
    rows = log(6_000, 1, RATES)
    pairs = logged_pairs(rows, ITEMS, "promotion")
    assert {(pair.better, pair.worse) for pair in pairs} == {
        ("Good line", "Fair line"),
        ("Good line", "Poor line"),
        ("Fair line", "Poor line"),
    }
    assert [pair.z for pair in pairs] == sorted((pair.z for pair in pairs), reverse=True)
    for pair in pairs:
        assert pair.z == pytest.approx(by_hand(rows, pair.better, pair.worse))
        assert (pair.brief.surface, pair.brief.category, pair.brief.discount) == ("promotion", "kitchen", 0.0)
        assert pair.brief.title in {"Teapot", "Pan"}


def test_item_by_item_compares_less():
    rows = log(6_000, 1, RATES)
    single = logged_pairs(rows, ITEMS, "promotion", by="item")
    assert {pair.brief.title for pair in single} == {"Teapot", "Pan"}
    assert max(pair.z for pair in single) < logged_pairs(rows, ITEMS, "promotion")[0].z


def test_better_positions_do_not_make_better_lines():
    """Where positions alone make the difference, comparing raw rates finds one; within positions there is none."""
    for seed in range(5):
        rows = log(3_000, seed, {"One line": 0.3, "Other line": 0.3}, biased=True)
        raw = rows.groupby("copy")["clicked"].mean()
        assert raw["Other line"] - raw["One line"] > 0.05
        assert by_rate(rows) < 1e-4
        assert logged_pairs(rows, ITEMS, "promotion", level=0.001) == []


def test_audiences_and_offers_are_compared_apart():
    rows = pd.concat([log(3_000, 1, RATES), log(3_000, 2, {k: 0.38 - v for k, v in RATES.items()})], ignore_index=True)
    who = ["new"] * 3_000 + ["loyal"] * 3_000
    pairs = logged_pairs(rows, ITEMS, "promotion", who)
    best = {pair.brief.audience: (pair.better, pair.worse) for pair in reversed(pairs)}
    assert best == {"new": ("Good line", "Poor line"), "loyal": ("Poor line", "Good line")}
    rows["offer"] = np.repeat([0, 2], 3_000)
    rows["price_shown"] = rows["item_id"].map(ITEMS.set_index("item_id")["price"]) * np.where(
        rows["offer"] == 2, 0.9, 1
    )
    found = {
        (pair.brief.discount, pair.better) for pair in logged_pairs(rows, ITEMS, "promotion") if "Poor line" in pair
    }
    assert found >= {(0.0, "Good line"), (0.1, "Poor line")}


def test_false_discoveries_are_kept_low():
    rates = {f"line {chr(97 + i)}": 0.2 for i in range(12)}
    found = [len(logged_pairs(log(12_000, seed, rates), ITEMS, "promotion")) for seed in range(5)]
    assert sum(found) <= 2  # of 330 pairs


def test_few_clicks_tell_nothing():
    assert logged_pairs(log(60, 1, RATES), ITEMS, "promotion") == []


def test_better_line_must_keep_the_rules():
    rows = log(6_000, 1, {"SHOCKING secret!!!": 0.4, "Good line": 0.3, "Poor line": 0.05})
    pairs = logged_pairs(rows, ITEMS, "promotion", guardrails=Guardrails.load())
    assert {(pair.better, pair.worse) for pair in pairs} == {("Good line", "Poor line")}
    assert len(logged_pairs(rows, ITEMS, "promotion")) == 3


def test_rows_without_a_line_and_items_without_a_category():
    rows = log(4_000, 1, RATES)
    rows.loc[::7, "copy"] = None
    rows.loc[::11, "copy"] = "  "
    pairs = logged_pairs(rows, ITEMS.drop(columns=["category", "price"]), "headline")
    assert pairs
    assert all(pair.brief.price is None and pair.brief.category == "" for pair in pairs)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda rows: rows.drop(columns="copy"), {}, "impressions column copy: the log shows no lines"),
        (lambda rows: rows.assign(copy=None), {}, "the log shows no lines"),
        (lambda rows: rows, {"level": 0.0}, "logged pairs: bad level; got 0.0"),
    ],
)
def test_logs_that_cannot_be_compared_are_refused(change, options: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        logged_pairs(change(log(50, 1, RATES)), ITEMS, "promotion", **options)
