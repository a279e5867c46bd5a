"""Logistic regressions on what stands in plain sight: what learned shoppers have to beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from hawker.benchmarks.fidelity_heads import Expected, Happened
from hawker.benchmarks.fidelity_metrics import Bools, Floats
from hawker.simulators.fidelity import logistic_baseline
from hawker.simulators.memory import EDGES
from hawker.simulators.rows import Rows
from hawker.simulators.store import FittedShoppers

MOST_ROWS = 100_000
"""Rows of the log that a regression learns from; more change its loss in the fourth digit."""


def expected_by_logistic(train: Rows, rows: Rows, seen: Happened, fitted: FittedShoppers, seed: int) -> Expected:
    """Return what scikit-learn's logistic regressions (L2, C = 1) expect of a cohort.

    Clicks and purchases are seen from shopper features, item, item features and position; leaving and returning from
    shopper features, the page's number, its clicks, whether it had an ad, and for returning the day.

    Args:
        train: The log to learn from; at most ``MOST_ROWS`` of its rows are used for each head.
        rows: The cohort.
        seen: What came of it.
        fitted: The shop's schemas.
        seed: Thins the log.
    """
    generator = np.random.default_rng(seed)
    assert train.time is not None
    assert rows.time is not None
    assert train.converted is not None
    bought = train.clicked > 0
    conversion = logistic_baseline(
        _some(train, bought.numpy(), generator, train.converted), _some(rows, seen.bought.numpy(), None), fitted
    )
    click = logistic_baseline(_some(train, np.ones(len(train), bool), generator), rows, fitted)
    before, now = _pages(train, fitted), _pages(rows, fitted)
    known = _thin((~train.time.closes.isnan()).numpy(), generator)
    leave = _regress(before[known], train.time.closes.numpy()[known], now[seen.closing.numpy()])
    ends = _thin((~train.time.returned.isnan()).numpy(), generator, MOST_ROWS // 10)
    wait, returned = train.time.wait.numpy()[ends], train.time.returned.numpy()[ends]
    days = seen.days()
    visit, day = np.nonzero(np.arange(1, max(int(wait.max(initial=1)), 1) + 1) < (wait + returned)[:, None])
    came = (returned[visit] > 0) & (day + 1 == wait[visit])
    again = now[seen.ends.numpy()]
    every = np.repeat(again, days, 0), np.tile(np.arange(days), len(again))
    hazard = _regress(_with_day(before[ends][visit], day), came, _with_day(*every))
    return Expected(click, conversion, leave, hazard.reshape(len(again), days))


def _some(rows: Rows, keep: Bools, generator: np.random.Generator | None, label: torch.Tensor | None = None) -> Rows:
    """Return some rows, thinned where there is a generator, with what happened as their clicks."""
    chosen = torch.from_numpy(_thin(keep, generator))
    happened = rows.clicked if label is None else label
    return replace(
        rows,
        page=rows.page[chosen],
        item=rows.item[chosen],
        position=rows.position[chosen],
        affinity=rows.affinity[chosen],
        clicked=happened[chosen],
    )


def _thin(
    keep: Bools, generator: np.random.Generator | None, most: int = MOST_ROWS
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    found = np.flatnonzero(keep)
    if generator is not None and len(found) > most:
        found = np.sort(generator.choice(found, most, replace=False))
    return found


def _pages(rows: Rows, fitted: FittedShoppers) -> Floats:
    """Return what a plain model sees of each page, shape (P, width)."""
    assert rows.time is not None
    features = fitted.builder.shopper
    n = len(rows.shopper)
    clicks = np.bincount(rows.page.numpy(), rows.clicked.numpy(), n)
    ads = np.zeros(n) if rows.ad is None else np.bincount(rows.page.numpy(), rows.ad.numpy(), n)
    number = rows.time.number.numpy()
    plain = np.stack([np.log1p(number), number == 0, clicks, clicks > 0, ads], 1)
    return np.concatenate([(rows.shopper.numpy() - features.centre) / features.spread, plain], 1).astype(np.float64)


def _with_day(pages: Floats, day: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """Add the day, counted from 0 for the first, as the interval of ``EDGES`` that it lies in."""
    interval = np.searchsorted(np.array(EDGES), day + 1, side="right") - 1
    return np.concatenate([pages, np.eye(len(EDGES))[interval]], 1)


def _regress(design: Floats, happened: np.ndarray[tuple[int], np.dtype[np.generic]], of: Floats) -> Floats:
    if happened.min() == happened.max():
        return np.full(len(of), (happened.sum() + 0.5) / (len(happened) + 1.0))
    model = LogisticRegression(C=1.0, max_iter=500).fit(design, happened)
    return np.asarray(model.predict_proba(of)[:, 1])
