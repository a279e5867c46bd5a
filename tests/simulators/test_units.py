"""Whom a streamed log tells apart: the numbers that the table held whole gives."""

import itertools

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from hawker.simulators import units as units_module
from hawker.simulators.split import shopper_codes
from hawker.simulators.units import Units

IDS = st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=3)


def log(rows: list[tuple[str | None, int, int]]) -> pd.DataFrame:
    """Return (shopper, visit, day) as impressions."""
    frame = pd.DataFrame(rows, columns=["shopper_id", "visit_id", "day"])
    days = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(frame.pop("day"), unit="D")
    return frame.assign(shopper_id=frame["shopper_id"].astype("str"), timestamp=days.dt.as_unit("us"))


@given(
    rows=st.lists(st.tuples(IDS, st.integers(-5, 9), st.integers(0, 3)), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 59), max_size=4),
    at_once=st.integers(0, 20),
)
def test_numbers_are_those_of_the_whole_table(rows, cuts, at_once):
    frame = log(rows)
    ends = sorted({0, *(cut for cut in cuts if cut < len(frame)), len(frame)})
    pieces = [frame.iloc[start:end] for start, end in itertools.pairwise(ends)]
    before, units_module.AT_ONCE = units_module.AT_ONCE, at_once
    try:
        units = Units.of(pieces)
    finally:
        units_module.AT_ONCE = before
    ordered = frame.sort_values(["timestamp", "visit_id"], kind="stable")
    codes = shopper_codes(ordered)
    expected = pd.Series(codes, index=ordered.index).loc[frame.index]
    assert np.concatenate([units.codes(piece) for piece in pieces]).tolist() == expected.tolist()
    assert units.rows.tolist() == np.bincount(codes).tolist()
    assert len(units) == codes.max() + 1
    assert units.ids.to_pylist() == sorted(set(frame["shopper_id"].dropna()))
