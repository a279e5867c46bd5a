import numpy as np
import pandas as pd
import pytest

from hawker.shop import quality
from hawker.shop.quality import Finding


def split(found):
    """Return the findings as (level, text) by name, and the figures."""
    entries = list(found)
    findings = {entry.name: (entry.level, entry.text) for entry in entries if isinstance(entry, Finding)}
    return findings, dict(entry for entry in entries if not isinstance(entry, Finding))


def log(n, seed=0, **columns):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "visit_id": np.arange(n),
            "page": 0,
            "position": 0,
            "shopper_id": pd.Series([None] * n, dtype="str"),
            "timestamp": pd.date_range("2026-01-01", periods=n, freq="min", tz="UTC"),
            "item_id": rng.integers(0, 5, n).astype(str),
            "placement": "organic",
            "clicked": (rng.random(n) < 0.1).astype("int8"),
        }
    )
    return frame.assign(**columns)


def test_choices_shrink_down_the_page():
    shown = log(6, visit_id=[0, 0, 0, 1, 1, 2], position=[2, 0, 1, 0, 3, 0], placement=["organic"] * 5 + ["ad"])
    assert quality.choices(shown, 10, None).tolist() == [8, 10, 9, 10, 9]
    pages = pd.DataFrame({"visit_id": [0, 1], "page": 0, "candidates": [["a", "b", "c"], None]})
    assert quality.choices(shown, 10, pages).tolist() == [1, 3, 2, 10, 9]


def slates(rng, n_pages, n_items, k):
    """Plackett-Luce slates with the sequential propensity of each position, and the page of each row."""
    logits = rng.normal(0, 0.5, n_items)
    rows = []
    for page in range(n_pages):
        left = list(range(n_items))
        for position in range(k):
            weights = np.exp(logits[left])
            pick = rng.choice(len(left), p=weights / weights.sum())
            rows.append((page, position, str(left.pop(pick)), (weights / weights.sum())[pick]))
    return rows


def test_true_slate_propensities_pass_and_wrong_ones_do_not():
    rows = slates(np.random.default_rng(1), 600, 8, 3)
    visit, position, item, p = (np.array(column) for column in zip(*rows, strict=True))
    shown = log(len(rows), visit_id=visit, position=position, item_id=item, propensity=p)
    findings, figures = split(quality.propensity(shown, quality.choices(shown, 8, None)))
    assert findings["propensity"][0] == "ok"
    assert figures["propensity.items"]["value"] == pytest.approx(7.0)
    assert figures["propensity.mean_inverse"]["low"] < 7.0 < figures["propensity.mean_inverse"]["high"]
    wrong = shown.assign(propensity=p / 2)
    findings, _ = split(quality.propensity(wrong, quality.choices(wrong, 8, None)))
    assert findings["propensity"][0] == "warn"
    assert findings["propensity"][1].startswith("suspect: mean of 1/p is 1")


def test_standard_error_is_by_page():
    shown = log(4, visit_id=[0, 0, 1, 1], position=[0, 1, 0, 1], propensity=[0.5, 0.25, 0.2, 0.1])
    _, figures = split(quality.propensity(shown, quality.choices(shown, 4, None)))
    # 1/p - choices: (2 - 4, 4 - 3, 5 - 4, 10 - 3) = (-2, 1, 1, 7), mean 1.75; by page -4.5 and 4.5
    error = np.sqrt(4.5**2 * 2) / 4
    figure = figures["propensity.mean_inverse"]
    assert figure["value"] == pytest.approx(21 / 4)
    assert figure["high"] - figure["value"] == pytest.approx(1.96 * error)


def test_propensities_that_are_not_there():
    for shown in (log(5), log(5, propensity=np.nan)):
        findings, _ = split(quality.propensity(shown, quality.choices(shown, 5, None)))
        assert "no off-policy estimate" in findings["propensity"][1]
    one = log(5, propensity=[0.5, *[np.nan] * 4])
    assert "too few" in split(quality.propensity(one, quality.choices(one, 5, None)))[0]["propensity"][1]


