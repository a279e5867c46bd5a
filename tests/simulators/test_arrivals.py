"""The contexts in which shoppers first appear, and the candidates that the log knows of."""

import numpy as np
import pandas as pd
import torch

from hawker.shop.context import ContextBuilder
from hawker.simulators import arrivals
from hawker.simulators.arrivals import chosen_units, find_arrivals, first_rows, logged_candidates
from hawker.simulators.split import shopper_codes
from hawker.simulators.store import is_whole_catalog

CPU = torch.device("cpu")


def test_of_few_shoppers_all_are_kept_and_of_many_some(monkeypatch):
    assert chosen_units(50, np.random.default_rng(0)).all()
    monkeypatch.setattr(arrivals, "MAX_ARRIVALS", 20)
    some = [chosen_units(50, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert [chosen.sum() for chosen in some] == [20, 20, 20]
    assert np.array_equal(some[0], some[1])
    assert not np.array_equal(some[0], some[2])


def test_the_first_row_of_each_shopper_in_order_of_time(journeys):
    log = journeys[0]
    found = first_rows(log, np.ones(80, bool))
    pd.testing.assert_frame_equal(found, log.drop_duplicates("shopper_id"))
    chosen = np.zeros(80, bool)
    chosen[[3, 70]] = True
    codes = shopper_codes(log)
    assert set(codes[first_rows(log, chosen).index]) == {3, 70}


def test_candidates_are_the_logged_ones_where_all_are_known(journeys):
    log, items, pages = journeys
    builder = ContextBuilder.fit(log, items)
    first = first_rows(log, np.ones(80, bool))
    pieces = [pages[:5], pages[5:90], pages[90:]]
    logged = logged_candidates(pieces, [first[:40], first[40:]], builder.catalog)
    assert len(logged) == 80
    context = find_arrivals(first, logged, builder, CPU)
    known = first.merge(pages, on=["visit_id", "page"])["candidates"]
    shown = [[builder.catalog.item_ids[i] for i in row[kept]] for row, kept in zip(*_arrays(context), strict=True)]
    assert shown == known.tolist()
    some = pages[pages["visit_id"] != first["visit_id"].iloc[3]]
    for missing in ([], [some], [pages.drop(columns="candidates")]):
        everything = find_arrivals(first, logged_candidates(missing, [first], builder.catalog), builder, CPU)
        assert is_whole_catalog(everything, 20)


def _arrays(context):
    return context.candidates.numpy(), context.mask.numpy()
