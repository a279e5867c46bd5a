from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hawker.shop.cells import read_cells


def read(values, kind, type_=None, is_csv=False):
    return read_cells(pa.chunked_array([pa.array(values, type_)]), kind, is_csv)


NUMBERS = [
    ([1, None], None, [1.0, np.nan]),
    ([True, False], None, [1.0, 0.0]),
    ([Decimal("1.25"), None], None, [1.25, np.nan]),
    (["1", " 2.5 ", "1e3"], None, [1.0, 2.5, 1000.0]),
    (["1", "NaN", ""], None, [1.0, np.nan, np.nan]),
    (["3", "3"], pa.dictionary(pa.int8(), pa.string()), [3.0, 3.0]),
    ([None, None], None, [np.nan, np.nan]),
]


@pytest.mark.parametrize(("values", "type_", "expected"), NUMBERS)
def test_numbers(values, type_, expected):
    series, bad = read(values, "number", type_)
    assert series.dtype == "float64"
    np.testing.assert_array_equal(series, expected)
    assert not bad


def test_what_is_no_number_is_named_and_missing():
    series, bad = read(["1", "one", None, "nan", "0x1"], "number")
    np.testing.assert_array_equal(series, [1, np.nan, np.nan, np.nan, np.nan])
    assert {rule: mask.tolist() for rule, mask in bad.items()} == {"a number": [False, True, False, False, True]}


TIMES = [
    ["2026-03-01T10:00:00Z"],
    ["2026-03-01 10:00:00+00:00"],
    ["2026-03-01 12:00:00.000000+02:00"],
    ["2026-03-01T10:00Z"],
    ["2026-03-01T05:00:00-0500"],
    [datetime(2026, 3, 1, 10, tzinfo=UTC)],
]


@pytest.mark.parametrize("values", TIMES)
def test_times(values):
    series, bad = read(values, "time")
    assert series.dtype == "datetime64[us, UTC]"
    assert series[0] == pd.Timestamp("2026-03-01T10:00Z")
    assert not any(mask.any() for mask in bad.values())


@pytest.mark.parametrize(
    "value", ["2026-03-01", "2026-03-01T10:00:00", "2026-02-30T10:00:00Z", "now", "1772359200", "2026-03-01 10:00-24"]
)
def test_bad_times(value):
    _, bad = read(["2026-03-01T10:00:00Z", value, None], "time")
    assert [mask.tolist() for mask in bad.values()] == [[False, True, False]]


def test_times_without_a_zone_are_named_row_by_row():
    for values in ([datetime(2026, 3, 1, 10), None], [date(2026, 3, 1), None]):
        _, bad = read(values, "time")
        assert [mask.tolist() for mask in bad.values()] == [[True, False]]


def test_ids():
    assert read([7, None], "id")[0].tolist() == ["7", pytest.approx(np.nan, nan_ok=True)]
    assert read([7.0, np.nan], "id")[0][0] == "7"
    assert read(["7.0", None], "id", is_csv=True)[0][0] == "7"
    assert read(["7.0", "7.1"], "id", is_csv=True)[0].tolist() == ["7.0", "7.1"]
    assert read(["007", ""], "id")[0].isna().tolist() == [False, True]
    assert read([1, 2], "key")[0].dtype == "int64"
    assert read([1, None], "key")[0].dtype == "str"
    assert read([2**64 - 1], "key", pa.uint64())[0].tolist() == ["18446744073709551615"]


def test_features_keep_what_they_are():
    assert read([1.5], "feature", pa.float32())[0].dtype == "float32"
    assert read([1, 2], "feature")[0].dtype == "int64"
    assert read([True], "feature")[0].dtype == "int8"
    assert read([Decimal("1.5")], "feature")[0].dtype == "float64"
    assert read([None], "feature")[0].dtype == "float64"
    text = read(["b", "a", None, ""], "feature")[0]
    assert text.cat.categories.tolist() == ["a", "b"]
    assert text.isna().tolist() == [False, False, True, True]
    assert read(["1", "2"], "feature")[0].dtype == "category"
    assert read(["1", "2"], "feature", is_csv=True)[0].dtype == "float64"
    assert read(["1", "b"], "feature", is_csv=True)[0].dtype == "category"


WRONG = [
    ("number", [[1]]),
    ("number", [datetime(2026, 1, 1)]),
    ("time", [1772359200]),
    ("id", [1.5]),
    ("id", [True]),
    ("text", [datetime(2026, 1, 1)]),
    ("list", ["a"]),
    ("feature", [{"a": 1}]),
    ("feature", [datetime(2026, 1, 1)]),
    ("affinity", [[0.5]]),
]


@pytest.mark.parametrize(("kind", "values"), WRONG)
def test_columns_that_cannot_be_meant(kind, values):
    assert read(values, kind) is None


def test_affinities_are_single_precision():
    series, bad = read([0.1, None, 1e300], "affinity")
    assert series.dtype == "float32"
    assert series.tolist() == [pytest.approx(0.1), pytest.approx(np.nan, nan_ok=True), np.inf]
    assert not bad
