"""What in a shop's impressions would mislead whoever learns from them, though every row keeps the contract.

Intervals are at 95% and take rows as independent unless they say otherwise; rows of one shopper are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from hawker.shop.figures import Figure, figure
from hawker.shop.logs import feature_columns

Level = Literal["ok", "warn", "bad"]

_LARGEST_SHARE = 0.1  # of a sum in one row: beyond it the sum is that row's
_BOT_PAGES = 360  # pages in an hour: one every ten seconds for the whole of it
_LEAK_AUC, _LEAK_CLICKS, _LEAK_ROWS, _LEAK_CATEGORIES = 0.95, 20, 100_000, 50
_PSI_SHIFT = 0.1  # the usual mark of a moderate shift
_NAMED = 5  # examples in a text


class Finding(NamedTuple):
    """One line of a report.

    Attributes:
        level: "ok", "warn" (read the text before you trust the logs), "bad" (rows break the contract).
        name: What was looked at.
        text: What was found.
    """

    level: Level
    name: str
    text: str


Found = Iterator[Finding | tuple[str, Figure]]


def count(value: int, n: int, unit: str = "rows") -> Figure:
    """Return a count as a figure without an interval."""
    return figure(value, None, None, n, unit)


def click_rate(shown: pd.DataFrame) -> Found:
    """Give the click-through rate with its Wilson interval."""
    clicks, n = int(shown["clicked"].sum()), len(shown)
    low, high = _wilson(clicks, n)
    yield "clicks", count(clicks, n, "clicks")
    yield "ctr", figure(clicks / n, low, high, n, "clicks per impression")
    text = f"{clicks:,} clicks in {n:,} impressions: CTR {clicks / n:.3%} [{low:.3%}, {high:.3%}]"
    yield Finding("ok" if clicks else "warn", "ctr", text if clicks else f"{text}; nothing can be learned of clicks")


def choices(shown: pd.DataFrame, n_items: int, pages: pd.DataFrame | None) -> pd.Series[float]:
    """Return, for each organic row, how many items could have stood there: the page's candidates, else all items.

    A propensity is P(item | what stands above it), so that each item higher up on the page takes one away.
    """
    rows = shown[shown["placement"] == "organic"]
    eligible = np.full(len(rows), float(n_items))
    if pages is not None and "candidates" in pages:
        known = pages.set_index(["visit_id", "page"])["candidates"].map(len, na_action="ignore")
        listed = known.reindex(pd.MultiIndex.from_frame(rows[["visit_id", "page"]])).to_numpy(float)
        eligible = np.where(np.isnan(listed), eligible, listed)
    above = rows.sort_values("position", kind="stable").groupby(["visit_id", "page"]).cumcount()
    return pd.Series(eligible, index=rows.index) - above


def propensity(shown: pd.DataFrame, choices: pd.Series[float]) -> Found:
    """Compare the mean of 1/p with the number of items to choose from.

    They agree in expectation if p is what it says it is. The standard error is by page, since the rows of a page
    depend on each other. Where one row makes a tenth of the sum, the comparison is no test, and the text says so.

    Args:
        shown: The impressions.
        choices: How many items each organic row was chosen from, indexed as ``shown``.
    """
    if "propensity" not in shown or shown["propensity"].isna().all():
        yield Finding("warn", "propensity", "not recorded: no off-policy estimate can be made from these logs")
        return
    p = shown["propensity"]
    yield "propensity.missing", figure(float(p.isna().mean()), None, None, len(p), "share")
    yield "propensity.min", figure(float(p.min()), None, None, len(p), "probability")
    yield "propensity.max", figure(float(p.max()), None, None, len(p), "probability")
    rows = choices.index[p[choices.index].notna()]
    n = len(rows)
    if n < 2:
        yield Finding("warn", "propensity", "too few organic rows with a propensity to judge it")
        return
    inverse, expected = 1 / p[rows], choices[rows]
    mean, target = float(inverse.mean()), float(expected.mean())
    excess = inverse - expected
    by_page = (excess - excess.mean()).groupby([shown.loc[rows, "visit_id"], shown.loc[rows, "page"]]).sum()
    error = float(np.sqrt((by_page**2).sum()) / n)
    share = float(inverse.max() / inverse.sum())
    yield "propensity.mean_inverse", figure(mean, mean - 1.96 * error, mean + 1.96 * error, n, "items")
    yield "propensity.items", figure(target, None, None, n, "items")
    yield "propensity.largest_share", figure(share, None, None, n, "share")
    text = f"mean of 1/p is {mean:.2f} (standard error {error:.2f}) for {target:.2f} items to choose from"
    if n > 1 / _LARGEST_SHARE and share > _LARGEST_SHARE:
        row = f"one row (p = {p[rows].min():.3g}) makes {share:.0%} of the sum"
        yield Finding("warn", "propensity", f"{text}; {row}, so this cannot tell right from wrong")
    elif abs(mean - target) > 3 * error and abs(mean - target) > 0.05 * target:
        why = "propensities may be wrong" if mean > target else "propensities may be wrong, or not every item eligible"
        yield Finding("warn", "propensity", f"suspect: {text}: {why}")
    else:
        text += f"; p from {p.min():.3g} to {p.max():.3g}, {p.isna().mean():.1%} missing"
        yield Finding("ok", "propensity", text)


def support(shown: pd.DataFrame, items: pd.Series) -> Found:
    """Count the items that were never shown, and never at a position: nothing is known of them there."""
    pairs = shown[["position", "item_id"]].drop_duplicates()
    never = items[~items.isin(pairs["item_id"])]
    yield "items", count(len(items), len(shown), "items")
    yield "items_never_shown", count(len(never), len(shown), "items")
    seen = pairs.groupby("position").size()
    gaps = {position: len(items) - number for position, number in seen.items()}
    for position, gap in gaps.items():
        yield f"items_never_shown.position_{position}", count(gap, len(shown), "items")
    gaps = {position: gap for position, gap in gaps.items() if gap}
    if len(never):
        text = f"{len(never):,} of {len(items):,} items were never shown ({_some(never)}): nothing is known of them"
        yield Finding("warn", "support", text)
    elif gaps:
        listed = ", ".join(f"{gap} at position {position}" for position, gap in list(gaps.items())[:_NAMED])
        yield Finding("ok", "support", f"all {len(items):,} items were shown, though never: {listed}")
    else:
        yield Finding("ok", "support", f"all {len(items):,} items were shown at each of {len(seen)} positions")


def drift(shown: pd.DataFrame) -> Found:
    """Compare the first with the last week, or the first with the last third of less than two weeks."""
    start, end = shown["timestamp"].min(), shown["timestamp"].max()
    week = pd.Timedelta(days=7)
    span, name = (week, "week") if end - start >= 2 * week else ((end - start) / 3, "third")
    first, last = shown[shown["timestamp"] <= start + span], shown[shown["timestamp"] >= end - span]
    if start == end or first.empty or last.empty:
        return
    ends, n = [(int(part["clicked"].sum()), len(part)) for part in (first, last)], len(first) + len(last)
    (rate1, low1, high1), (rate2, low2, high2) = [(k / m, *_wilson(k, m)) for k, m in ends]
    change = rate2 - rate1
    low = change - float(np.hypot(rate2 - low2, high1 - rate1))  # Newcombe (1998), method 10
    high = change + float(np.hypot(high2 - rate2, rate1 - low1))
    yield "drift.ctr", figure(change, low, high, n, "clicks per impression")
    rates = f"{rate1:.3%} in the first {name}, {rate2:.3%} in the last"
    text = f"CTR {rates}: change {change:+.3%} [{low:+.3%}, {high:+.3%}]"
    yield Finding("warn" if low > 0 or high < 0 else "ok", "drift.ctr", text)
    shifts = {}
    for column in ["item_id", *feature_columns(shown)]:
        if shown[column].dtype in ("str", "category"):
            shift, chance = _psi(first[column], last[column])
            shifts[column] = shift - chance
            yield f"drift.psi.{column}", figure(shift, None, None, n, "nats")
    over = f"over chance (population stability index, first against last {name})"
    mix = shifts.pop("item_id")
    yield Finding("warn" if mix > _PSI_SHIFT else "ok", "drift.items", f"what is shown moves by {mix:.3f} {over}")
    if shifts:
        column = max(shifts, key=lambda name: shifts[name])
        text = f"{column} moves most, by {shifts[column]:.3f} {over}"
        yield Finding("warn" if shifts[column] > _PSI_SHIFT else "ok", "drift.features", text)


def _psi(first: pd.Series, last: pd.Series) -> tuple[float, float]:
    """Return the population stability index (half a count added to each cell) and what chance alone would give."""
    tables = [part.astype("str").value_counts(dropna=False) for part in (first, last)]
    counts = pd.concat(tables, axis=1).fillna(0) + 0.5
    p, q = (counts.iloc[:, i] / counts.iloc[:, i].sum() for i in (0, 1))
    return float(((q - p) * np.log(q / p)).sum()), (len(counts) - 1) * (1 / len(first) + 1 / len(last))


def leakage(shown: pd.DataFrame) -> Found:
    """Look for features that know the click: alone they part clicks from the rest, or are missing where it is."""
    clicks = np.flatnonzero(shown["clicked"] == 1)
    if clicks.size < _LEAK_CLICKS or clicks.size == len(shown):
        return
    others = np.flatnonzero(shown["clicked"] == 0)
    sample = shown.iloc[np.concatenate([clicks, others[:: max(1, others.size // _LEAK_ROWS)]])]
    clicked = sample["clicked"].to_numpy() == 1
    aucs = {}
    for column in feature_columns(shown):
        values = sample[column]
        if values.dtype == "category":
            if len(values.cat.categories) > _LEAK_CATEGORIES:
                continue
            codes = values.cat.codes.to_numpy()
            rates = pd.Series(clicked).groupby(codes).mean()
            number = rates.reindex(codes).to_numpy()
        else:
            number = values.fillna(-np.inf).to_numpy(float)
        auc = _auc(number, clicked)
        aucs[column] = max(auc, 1 - auc)
    leaks = [column for column, auc in aucs.items() if auc >= _LEAK_AUC]
    if leaks:
        text = f"{_some(leaks)}: each alone tells clicks from the rest (AUC >= {_LEAK_AUC}); recorded after the click?"
        yield Finding("warn", "leakage", text)
    elif aucs:
        column = max(aucs, key=lambda name: aucs[name])
        yield "leakage.auc", figure(aucs[column], None, None, len(sample), "AUC")
        text = f"no feature alone tells the click; the nearest is {column}, AUC {aucs[column]:.2f}"
        yield Finding("ok", "leakage", text)


def _auc(values: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    n, m = int(positive.sum()), int((~positive).sum())
    return float((stats.rankdata(values)[positive].sum() - n * (n + 1) / 2) / (n * m))


def bots(shown: pd.DataFrame) -> Found:
    """Count the shoppers who saw more pages in an hour than a person can."""
    if shown["shopper_id"].isna().all():
        yield Finding("ok", "bots", "cannot be looked for: shoppers are unknown")
        return
    pages = shown.drop_duplicates(["visit_id", "page"])
    hourly = pages.groupby(["shopper_id", pages["timestamp"].dt.floor("h")]).size()
    busiest = hourly.groupby(level=0).max()
    many = busiest[busiest > _BOT_PAGES]
    yield "bots", count(len(many), len(shown), "shoppers")
    yield "pages_per_hour.max", figure(float(busiest.max()), None, None, len(pages), "pages per hour")
    if len(many):
        rows = int(shown["shopper_id"].isin(many.index).sum())
        text = f"{len(many):,} shoppers saw over {_BOT_PAGES} pages in an hour ({_some(many.index)}); {rows:,} rows"
        yield Finding("warn", "bots", text)
    else:
        yield Finding("ok", "bots", f"no shopper saw over {_BOT_PAGES} pages in an hour; the most is {busiest.max():,}")


def _wilson(k: int, n: int) -> tuple[float, float]:
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _some(names: Any) -> str:
    listed = [str(name) for name in list(names)]
    return ", ".join(listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
