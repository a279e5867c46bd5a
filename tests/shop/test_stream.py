"""Logs read in pieces: the rows and the refusals of logs that are read whole."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawker.shop import stream as stream_module
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.stream import LogStream, open_stream, visit_keys
from hawker.shop.tables import read_pieces

NOW = pd.Timestamp("2026-11-22T10:00Z")


@pytest.fixture(params=[1 << 17, 7])
def rows(request, monkeypatch) -> int:
    """Rows held at once: all of them, or a few."""
    monkeypatch.setattr(stream_module, "ROWS", request.param)
    return request.param


def whole(stream: LogStream, scratch: Path) -> pd.DataFrame:
    """Return all impressions, in order."""
    found = pd.concat([frame.astype({"segment": "str"}) for frame in stream.impressions(scratch)])
    return found.sort_values(["timestamp", "visit_id", "page", "position"], kind="stable", ignore_index=True)


def read_all(path: Path, scratch: Path) -> None:
    """Read a log to its end, as a fit does."""
    stream = open_stream(path, NOW)
    for pieces in (stream.who(), stream.impressions(scratch), stream.pages(scratch)):
        for _ in pieces:
            pass


def refusal(path: Path, scratch: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_all(path, scratch)
    return str(caught.value)


def refused_whole(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_logs(path, NOW)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_pieces_hold_what_the_whole_log_does(write_logs, impressions, items, tmp_path, rows, suffix):
    shoppers = pd.DataFrame({"shopper_id": ["s0", "s3"], "orders": [3, 9], "segment": "mine"})
    path = write_logs(suffix, impressions=impressions.sample(frac=1, random_state=0), items=items, shoppers=shoppers)
    stream, expected = open_stream(path), read_logs(path)
    pd.testing.assert_frame_equal(whole(stream, tmp_path), expected.impressions.astype({"segment": "str"}))
    pd.testing.assert_frame_equal(stream.items, expected.items)
    assert stream.columns == tuple(expected.impressions)
    assert stream.digest == expected.digest
    assert stream.events is None
    who = pd.concat(stream.who(), ignore_index=True)
    assert len(who) == 60
    assert set(who["shopper_id"].dropna()) == set(impressions["shopper_id"].dropna())


def test_visits_are_one_type_in_all_pieces(write_logs, impressions, items, tmp_path, rows):
    numbers = impressions["visit_id"].astype("str")
    texts = numbers.where(impressions.index > 0, "first")
    for visit, kind in ((impressions["visit_id"], "int64"), (numbers, "int64"), (texts, "str")):
        stream = open_stream(write_logs(impressions=impressions.assign(visit_id=visit), items=items))
        assert stream.visits_are_numbers == (kind == "int64")
        assert {frame["visit_id"].dtype for frame in stream.impressions(tmp_path)} == {np.dtype(kind)} or kind == "str"
        assert {str(frame["visit_id"].dtype) for frame in stream.who()} == {kind}


def test_visit_keys_are_the_same_for_the_same_visit():
    numbers = pd.Series([3, 1, 3, -2])
    assert visit_keys(numbers).tolist() == [3, 1, 3, -2]
    texts = visit_keys(pd.Series(["a", "b", "a"], dtype="str"))
    assert texts[0] == texts[2] != texts[1]


WRONG = {
    "one cell": lambda f: f.assign(clicked=np.where(f.index == 31, 3, f["clicked"])),
    "three cells": lambda f: f.assign(clicked=np.where(f.index.isin([9, 30, 55]), 3, f["clicked"])),
    "two rules": lambda f: f.assign(
        clicked=np.where(f.index == 33, 3, f["clicked"]), propensity=np.where(f.index == 31, 2.0, f["propensity"])
    ),
    "a missing value": lambda f: f.assign(timestamp=f["timestamp"].where(f.index != 20)),
    "an unknown item": lambda f: f.assign(item_id=f["item_id"].where(f.index < 50, "99")),
    "a row of the future": lambda f: f.assign(
        timestamp=f["timestamp"].where(f.index != 17, pd.Timestamp("2099-01-01", tz="UTC"))
    ),
    "a last piece of the future": lambda f: f.assign(
        timestamp=f["timestamp"].where(f.index < 50, pd.Timestamp("2099-01-01", tz="UTC"))
    ),
    "a row twice, far apart": lambda f: pd.concat([f, f.iloc[[3]]]),
    "rows twice": lambda f: pd.concat([f, f.iloc[[3, 40]]]),
    "a column missing": lambda f: f.drop(columns="clicked"),
    "a column of a wrong type": lambda f: f.assign(age=f["timestamp"]),
    "an affinity with nothing": lambda f: f.assign(**{"affinity.99": 0.5}),
    "no row": lambda f: f.iloc[:0],
    "times without a zone": lambda f: f.assign(timestamp=f["timestamp"].dt.tz_localize(None)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_log_is_refused_with_the_line_of_the_whole_log(write_logs, impressions, items, tmp_path, rows, case):
    path = write_logs(impressions=WRONG[case](impressions), items=items)
    assert refusal(path, tmp_path) == refused_whole(path)


def test_a_log_of_the_future_is_read(write_logs, impressions, items, tmp_path, rows):
    moved = impressions.assign(timestamp=impressions["timestamp"] + pd.Timedelta(days=36_500))
    assert len(whole(open_stream(write_logs(impressions=moved, items=items), NOW), tmp_path)) == 60
    late = impressions.assign(timestamp=impressions["timestamp"].where(impressions.index != 7, moved["timestamp"]))
    path = write_logs(impressions=late, items=items)
    (path / "meta.json").write_text(json.dumps({"seed": 0}))
    assert len(whole(open_stream(path, NOW), tmp_path)) == 60, "simulated logs have days of their own"


def test_pages_are_checked_as_the_whole_table_is(write_logs, impressions, items, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "ROWS", 16)
    candidates = pd.Series([["10", "11"]] * 20)
    pages = pd.DataFrame({"visit_id": range(20), "page": 0, "log_prob_slate": -1.5, "candidates": candidates})
    stream = open_stream(write_logs(impressions=impressions, items=items, pages=pages))
    found = list(stream.pages(tmp_path))
    assert len(found) == 10
    pd.testing.assert_frame_equal(pd.concat(found, ignore_index=True), pages.astype({"page": "int32"}))
    strange = candidates.where(candidates.index != 12, pd.Series([["10", "9"]] * 20))
    for bad in (
        pages.assign(candidates=strange),
        pages.assign(log_prob_slate=np.where(pages.index == 15, 0.5, -1.0)),
        pd.concat([pages, pages.iloc[[0]]]),
    ):
        path = write_logs(impressions=impressions, items=items, pages=bad)
        assert refusal(path, tmp_path) == refused_whole(path)


def test_what_cannot_be_streamed(write_logs, impressions, items, tmp_path):
    events = pd.DataFrame({"shopper_id": ["a"], "timestamp": ["2026-01-02T00:00Z"], "kind": ["view"]})
    path = write_logs(events=events)
    assert refusal(path, tmp_path) == (
        f"{path}: the log has no impressions; click models learn from the table impressions"
    )
    path = write_logs(
        impressions=impressions, items=items, events=events.assign(timestamp="2026-01-02T00:00Z", kind=None)
    )
    assert refusal(path, tmp_path) == refused_whole(path)
    (path / "impressions.parquet").write_bytes(b"")
    assert "the file is empty" in refusal(path, tmp_path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 60), group=st.integers(1, 60), piece=st.integers(1, 70))
def test_pieces_of_a_file_are_its_rows_in_order(tmp_path, impressions, n, group, piece):
    path = tmp_path / "impressions.parquet"
    impressions[:n].to_parquet(path, index=False, row_group_size=group)
    pieces = list(read_pieces(path, piece, ["price_shown"]))
    assert [len(raw.rows) for raw in pieces[:-1]] == [piece] * (len(pieces) - 1)
    assert np.concatenate([raw.rows for raw in pieces]).tolist() == list(range(n))
    assert [value for raw in pieces for value in raw.column("price_shown").to_pylist()] == [i + 0.5 for i in range(n)]


def test_memory_does_not_grow_with_the_log(write_logs, impressions, items, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "ROWS", 2_000)

    def peak(times: int) -> int:
        long = pd.concat([impressions.assign(visit_id=impressions["visit_id"] + 20 * i) for i in range(times)])
        stream = open_stream(write_logs(impressions=long, items=items))
        tracemalloc.start()
        try:
            assert sum(map(len, stream.impressions(tmp_path))) == 60 * times
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(40)
    assert peak(400) < 1.3 * peak(100)