def test_support():
    shown = log(4, item_id=["a", "b", "a", "a"], position=[0, 0, 1, 1])
    findings, figures = split(quality.support(shown, pd.Series(["a", "b", "c"])))
    assert findings["support"] == ("warn", "1 of 3 items were never shown (c): nothing is known of them")
    assert [figures[f"items_never_shown.position_{k}"]["value"] for k in (0, 1)] == [1, 2]
    findings, _ = split(quality.support(shown, pd.Series(["a", "b"])))
    assert findings["support"] == ("ok", "all 2 items were shown, though never: 1 at position 1")


def test_click_rate_without_clicks():
    findings, figures = split(quality.click_rate(log(100, clicked=0)))
    assert findings["ctr"][0] == "warn"
    assert figures["ctr"]["high"] > 0


def test_drift_of_clicks_features_and_weeks():
    steady, _ = split(quality.drift(log(30_000)))
    assert {level for level, _ in steady.values()} == {"ok"}
    assert "first week" in steady["drift.ctr"][1]
    n = 9_000
    late = np.arange(n) > n / 2
    clicked = (np.random.default_rng(0).random(n) < np.where(late, 0.2, 0.1)).astype(int)
    moved, figures = split(quality.drift(log(n, clicked=clicked, segment=pd.Categorical(np.where(late, "x", "y")))))
    assert moved["drift.ctr"][0] == moved["drift.features"][0] == "warn"
    assert "first third" in moved["drift.ctr"][1]
    assert "segment moves most" in moved["drift.features"][1]
    assert figures["drift.ctr"]["low"] < 0.1 < figures["drift.ctr"]["high"]


def test_change_of_rate_is_newcombes():
    shown = log(90, clicked=[0] * 30 + [0] * 30 + [0] * 30)
    shown.loc[:1, "clicked"] = 1
    shown.loc[80:, "clicked"] = 1
    _, figures = split(quality.drift(shown))
    # 2 of 30 against 10 of 30: Wilson (0.0185, 0.2132) and (0.1923, 0.5122)
    low = 8 / 30 - np.hypot(10 / 30 - 0.19231, 0.21324 - 2 / 30)
    high = 8 / 30 + np.hypot(0.51222 - 10 / 30, 2 / 30 - 0.01848)
    assert figures["drift.ctr"]["value"] == pytest.approx(8 / 30)
    assert (figures["drift.ctr"]["low"], figures["drift.ctr"]["high"]) == pytest.approx((low, high), abs=1e-4)


def test_psi_by_hand():
    first = pd.Series(["a"] * 3 + ["b"] * 1)
    last = pd.Series(["a"] * 1 + ["b"] * 3)
    p, q = np.array([3.5, 1.5]) / 5, np.array([1.5, 3.5]) / 5
    assert quality._psi(first, last) == pytest.approx((((q - p) * np.log(q / p)).sum(), 0.5))


def test_leaks_are_found():
    n = 2_000
    clicked = (np.arange(n) % 20 == 0).astype("int8")
    noise = np.random.default_rng(2).normal(size=n)
    category = pd.Categorical(np.arange(n) % 3)
    clean, _ = split(quality.leakage(log(n, clicked=clicked, age=noise, kind=category)))
    assert clean["leakage"][0] == "ok"
    dwell = np.where(clicked == 1, 5.0, np.nan)
    after = pd.Categorical(np.where(clicked == 1, "thanks", "none"))
    leaky, _ = split(quality.leakage(log(n, clicked=clicked, age=noise, dwell=dwell, after=after, kind=category)))
    assert leaky["leakage"][0] == "warn"
    assert leaky["leakage"][1].startswith("dwell, after: each alone tells clicks")
    assert not list(quality.leakage(log(30, clicked=0, age=1.0)))


def test_bots_are_found():
    n = 1_000
    shoppers = pd.Series(["robot"] * 500 + [f"s{i}" for i in range(500)], dtype="str")
    fast = pd.date_range("2026-01-01", periods=n, freq="s", tz="UTC")
    findings, figures = split(quality.bots(log(n, shopper_id=shoppers, timestamp=fast)))
    assert findings["bots"] == ("warn", "1 shoppers saw over 360 pages in an hour (robot); 500 rows")
    assert figures["pages_per_hour.max"]["value"] == 500
    assert split(quality.bots(log(n, shopper_id=shoppers)))[0]["bots"][0] == "ok"
    assert "unknown" in split(quality.bots(log(5)))[0]["bots"][1]
