import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.errors import InputError
from hawker.shop.features import LARGEST, MAX_CATEGORIES, FeatureSchema, FeatureTally

numbers = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
texts = st.none() | st.text(max_size=5)
tables = st.lists(st.tuples(numbers, numbers, texts, texts), min_size=1, max_size=30).map(
    lambda rows: pd.DataFrame(rows, columns=["age", "visits", "segment", "city"]).astype(
        {"segment": "object", "city": "object"}
    )
)


def fit(table: pd.DataFrame) -> FeatureSchema:
    return FeatureSchema.fit(table, list(table.columns))


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"segment": ["new", "old", None, "new"], "age": [20.0, 30.0, np.nan, 40.0], "weight": 7})


def test_a_table_encoded_by_hand(table: pd.DataFrame):
    schema = fit(table)
    assert schema.columns == ["age", "weight", "segment"]
    assert schema.width == 4
    assert schema.categories == {"segment": ("new", "old")}
    assert schema.mean == (30.0, 7.0)
    assert schema.scale == pytest.approx((np.sqrt(200 / 3), 1.0))
    assert schema.encode(table).tolist() == [[20, 7, 1, 0], [30, 7, 0, 1], [30, 7, 0, 0], [40, 7, 1, 0]]
    assert schema.encode(table).dtype == np.float32
    assert schema.centre.tolist() == [30, 7, 0, 0]
    assert schema.spread.tolist() == pytest.approx([np.sqrt(200 / 3), 1, 1, 1])


def test_what_was_never_seen_is_all_zeros_and_what_is_missing_the_mean(table: pd.DataFrame):
    schema = fit(table)
    odd = pd.DataFrame({"segment": ["NEW", "", None, 3], "age": [np.inf, -np.inf, None, "x"], "other": 1})
    assert schema.encode(odd).tolist() == [[30, 7, 0, 0]] * 4
    assert schema.encode(pd.DataFrame(index=range(2))).tolist() == [[30, 7, 0, 0]] * 2
    assert schema.encode(table.head(0)).shape == (0, 4)


@given(tables)
def test_numbers_come_back_and_categories_are_one_hot(table: pd.DataFrame):
    schema = fit(table)
    encoded = schema.encode(table)
    assert encoded.shape == (len(table), schema.width)
    for i, name in enumerate(schema.numeric):
        known = table[name].notna().to_numpy()
        assert encoded[known, i].tolist() == table[name].to_numpy()[known].tolist()
        assert np.allclose(encoded[~known, i], schema.mean[i])
    start = len(schema.numeric)
    for name, known in schema.categories.items():
        block = encoded[:, start : start + len(known)]
        decoded = [known[int(row.argmax())] if row.any() else None for row in block]
        assert decoded == [None if pd.isna(value) else value for value in table[name]]
        assert set(block.sum(1)) <= {0.0, 1.0}
        start += len(known)


@given(tables)
def test_centred_and_scaled_rows_have_mean_zero_and_deviation_one_or_zero(table: pd.DataFrame):
    schema = fit(table)
    known = table[["age", "visits"]].to_numpy()
    for i, name in enumerate(["age", "visits"]):
        assert schema.numeric[i] == name
        values = (known[:, i][~np.isnan(known[:, i])] - schema.mean[i]) / schema.scale[i]
        if len(values):
            assert abs(values.mean()) < 1e-6
            assert values.std() == pytest.approx(1.0, abs=1e-6) or values.std() < 1e-6
    assert (schema.spread > 0).all()
    assert np.isfinite((schema.encode(table) - schema.centre) / schema.spread).all()


@given(tables, st.randoms(use_true_random=False))
def test_rows_are_encoded_one_by_one(table: pd.DataFrame, random):
    schema = fit(table)
    order = random.sample(range(len(table)), len(table))
    assert np.array_equal(schema.encode(table.iloc[order]), schema.encode(table)[order])
    assert fit(table.iloc[order]).categories == schema.categories


@given(tables)
def test_a_schema_survives_json(table: pd.DataFrame):
    schema = fit(table)
    assert FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict())), "here") == schema


