import json

import numpy as np
import pandas as pd
import pytest

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.shop.logs import read_logs
from hawker.shop.search import COLUMNS, Search

NOON = "2026-03-01T12:00:00Z"


@pytest.fixture
def builder(impressions: pd.DataFrame, items: pd.DataFrame) -> ContextBuilder:
    return ContextBuilder.fit(impressions, items)


def request_of(row: pd.Series) -> dict[str, object]:
    """Return the serving request that describes a log row, as JSON would carry it."""
    features = {name: row[name] for name in ("segment", "age") if pd.notna(row[name])}
    affinity = {name.removeprefix("affinity."): row[name] for name in row.index if name.startswith("affinity.")}
    known = {item: float(value) for item, value in affinity.items() if pd.notna(value)}
    request = {"timestamp": row["timestamp"].isoformat(), "shopper": features, "affinity": known}
    return json.loads(json.dumps(request))


def assert_same(one: Context, other: Context) -> None:
    for name in ("shopper", "candidates", "mask", "affinity"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        assert np.array_equal(left, right), name


def assert_refused(builder: ContextBuilder, request: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        builder.from_request(request, "request")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


def test_a_log_row_and_the_request_that_describes_it_have_one_context(
    builder: ContextBuilder, impressions: pd.DataFrame
):
    rows = impressions.copy()
    rows["timestamp"] += pd.to_timedelta(np.arange(len(rows)) * 37, unit="min")
    rows.loc[::5, "age"] = np.nan
    rows.loc[::7, "segment"] = None
    rows.loc[::3, "affinity.10"] = np.nan
    rows["affinity.13"] = np.linspace(-2, 2, len(rows))
    logged = builder.from_impressions(rows)
    for i in range(len(rows)):
        served = builder.from_request(request_of(rows.iloc[i]), "request")
        assert_same(served, logged.map(lambda array, i=i: array[i : i + 1]))


def test_logs_read_from_disk_give_the_same_contexts(builder, impressions, items, write_logs):
    of_frames = builder.from_impressions(impressions)
    for suffix in ("parquet", "csv"):
        logs = read_logs(write_logs(suffix, impressions=impressions, items=items))
        again = ContextBuilder.fit(logs.impressions, logs.items)
        assert again.shopper.columns == builder.shopper.columns
        assert again.catalog.item_ids == builder.catalog.item_ids
        of_logs = again.from_impressions(logs.impressions)
        np.testing.assert_allclose(of_logs.shopper, of_frames.shopper, rtol=1e-6)
        assert np.array_equal(of_logs.affinity, of_frames.affinity)


def test_contexts_of_a_log(builder: ContextBuilder, impressions: pd.DataFrame):
    context = builder.from_impressions(impressions)
    n, n_items = len(impressions), 4
    assert builder.shopper.columns == ["hour_sin", "hour_cos", "age", "segment"]
    assert context.shopper.shape == (n, 5)
    assert context.shopper[:, 2].tolist() == impressions["age"].astype("float32").tolist()
    assert context.shopper[:2, 3:].tolist() == [[1, 0], [0, 1]]
    assert context.candidates.tolist() == [[0, 1, 2, 3]] * n
    assert context.mask.all()
    assert context.mask.shape == (n, n_items)
    assert np.array_equal(context.affinity[:, 0], impressions["affinity.10"])
    assert not context.affinity[:, 1:].any()


@pytest.mark.parametrize(
    ("timestamp", "sin", "cos"),
    [
        ("2026-03-01T00:00Z", 0, 1),
        ("2026-03-01T06:00:59+00:00", 1, 0),
        ("2026-03-01 12:00:00.5Z", 0, -1),
        ("2026-03-01T18:00+00", -1, 0),
        ("2026-03-01T01:00+07:00", -1, 0),  # 18:00 the day before in UTC
        ("2026-03-01T03:00Z", np.sqrt(0.5), np.sqrt(0.5)),
        ("2026-03-01T04:30+01:30", np.sqrt(0.5), np.sqrt(0.5)),
        ("2026-03-01T02:30Z", np.sin(np.radians(37.5)), np.cos(np.radians(37.5))),
    ],
)
def test_the_hour_is_a_point_on_the_circle(builder: ContextBuilder, timestamp: str, sin: float, cos: float):
    context = builder.from_request({"timestamp": timestamp}, "request")
    assert context.shopper[0, :2] == pytest.approx([sin, cos], abs=1e-6)


def test_a_time_is_enough(builder: ContextBuilder, impressions: pd.DataFrame):
    context = builder.from_request({"timestamp": NOON}, "request")
    assert context.shopper[0, 2:] == pytest.approx([impressions["age"].mean(), 0, 0], rel=1e-6)
    assert context.candidates.tolist() == [[0, 1, 2, 3]]
    assert context.mask.tolist() == [[True] * 4]
    assert context.affinity.tolist() == [[0] * 4]
    unknown = {"timestamp": NOON, "shopper": {"age": None, "segment": None}, "affinity": {}}
    assert_same(context, builder.from_request(unknown, "request"))


def test_candidates_come_in_the_order_of_the_request(builder: ContextBuilder):
    request = {"timestamp": NOON, "candidates": ["13", 10, "12"], "affinity": {"10": 1, "11": 5.0, "13": -0.5}}
    context = builder.from_request(request, "request")
    assert context.candidates.tolist() == [[3, 0, 2]]
    assert context.affinity.tolist() == [[-0.5, 1, 0]]
    assert context.mask.shape == (1, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "request: not an object; expected a JSON object"),
        ([1], "request: not an object; got [1]"),
        ({}, "request: no timestamp; expected ISO 8601 with a time zone"),
        ({"timestamp": None}, "request: bad timestamp"),
        ({"timestamp": 1767225600}, "request: bad timestamp; got 1767225600, expected ISO 8601 with a time zone"),
        ({"timestamp": 10**400}, "request: bad timestamp; got 1000"),
        ({"timestamp": True}, "request: bad timestamp"),
        ({"timestamp": {}}, "request: bad timestamp"),
        ({"timestamp": ""}, "request: bad timestamp"),
        ({"timestamp": "NaT"}, "request: bad timestamp"),
        ({"timestamp": "now"}, "request: bad timestamp"),
        ({"timestamp": "2026-03-01T12:00"}, "request: bad timestamp; got '2026-03-01T12:00'"),
        ({"timestamp": "2026-13-01T12:00Z"}, "request: bad timestamp"),
        ({"timestamp": "2026-03-01T12:00+99:00"}, "request: bad timestamp"),
        ({"timestam": NOON}, "request: unknown key 'timestam'; did you mean 'timestamp'?"),
    ],
)
def test_requests_without_a_time(builder: ContextBuilder, value: object, message: str):
    assert_refused(builder, value, message)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"shopper": None}, "request: shopper: not an object"),
        ({"shopper": {"segmnt": "new"}}, "request: shopper: unknown key 'segmnt'; did you mean 'segment'?"),
        ({"shopper": {"hour_sin": 0.5}}, "request: shopper: unknown key 'hour_sin'; known: age, segment"),
        ({"shopper": {"clicked": 1}}, "request: shopper: unknown key 'clicked'"),
        ({"shopper": {"age": "40"}}, "request: shopper.age: not a number; got '40', expected a number"),
        ({"shopper": {"age": True}}, "request: shopper.age: not a number; got True"),
        ({"shopper": {"age": [40]}}, "request: shopper.age: not a number; got [40]"),
        ({"shopper": {"age": float("nan")}}, "request: shopper.age: not a number; got nan"),
        ({"shopper": {"age": 1e39}}, "request: shopper.age: not a number; got 1e+39"),
        ({"shopper": {"age": 10**400}}, "request: shopper.age: not a number; got 1000"),
        ({"shopper": {"segment": ["new"]}}, "request: shopper.segment: not a text; got ['new'], expected a text"),
        ({"shopper": {"segment": {}}}, "request: shopper.segment: not a text; got {}"),
        ({"affinity": []}, "request: affinity: not an object"),
        ({"affinity": {"1O": 1}}, "request: affinity: unknown key '1O'; known: 10, 11, 12, 13"),
        ({"affinity": {"10": None}}, "request: affinity.10: not a number"),
        ({"affinity": {"10": "x"}}, "request: affinity.10: not a number; got 'x'"),
        ({"affinity": {"10": float("inf")}}, "request: affinity.10: not a number; got inf"),
        ({"affinity": {"10": 10**400}}, "request: affinity.10: not a number; got 1000"),
        ({"candidates": []}, "request: no candidates; got [], expected a list of at least one item id"),
        ({"candidates": None}, "request: no candidates"),
        ({"candidates": "10"}, "request: no candidates; got '10'"),
        ({"candidates": {"10": 1}}, "request: no candidates"),
        ({"candidates": ["10", "99"]}, "request: candidates: item not in the catalog; got '99'"),
        ({"candidates": [None]}, "request: candidates: item not in the catalog"),
        ({"candidates": ["10", "11", "10"]}, "request: candidates: a candidate is listed twice"),
        ({"candidates": ["10", 10]}, "request: candidates: a candidate is listed twice"),
    ],
)
def test_requests_with_a_bad_part(builder: ContextBuilder, part: dict[str, object], message: str):
    assert_refused(builder, {"timestamp": NOON, **part}, message)


