"""The contexts in which shoppers of a log first appear, for worlds to draw new shoppers from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hawker.shop.catalog import Catalog
from hawker.shop.context import Context, ContextBuilder
from hawker.simulators.split import shopper_codes
from hawker.simulators.store import whole_catalog

MAX_ARRIVALS = 100_000
"""Contexts kept per part to draw arriving shoppers from; of a longer log some are drawn at random."""

_PAGE = ["visit_id", "page"]


def chosen_units(n_units: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Mark the shoppers whose first contexts are kept, shape (n_units,)."""
    chosen = np.ones(n_units, bool)
    if n_units > MAX_ARRIVALS:
        chosen[:] = False
        chosen[generator.choice(n_units, MAX_ARRIVALS, replace=False)] = True
    return chosen


def first_rows(rows: pd.DataFrame, chosen: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Return the first row of each chosen shopper, in order of time.

    Args:
        rows: Impressions in order of time.
        chosen: Which of their shoppers, numbered by ``shopper_codes``, shape (n_units,).
    """
    first = np.unique(shopper_codes(rows), return_index=True)[1]
    return rows.iloc[np.sort(first[chosen])]


def logged_candidates(pages: Iterable[pd.DataFrame], rows: list[pd.DataFrame], catalog: Catalog) -> pd.DataFrame:
    """Return the candidates of the pages that some rows are on, where the log knows them.

    Args:
        pages: The table pages, some rows at a time.
        rows: Impressions.
        catalog: The items.

    Returns:
        ``visit_id``, ``page`` and ``candidates``, which are arrays of catalog indices; one row per page.
    """
    asked = pd.concat([some[_PAGE] for some in rows]).drop_duplicates()
    found = [asked.iloc[:0].assign(candidates=pd.Series(dtype=object))]
    for some in pages:
        if "candidates" in some:
            known = asked.merge(some.loc[some["candidates"].notna(), [*_PAGE, "candidates"]], on=_PAGE)
            lists = known["candidates"].tolist()
            index = catalog.index([item for ids in lists for item in ids], "pages column candidates").astype(np.int32)
            known["candidates"] = pd.Series(np.split(index, np.cumsum([len(ids) for ids in lists]))[:-1], dtype=object)
            found.append(known)
    return pd.concat(found, ignore_index=True)


def find_arrivals(
    rows: pd.DataFrame, logged: pd.DataFrame, builder: ContextBuilder, device: torch.device
) -> Context[torch.Tensor]:
    """Return the contexts of some shoppers' first pages.

    Args:
        rows: One impression of each page.
        logged: What ``logged_candidates`` returned for them, or for more. Where it knows all pages, these are the
            candidates; else all items are.
        builder: The shop's contexts and catalog.
        device: Where to put them.
    """
    context = builder.from_impressions(rows)
    lists = rows[_PAGE].merge(logged, on=_PAGE, how="left")["candidates"]
    if lists.isna().any():
        return whole_catalog(*(torch.from_numpy(array).to(device) for array in (context.shopper, context.affinity)))
    count = lists.map(len).to_numpy()
    mask = np.arange(count.max()) < count[:, None]
    candidates = np.zeros(mask.shape, np.int64)
    candidates[mask] = np.concatenate(lists.tolist())
    affinity = np.take_along_axis(context.affinity, candidates, axis=1)
    arrays = (context.shopper, candidates, mask, affinity)
    return Context(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