@pytest.mark.parametrize(
    ("values", "encoded"),
    [
        (pd.Series(["b", None, "a"], dtype="str"), [[0, 1], [0, 0], [1, 0]]),
        (pd.Series(["b", None, "a"], dtype="object"), [[0, 1], [0, 0], [1, 0]]),
        (pd.Series(["b", None, "a"], dtype="category"), [[0, 1], [0, 0], [1, 0]]),
        (pd.Series(pd.Categorical(["b", None, "a"], categories=["z", "b", "a"])), [[0, 1], [0, 0], [1, 0]]),
        (pd.Series(pd.Categorical([2, None, 1])), [[0, 1], [0, 0], [1, 0]]),
        (pd.Series([True, None, False], dtype="boolean"), [[0, 1], [0, 0], [1, 0]]),
        (pd.Series([2, 1, 2], dtype="int8"), [[2], [1], [2]]),
        (pd.Series([2, None, 4], dtype="Int64"), [[2], [3], [4]]),
        (pd.Series([2, 2, 2], dtype="float32"), [[2], [2], [2]]),
        (pd.Series([None, None, None], dtype="float64"), [[0], [0], [0]]),
        (pd.Series([None, None, None], dtype="str"), [[], [], []]),
        (pd.Series([1.0, 1e39, 3.0]), [[1], [2], [3]]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pd.Series) else None,
)
def test_columns_of_every_type(values: pd.Series, encoded: list[list[float]]):
    table = pd.DataFrame({"x": values})
    assert fit(table).encode(table).tolist() == encoded


def test_the_type_of_a_text_column_makes_no_difference():
    texts = ["b", None, "a", "a"]
    schemas = [fit(pd.DataFrame({"x": pd.Series(texts, dtype=kind)})) for kind in ("str", "object", "category")]
    assert schemas[0] == schemas[1] == schemas[2]
    for kind in ("str", "object", "category"):
        encoded = schemas[0].encode(pd.DataFrame({"x": pd.Series(["a", None, "new"], dtype=kind)}))
        assert encoded.tolist() == [[1, 0], [0, 0], [0, 0]]


def test_a_constant_column_is_centred_and_not_blown_up():
    table = pd.DataFrame({"x": [0.1] * 1000, "y": [1e9] * 1000})
    schema = fit(table)
    assert schema.scale == (1.0, 1.0)
    assert np.abs(schema.encode(table) - schema.centre).max() < 1e-6


def test_no_columns_at_all(table: pd.DataFrame):
    schema = FeatureSchema.fit(table, [])
    assert schema.width == 0
    assert schema.encode(table).shape == (4, 0)
    assert schema.centre.shape == schema.spread.shape == (0,)
    assert FeatureSchema.from_dict(schema.to_dict(), "here") == schema


def test_the_most_frequent_categories_are_kept():
    often = [f"often {i:03}" for i in range(MAX_CATEGORIES - 1)]
    table = pd.DataFrame({"x": ["once a", "once c", "once b", *often, *often]})
    known = fit(table).categories["x"]
    assert known == (*often, "once a")  # of those seen as often as each other, the first in the alphabet
    assert fit(table).encode(pd.DataFrame({"x": ["once b"]})).sum() == 0


def test_the_largest_number_still_fits():
    table = pd.DataFrame({"x": [LARGEST, -LARGEST]})
    encoded = fit(table).encode(table)
    assert np.isfinite(encoded).all()
    assert encoded[0, 0] == -encoded[1, 0] == np.finfo(np.float32).max


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        {"numeric": {"age": {"mean": 1.0}}, "categories": {}},
        {"numeric": {"age": {"mean": "x", "scale": 1.0}}, "categories": {}},
        {"numeric": ["age"], "categories": {}},
        {"numeric": {}, "categories": {"segment": 3}},
        {"numeric": {}},
    ],
)
def test_what_is_no_schema(values: object):
    with pytest.raises(InputError, match=r"policy\.json: not a feature schema"):
        FeatureSchema.from_dict(values, "policy.json")  # type: ignore[arg-type]


@given(table=tables, cuts=st.lists(st.integers(1, 29), max_size=4))
def test_pieces_of_a_table_teach_what_the_table_does(table: pd.DataFrame, cuts: list[int]):
    tally, whole = FeatureTally(list(table.columns)), fit(table)
    ends = sorted({0, *(cut for cut in cuts if cut < len(table)), len(table)})
    for start, end in itertools.pairwise(ends):
        tally.add(table.iloc[start:end])
    pieces = tally.schema()
    assert pieces.categories == whole.categories
    assert pieces.numeric == whole.numeric
    assert pieces.mean == pytest.approx(whole.mean, rel=1e-6, abs=1e-6)
    assert pieces.scale == pytest.approx(whole.scale, rel=1e-6, abs=1e-6)