def test_a_query_is_read_alike_in_logs_and_requests(impressions: pd.DataFrame, items: pd.DataFrame):
    """Its columns of the shopper, and its match beside what is recorded; without one nothing is added."""
    plain = ContextBuilder.fit(impressions, items)
    titled = items.assign(title=[f"thing {i}" for i in range(len(items))], description="a kite")
    search = Search.of_items(titled, HashedEncoder(16))
    box = plain.searching(search.learned(np.array([0.5, 1.0, 1.0, 0.0], np.float32), search.pairs))
    assert box.shopper.columns == [*plain.shopper.numeric, *COLUMNS, *plain.shopper.categories]
    row = impressions.iloc[[3]].assign(query="thing 2")
    request = request_of(row.iloc[0])
    asked, silent = (box.from_request({**request, "query": query}, "request") for query in ("thing 2", "!"))
    assert np.array_equal(asked.shopper, box.encode_shoppers(row))
    start = len(plain.shopper.numeric)
    assert asked.shopper[0, start] == 1.0
    assert not silent.shopper[0, start : start + len(COLUMNS)].any()
    assert_same(silent, box.from_request(request, "request"))
    expected = plain.from_request(request, "request")
    assert np.array_equal(silent.affinity, expected.affinity)
    match = asked.affinity[0] - expected.affinity[0]
    assert match.argmax() == 2
    assert match[2] > 1.5
    for item in range(len(items)):
        found = box.own_affinity(row, np.array([item]))
        assert found[0] == pytest.approx(asked.affinity[0, item])
    assert box.own_affinity(row.assign(query=None), np.array([2]))[0] == expected.affinity[0, 2]
    assert np.array_equal(plain.encode_shoppers(row), plain.encode_shoppers(impressions.iloc[[3]]))
    assert_refused(box, {**request, "query": 3}, "request: query: not a text; got 3")
    assert_refused(
        box, {"timestamp": NOON, "shopper": {"query.asked": 1}}, "request: shopper: unknown key 'query.asked'"
    )


