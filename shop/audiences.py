"""Audiences: what a line of copy may know of the shopper it is written for, in a few words.

A label tells recency, frequency and value as the log shows them before a page, and the category that was clicked most:
"returning, bought before, likes kitchen". There are at most 40 of them, so that a bank of copy can hold lines for each.
Nothing is used that a shop could not observe at the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.catalog import Catalog

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STAGES = ("new", "returning", "returning, bought before", "back after a while")
"""What recency, frequency and value make of a shopper. New: this is the first visit. Back after a while: more than
``AWAY`` days since the visit before. Bought before: a purchase, in this visit or an earlier one."""

AWAY = 21.0
"""Days since the end of the visit before from which on a shopper has been away for a while."""

MOST_LIKED = 9
"""Categories that labels name, at most: those clicked most in the log."""

LEAST_CLICKS = 2
"""Clicks on a category from which on a shopper is said to like it."""

_LONGEST = 32  # characters of a category's name in a label


class History(NamedTuple):
    """What could be observed of n shoppers before their page.

    Attributes:
        visits: Visits before this one, shape (n,).
        away: Days from the last page of the visit before to the first one of this visit, 0 without one, shape (n,).
        purchases: Purchases so far, shape (n,).
        clicks: Clicks so far on each category that labels name, shape (n, L).
        latest: When each was last clicked, as numbers that grow with time, shape (n, L); anything where it never was.
    """

    visits: Ints
    away: Floats
    purchases: Ints
    clicks: Ints
    latest: Ints


@dataclass(frozen=True)
class Audiences:
    """The audiences of a shop.

    Attributes:
        liked: The categories that labels may name, L of them, at most ``MOST_LIKED``, as the items table has them.
    """

    liked: tuple[str, ...]

    @classmethod
    def fit(cls, impressions: pd.DataFrame, items: pd.DataFrame) -> Audiences:
        """Choose the categories that labels name: those clicked most, equals by the alphabet.

        Args:
            impressions: Of a log.
            items: Its items; without the column ``category`` labels name none.
        """
        category = _categories(impressions, items)
        counts = category[impressions["clicked"].to_numpy() > 0].value_counts()
        names = sorted(counts[counts > 0].index, key=lambda name: (-counts[name], name))
        told = {_told(name): name for name in reversed(names) if _told(name)}  # the most clicked of equals stays
        return cls(tuple(name for name in names if told.get(_told(name)) == name)[:MOST_LIKED])

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, at most 40: for each stage the one that names no category, then one for each category."""
        likings = ["", *(f", likes {_told(name)}" for name in self.liked)]
        return tuple(stage + liking for stage in STAGES for liking in likings)

    def label(self, impressions: pd.DataFrame, items: pd.DataFrame) -> pd.Categorical[str]:
        """Return the label of each impression's shopper before its page, shape (n,), with ``labels`` as categories.

        Rows of a page have one label. Where the log does not know a shopper, their history is their visit.

        Args:
            impressions: Of a log; histories begin with it, so take whole shoppers.
            items: Its items.
        """
        pages = _pages(impressions)
        history = self._histories(impressions, items, pages)
        return pd.Categorical.from_codes(self.number(history)[pages.of_row], pd.Index(self.labels))

    def number(self, history: History) -> Ints:
        """Return the number in ``labels`` of each shopper's label, shape (n,), from what was observed of them.

        A category is liked from ``LEAST_CLICKS`` clicks on; of several the one clicked most, then the one clicked last.
        """
        stage = np.select(
            [history.visits == 0, history.away > AWAY, history.purchases > 0],
            [STAGES.index(name) for name in ("new", "back after a while", "returning, bought before")],
            STAGES.index("returning"),
        )
        liking = np.zeros(len(stage), np.int64)
        if self.liked:
            most = history.clicks == history.clicks.max(1, keepdims=True)
            latest = np.where(most, history.latest.astype(np.int64), np.iinfo(np.int64).min).argmax(1)
            liking = np.where(history.clicks.max(1) >= LEAST_CLICKS, latest + 1, 0)
        numbers: Ints = stage * (1 + len(self.liked)) + liking
        return numbers

    def liked_of(self, catalog: Catalog) -> Ints:
        """Return the number in ``liked`` of each item's category, shape (n_items,); -1 where labels do not name it.

        A category that the catalog does not keep, as one of very many, is named by none.
        """
        features = catalog.features
        entries = [(column, value) for column, known in features.categories.items() for value in known]
        place = {entry: len(features.numeric) + i for i, entry in enumerate(entries)}
        found = np.full(len(catalog), -1, np.int64)
        for number, name in enumerate(self.liked):
            if ("category", name) in place:
                found[catalog.vectors[:, place["category", name]] > 0] = number
            elif "category" in features.numeric:
                value = catalog.vectors[:, features.numeric.index("category")]
                found[value == np.float32(name)] = number
        return found

    def _histories(self, impressions: pd.DataFrame, items: pd.DataFrame, pages: _Pages) -> History:
        """Return what was observed before each page, in the order of ``pages``."""
        n, width = len(pages.shopper), len(self.liked)
        place = np.argsort(pages.order)  # of each page among those of its shopper, in order of time
        row = place[pages.of_row]
        liked = pd.Index(self.liked).get_indexer(pd.Index(_categories(impressions, items)))
        counted = (impressions["clicked"].to_numpy() > 0) & (liked >= 0)
        clicks = np.bincount(row[counted] * width + liked[counted], minlength=n * width).reshape(n, width)
        bought = np.zeros(len(row), bool)
        if "converted" in impressions:
            bought = impressions["converted"].to_numpy(np.float64) > 0  # unknown is not yet
        purchases = np.bincount(row[bought], minlength=n)
        shopper, visit = pages.shopper[pages.order], pages.visit[pages.order]
        opens = np.append(True, shopper[1:] != shopper[:-1])[:n]
        first = np.maximum.accumulate(np.where(opens, np.arange(n), 0))  # each page's shopper's first
        begins = opens | np.append(True, visit[1:] != visit[:-1])[:n]
        start = np.maximum.accumulate(np.where(begins, np.arange(n), 0))  # the first page of each page's visit
        visits = np.cumsum(begins) - 1
        moment = pages.moment[pages.order]
        away = np.where(start > first, moment[start] - moment[np.maximum(start - 1, 0)], 0.0).clip(min=0.0)
        when = np.maximum.accumulate(np.where(clicks > 0, np.arange(n)[:, None], -1), axis=0)
        latest = np.vstack([np.full((1, width), -1), when])[:n]
        return History(
            (visits - visits[first])[place],
            away[place],
            _until(purchases[:, None], first)[place, 0],
            _until(clicks, first)[place],
            latest[place],
        )


