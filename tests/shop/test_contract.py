from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hawker.shop.contract import FIELDS, Fault, affinities, broken_rules, features, field_of, final, reasons, typed
from hawker.shop.errors import InputError
from hawker.shop.tables import RawTable


def raw(frame):
    data = pa.Table.from_pandas(frame, preserve_index=False)
    return RawTable(Path("shop.parquet"), data, np.arange(len(frame)), (), False)


def test_columns_outside_the_contract_are_features(impressions):
    assert features("impressions", impressions) == ["segment", "age"]
    assert affinities(impressions) == {"10": "affinity.10"}
    assert field_of("impressions", "affinity.10").kind == "affinity"
    assert field_of("items", "affinity.10").kind == "feature"
    assert features("items", ["item_id", "price", "colour"]) == ["colour"]


def test_valid_rows_pass_and_get_their_types(impressions):
    frame, unread = typed("impressions", raw(impressions))
    assert not unread
    assert not broken_rules("impressions", frame, unread, {"10", "11", "12", "13"})
    pd.testing.assert_frame_equal(final("impressions", frame, []), impressions)


def test_rows_at_fault_are_left_out_with_their_categories(impressions):
    impressions["segment"] = impressions["segment"].cat.add_categories("rare")
    impressions.loc[7, "segment"] = "rare"
    frame, _ = typed("impressions", raw(impressions))
    assert "rare" in frame["segment"].cat.categories
    valid = final("impressions", frame, [Fault("clicked", "0 or 1", np.array([7]))])
    assert len(valid) == 59
    assert valid.index.equals(pd.RangeIndex(59))
    assert valid["segment"].cat.categories.tolist() == ["new", "old"]


def test_a_cell_has_one_fault_though_it_could_not_be_read(impressions):
    impressions["clicked"] = impressions["clicked"].astype("str")
    impressions.loc[3, "clicked"] = "x"
    impressions.loc[4, "clicked"] = None
    frame, unread = typed("impressions", raw(impressions))
    faults = broken_rules("impressions", frame, unread)
    assert [(f.column, f.rule, f.what, f.rows.tolist()) for f in faults] == [
        ("clicked", "a number", "bad value", [3]),
        ("clicked", "a value", "missing value", [4]),
    ]
    assert reasons(faults) == {
        3: "clicked: bad value, expected a number",
        4: "clicked: missing value, expected a value",
    }


def test_many_faults_are_all_there():
    n = 200_000
    frame = pd.DataFrame(
        {"visit_id": np.arange(n) // 2, "page": 0.0, "log_prob_slate": np.where(np.arange(n) % 4, 1, -1)}
    )
    found = {fault.column: fault.rows for fault in broken_rules("pages", frame, [])}
    assert found["log_prob_slate"].size == 150_000
    np.testing.assert_array_equal(found["visit_id"], np.arange(1, n, 2))  # the first of two stays


def test_first_of_two_rows_is_not_the_duplicate():
    frame = pd.DataFrame({"item_id": pd.Series(["a", "b", "a", None, None, "a"], dtype="str")})
    faults = {fault.what: fault.rows.tolist() for fault in broken_rules("items", frame, [])}
    assert faults == {"missing value": [3, 4], "duplicate row": [2, 5]}


def test_unknown_items_need_a_catalogue():
    events = pd.DataFrame({"item_id": pd.Series(["a", None, "z"], dtype="str")})
    assert not broken_rules("events", events, [])
    (fault,) = broken_rules("events", events, [], {"a"})
    assert fault.rows.tolist() == [2]


NOW = pd.Timestamp("2026-11-22T10:00Z")
TOMORROW = "a time up to tomorrow, 2026-11-23T10:00+00:00"


@pytest.mark.parametrize(
    ("times", "strays"),
    [
        (["2026-11-22T10:00Z", "2026-11-23T10:00Z", "2026-11-23T10:01Z"], [2]),  # clocks and zones differ by a day
        (["2099-01-01T00:00Z", "2026-01-01T00:00Z"], [0]),  # half is not most
        (["2099-01-01T00:00Z", "2099-01-02T00:00Z", "2026-01-01T00:00Z"], []),  # the log has a clock of its own
        (["2099-01-01T00:00Z"], []),
        ([None, None, "2026-01-01T00:00Z", "2099-01-01T00:00Z"], [3]),
    ],
)
def test_a_few_rows_of_the_future_are_strays(times, strays):
    events = pd.DataFrame({"timestamp": pd.to_datetime(pd.Series(times), utc=True).dt.as_unit("us")})
    faults = [fault for fault in broken_rules("events", events, [], now=NOW) if fault.what == "future time"]
    assert [(f.column, f.rule, f.rows.tolist()) for f in faults] == [("timestamp", TOMORROW, strays)] * bool(strays)


def test_without_a_time_told_it_is_the_clocks():
    now = pd.Timestamp.now("UTC")
    events = pd.DataFrame({"timestamp": pd.Series([now, now, now + pd.Timedelta(days=2)]).dt.as_unit("us")})
    assert [fault.rows.tolist() for fault in broken_rules("events", events, [])] == [[2]]


@pytest.mark.parametrize("table", FIELDS)
def test_missing_column_is_named_with_its_likely_self(table):
    needed = [name for name, field in FIELDS[table].items() if field.needed]
    wrong = pd.DataFrame({name: ["1"] for name in [*needed[1:], needed[0].upper()[:-1] + "d_"]})
    with pytest.raises(InputError, match=f"the column {needed[0]} is missing"):
        typed(table, raw(wrong))


def test_likely_self():
    with pytest.raises(InputError, match=r"did you mean 'item\?'|did you mean 'itemid'\?"):
        typed("items", raw(pd.DataFrame({"itemid": ["1"], "price": [1.0]})))