def test_an_unknown_affinity_in_a_log(builder: ContextBuilder, impressions: pd.DataFrame):
    with pytest.raises(InputError, match="affinity columns: item not in the catalog; got '99'"):
        builder.from_impressions(impressions.assign(**{"affinity.99": 1.0}))


def test_a_feature_named_like_a_time_feature(impressions: pd.DataFrame, items: pd.DataFrame):
    with pytest.raises(InputError, match="impressions column hour_sin: the name is taken by a time feature"):
        ContextBuilder.fit(impressions.assign(hour_sin=1.0), items)


def test_a_shop_without_features(impressions: pd.DataFrame, items: pd.DataFrame):
    bare = impressions.drop(columns=["segment", "age", "affinity.10"])
    builder = ContextBuilder.fit(bare, items[["item_id"]])
    assert builder.from_impressions(bare).shopper.shape == (60, 2)
    assert builder.catalog.vectors.shape == (4, 0)
    with pytest.raises(InputError, match="unknown key 'age'; known: none"):
        builder.from_request({"timestamp": NOON, "shopper": {"age": 3}}, "request")


def test_a_builder_survives_json(builder: ContextBuilder, impressions: pd.DataFrame):
    values = json.loads(json.dumps(builder.to_dict()))
    again = ContextBuilder.from_dict(values, builder.catalog.vectors, "here")
    assert_same(again.from_impressions(impressions), builder.from_impressions(impressions))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: [], "bundle: not an object"),
        (lambda values: values | {"shoppers": {}}, "bundle: unknown key 'shoppers'; did you mean 'shopper'?"),
        (lambda values: {"catalog": values["catalog"]}, "bundle: not a feature schema"),
        (lambda values: {"shopper": values["shopper"]}, "bundle: not a catalog"),
        (lambda values: values | {"catalog": []}, "bundle: not a catalog"),
    ],
)
def test_what_is_no_builder(builder: ContextBuilder, change, message: str):
    with pytest.raises(InputError) as caught:
        ContextBuilder.from_dict(change(builder.to_dict()), builder.catalog.vectors, "bundle")
    assert str(caught.value).startswith(message)


def test_map_reaches_every_array(builder: ContextBuilder, impressions: pd.DataFrame):
    context = builder.from_impressions(impressions)
    assert_same(context.map(lambda array: array[3:5]), builder.from_impressions(impressions.iloc[3:5]))