class _Pages(NamedTuple):
    """The pages of a log: the page of each row; of each page its shopper, visit and moment in days; and their order."""

    of_row: Ints
    shopper: Ints
    visit: Ints
    moment: Floats
    order: Ints


def _pages(impressions: pd.DataFrame) -> _Pages:
    visit = pd.factorize(impressions["visit_id"])[0].astype(np.int64)
    shopper = pd.factorize(impressions["shopper_id"])[0].astype(np.int64)
    shopper = np.where(shopper < 0, shopper.max(initial=-1) + 1 + visit, shopper)
    number = impressions["page"].to_numpy(np.int64)
    moment = impressions["timestamp"].to_numpy("datetime64[us]").astype(np.int64) / 86_400e6
    _, head, of_row = np.unique(visit * (number.max(initial=0) + 1) + number, return_index=True, return_inverse=True)
    opened = np.full(visit.max(initial=-1) + 1, np.inf)
    np.minimum.at(opened, visit, moment)
    shopper, visit, number, moment = shopper[head], visit[head], number[head], moment[head]
    return _Pages(of_row, shopper, visit, moment, np.lexsort((number, visit, opened[visit], shopper)))


def _until(counts: Ints, first: Ints) -> Ints:
    """Return the sums of counts (P, m) over the pages of the same shopper before each page, shape (P, m)."""
    before = counts.cumsum(0) - counts
    sums: Ints = before - before[first]
    return sums


def _categories(impressions: pd.DataFrame, items: pd.DataFrame) -> pd.Series[str]:
    """Return the category of each row's item, shape (n,); empty where there is none."""
    if "category" not in items:
        return pd.Series("", impressions.index, dtype=object)
    row = pd.Index(items["item_id"].astype(str)).get_indexer(pd.Index(impressions["item_id"].astype(str)))
    known = np.append(items["category"].astype(object).fillna("").astype(str).to_numpy(object), "")
    return pd.Series(known[row], impressions.index, dtype=object)


def _told(category: str) -> str:
    """Return a category as a label tells it: one short line without control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", category).split())[:_LONGEST].strip()
