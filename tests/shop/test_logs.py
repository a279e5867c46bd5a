import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawker.shop.artefacts import write_directory
from hawker.shop.errors import InputError
from hawker.shop.logs import affinity_columns, digest, feature_columns, read_logs

NOW = pd.Timestamp("2026-11-22T10:00Z")


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        read_logs(path, NOW)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_is_read_as_it_was_written(write_logs, impressions, items):
    logs = read_logs(write_logs(impressions=impressions, items=items))
    pd.testing.assert_frame_equal(logs.impressions, impressions)
    pd.testing.assert_frame_equal(logs.items, items)
    assert (logs.shoppers, logs.events, logs.pages) == (None, None, None)
    assert feature_columns(logs.impressions) == ["segment", "age"]
    assert affinity_columns(logs.impressions) == {"10": "affinity.10"}


def test_csv_says_the_same_as_parquet(write_logs, impressions, items):
    logs = read_logs(write_logs("csv", impressions=impressions, items=items))
    pd.testing.assert_frame_equal(logs.impressions, impressions)
    pd.testing.assert_frame_equal(logs.items, items)


def test_rows_come_in_order(write_logs, impressions, items):
    shuffled = impressions.sample(frac=1, random_state=3)
    logs = read_logs(write_logs(impressions=shuffled, items=items))
    pd.testing.assert_frame_equal(logs.impressions, impressions)


def test_types_that_mean_the_same_are_taken(write_logs, impressions, items):
    other = impressions.assign(
        clicked=impressions["clicked"].astype(bool),
        position=impressions["position"].astype("float64"),
        item_id=impressions["item_id"].astype("int64"),
        timestamp=impressions["timestamp"].dt.tz_convert("Asia/Tokyo").dt.as_unit("ns"),
        placement=impressions["placement"].astype("category"),
        segment=impressions["segment"].astype("str"),
    )
    other["affinity.10"] = other["affinity.10"].astype("float64")
    logs = read_logs(write_logs(impressions=other, items=items.assign(item_id=items["item_id"].astype("int64"))))
    pd.testing.assert_frame_equal(logs.impressions, impressions)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_whole_numbers_that_pandas_made_floats_are_ids(write_logs, impressions, items, suffix):
    shoppers = pd.Series(np.arange(60.0)).where(lambda x: x > 3)
    logs = read_logs(write_logs(suffix, impressions=impressions.assign(shopper_id=shoppers), items=items))
    assert logs.impressions["shopper_id"].tolist()[3:6] == [pytest.approx(np.nan, nan_ok=True), "4", "5"]


def test_digest_is_of_the_tables(write_logs, impressions, items):
    one, two = (write_logs(impressions=impressions, items=items) for _ in range(2))
    (two / "meta.json").write_text("{}")
    assert read_logs(one).digest == read_logs(two).digest == digest(one)
    assert re.fullmatch("[0-9a-f]{64}", digest(one))
    changed = write_logs(impressions=impressions, items=items.assign(price=1.0))
    assert digest(changed) != digest(one)


def test_events_alone_are_logs(write_logs):
    events = pd.DataFrame(
        {"shopper_id": ["b", "a"], "timestamp": ["2026-01-02T00:00Z", "2026-01-01T00:00Z"], "kind": ["view", "cart"]}
    )
    logs = read_logs(write_logs("csv", events=events))
    assert logs.impressions is None
    assert logs.events["shopper_id"].tolist() == ["a", "b"]


def test_pages_join_impressions(write_logs, impressions, items):
    pages = pd.DataFrame(
        {"visit_id": [0, 1], "page": 0, "log_prob_slate": [-1.5, np.nan], "candidates": [["10"], None]}
    )
    logs = read_logs(write_logs(impressions=impressions, items=items, pages=pages))
    assert logs.pages["visit_id"].dtype == logs.impressions["visit_id"].dtype == "int64"
    named = impressions.assign(visit_id="v" + impressions["visit_id"].astype("str"))
    logs = read_logs(write_logs(impressions=named, items=items, pages=pages))
    assert logs.pages["visit_id"].dtype == logs.impressions["visit_id"].dtype == "str"
    for bad, rule in (({"log_prob_slate": [0.5, 0.0]}, "<= 0"), ({"candidates": [["10", "9"], None]}, "items table")):
        assert rule in refusal(write_logs(impressions=impressions, items=items, pages=pages.assign(**bad)))


CELLS = [
    ("clicked", 2, "row 4 column clicked: bad value; got 2, expected 0 or 1; run `hawker logs check"),
    ("clicked", -1, "got -1, expected 0 or 1"),
    ("clicked", np.nan, "row 4 column clicked: missing value"),
    ("clicked", "yes", "got 'yes', expected a number"),
    ("propensity", 0.0, "got 0.0, expected 0 < propensity <= 1"),
    ("propensity", 1.5, "got 1.5, expected 0 < propensity <= 1"),
    ("propensity", -0.1, "expected 0 < propensity <= 1"),
    ("propensity", np.inf, "expected 0 < propensity <= 1"),
    ("page", -1, "column page: bad value; got -1, expected a whole number >= 0"),
    ("position", 0.5, "got 0.5, expected a whole number >= 0"),
    ("position", np.inf, "expected a whole number >= 0"),
    ("position", 2.0**40, "expected a whole number >= 0"),
    ("position", np.nan, "column position: missing value"),
    ("visit_id", None, "column visit_id: missing value"),
    ("item_id", "99", "column item_id: unknown item; got '99', expected an item_id of the items table"),
    ("item_id", None, "column item_id: missing value; got 'nothing'"),
    ("item_id", "", "column item_id: missing value"),
    ("placement", "footer", "got 'footer', expected organic or ad"),
    ("timestamp", "yesterday", "got 'yesterday', expected a time with its zone"),
    ("timestamp", "2026-03-01T10:00:00", "expected a time with its zone"),
    ("timestamp", "2026-03-01", "expected a time with its zone"),
    ("timestamp", "2026-13-01T10:00:00Z", "expected a time with its zone"),
    ("timestamp", None, "column timestamp: missing value"),
    ("timestamp", "2099-01-01T00:00:00Z", "future time; got '2099-01-01T00:00:00Z', expected a time up to tomorrow"),
    ("converted", 0.5, "got 0.5, expected 0 or 1"),
    ("revenue", -1.0, "expected a finite number >= 0"),
    ("revenue", np.inf, "expected a finite number >= 0"),
    ("offer", -1, "column offer: bad value"),
    ("offer", None, "column offer: missing value"),
    ("price_shown", -0.01, "expected a finite number >= 0"),
    ("ad_bid", -0.01, "expected a finite number >= 0"),
    ("age", np.inf, "expected a finite number or none"),
    ("affinity.10", -np.inf, "expected a finite number or none"),
    ("affinity.10", 1e300, "expected a finite number or none"),
    ("affinity.10", "much", "got 'much', expected a number"),
]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(("column", "value", "message"), CELLS)
def test_bad_cell(write_logs, impressions, items, suffix, column, value, message):
    values = impressions[column].astype("object")
    values[4] = value
    if isinstance(value, str):
        values = values.astype("str")
    frame = impressions.assign(**{column: values if isinstance(value, str) else values.infer_objects()})
    line = refusal(write_logs(suffix, impressions=frame, items=items))
    assert f"impressions.{suffix} row 4 column {column}" in line
    if suffix == "parquet" or isinstance(value, str):  # the cells of a CSV file are quoted as they stand there
        assert message in line
    else:
        assert message.rpartition("expected")[2].strip() in line


def test_first_row_and_number_of_rows_are_named(write_logs, impressions, items):
    impressions.loc[[9, 7, 30], "clicked"] = 3
    impressions.loc[8, "propensity"] = 2
    line = refusal(write_logs(impressions=impressions, items=items))
    assert "row 7 column clicked: bad value (the first of 3 such rows); got 3" in line


def test_impossible_combinations(write_logs, impressions, items):
    missed = impressions.assign(clicked=np.int8(0), converted=0.0, revenue=0.0)
    bought = missed.copy()
    bought.loc[5, "converted"] = 1.0
    assert "row 5 column converted: impossible value; got 1.0, expected 0 where clicked is 0" in refusal(
        write_logs(impressions=bought, items=items)
    )
    paid = missed.copy()
    paid.loc[5, "revenue"] = 9.0
    assert "row 5 column revenue: impossible value; got 9.0, expected 0 where converted is 0" in refusal(
        write_logs(impressions=paid, items=items)
    )


def test_duplicate_rows(write_logs, impressions, items):
    twice = pd.concat([impressions, impressions.iloc[[3]]])
    expected = "row 60 column visit_id: duplicate row; got 1, expected each (visit_id, page, position) once"
    assert expected in refusal(write_logs(impressions=twice, items=items))
    twice = pd.concat([items, items.iloc[[2]]])
    assert "row 4 column item_id: duplicate row; got '12', expected each item_id once" in refusal(
        write_logs(impressions=impressions, items=twice)
    )


COLUMNS = [
    (lambda f: f.drop(columns="clicked"), "the column clicked is missing"),
    (lambda f: f.rename(columns={"propensity": "click_ed", "clicked": "click"}), "did you mean 'click"),
    (lambda f: f.drop(columns="shopper_id"), "the column shopper_id is missing"),
    (lambda f: f.assign(clicked=[[1]] * len(f)), "column clicked: the column has a wrong type; got 'list"),
    (lambda f: f.assign(timestamp=f["timestamp"].astype("int64")), "got 'int64', expected timestamps in UTC"),
    (lambda f: f.assign(timestamp=f["timestamp"].dt.tz_localize(None)), "expected a time with its zone"),
    (lambda f: f.assign(item_id=f["clicked"] + 0.5), "got 'double', expected text or whole numbers"),
    (lambda f: f.assign(age=f["timestamp"]), "column age: the column has a wrong type"),
    (lambda f: f.assign(**{"affinity.99": 0.5}), "column affinity.99: an affinity with an item that"),
    (lambda f: f.iloc[:0], "the table has no rows"),
]


@pytest.mark.parametrize(("change", "message"), COLUMNS)
def test_bad_column(write_logs, impressions, items, change, message):
    assert message in refusal(write_logs(impressions=change(impressions), items=items))


def test_one_row_of_the_future_is_refused_and_a_log_of_the_future_is_not(write_logs, impressions, items):
    late = impressions.copy()
    late.loc[7, "timestamp"] = pd.Timestamp("2099-01-01T00:00Z")
    path = write_logs(impressions=late, items=items)
    assert refusal(path) == (
        f"{path}/impressions.parquet row 7 column timestamp: future time; got '2099-01-01 00:00:00+00:00', expected a "
        f"time up to tomorrow, 2026-11-23T10:00+00:00; run `hawker logs check {path} --clean OUT` to move bad rows to "
        "a quarantine file"
    )
    # The same rows are refused as events.
    events = late[["timestamp"]].assign(shopper_id="s0", kind="view")
    assert "row 7 column timestamp: future time" in refusal(write_logs(events=events))
    # Simulated logs, and those whose dates were moved, need not lie in the past.
    (path / "meta.json").write_text(json.dumps({"source": "bazaar", "seed": 0}))
    assert len(read_logs(path, NOW).impressions) == 60
    moved = impressions.assign(timestamp=impressions["timestamp"] + pd.Timedelta(days=36_500))
    assert len(read_logs(write_logs(impressions=moved, items=items), NOW).impressions) == 60


def test_simulated_logs_have_their_other_times_checked(write_logs, impressions, items):
    path = write_logs("csv", impressions=impressions.assign(timestamp=None), items=items)
    (path / "meta.json").write_text(json.dumps({"seed": 0}))
    assert "row 0 column timestamp: missing value (the first of 60 such rows)" in refusal(path)


def test_bad_files(write_logs, impressions, items, tmp_path):
    def logs():
        return write_logs(impressions=impressions, items=items)

    assert "no such directory" in refusal(tmp_path / "none")
    (tmp_path / "random").mkdir()
    assert "hawker logs import obd" in refusal(tmp_path)
    (path := logs()).joinpath("items.parquet").unlink()
    assert "the table items is missing" in refusal(path)
    (path := logs()).joinpath("impressions.parquet").rename(path / "impression.parquet")
    assert "no impressions and no events here" in refusal(path)
    assert "did you mean 'impression'?" in refusal(path)
    assert "not a directory" in refusal(logs() / "items.parquet")
    (path := logs()).joinpath("items.csv").write_text("item_id\n1\n")
    assert "the table items is here twice" in refusal(path)
    (path := logs()).joinpath("impressions.parquet").write_bytes(b"")
    assert "the file is empty (0 bytes)" in refusal(path)
    whole = (path := logs()).joinpath("impressions.parquet").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:6], b"no parquet " * 9):
        (path / "impressions.parquet").write_bytes(part)
        assert "impressions.parquet: the file cannot be read" in refusal(path)


def test_bad_csv(write_logs, impressions, items):
    path = write_logs("csv", impressions=impressions, items=items)
    text = (path / "items.csv").read_text()
    for content, message in (
        ("", "the file is empty"),
        ("item_id,title,price\n", "the table has no rows"),
        (text + "14,too,1,many\n", "items.csv row 4: the row has 4 cells, expected 3"),
        (text.replace("title", "item_id"), "two columns have one name; got 'item_id'"),
        ("item_id\n\xff\xfe\n", "cannot be read"),
    ):
        (path / "items.csv").write_bytes(content.encode("latin-1"))
        assert message in refusal(path)


def test_artefact_that_was_changed_is_refused(impressions, items, tmp_path):
    with write_directory(tmp_path / "logs", "logs") as scratch:
        impressions.to_parquet(scratch / "impressions.parquet")
        items.to_parquet(scratch / "items.parquet")
    assert len(read_logs(tmp_path / "logs").impressions) == 60
    listed = tmp_path / "logs" / "checksums.json"
    listed.write_text(json.dumps({"kind": "logs", "files": {"items.parquet": "0" * 64}}))
    assert "the file was changed after it was written" in refusal(tmp_path / "logs")


def test_features_of_shoppers_stand_in_the_impressions_that_lack_them(write_logs, impressions, items):
    shoppers = pd.DataFrame(
        {
            "shopper_id": ["s9", "s0", "s1", "never seen"],
            "segment": "mine",  # impressions have it: theirs counts
            "city": pd.Categorical(["Rome", "Oslo", None, "Oslo"]),
            "orders": [9, 0, 1, 7],
            "member": [True, False, True, False],
        }
    )
    for suffix in ("parquet", "csv"):
        logs = read_logs(write_logs(suffix, impressions=impressions, items=items, shoppers=shoppers))
        found = logs.impressions
        assert feature_columns(found) == ["segment", "age", "city", "orders", "member"]
        pd.testing.assert_frame_equal(found[list(impressions)], impressions)
        expected = impressions["shopper_id"].map({"s9": "Rome", "s0": "Oslo"})
        assert found["city"].dtype == "category"
        assert found["city"].astype(object).fillna("").tolist() == expected.fillna("").tolist()
        orders = impressions["shopper_id"].map({"s9": 9.0, "s0": 0.0, "s1": 1.0})
        assert found["orders"].fillna(-1).tolist() == orders.fillna(-1).tolist()


@pytest.mark.parametrize("name", ["revenue", "timestamp", "affinity.10"])
def test_a_feature_of_shoppers_may_not_pass_for_something_else(write_logs, impressions, items, name):
    shoppers = pd.DataFrame({"shopper_id": ["s0"], name: [5.0]})
    path = write_logs(impressions=impressions, items=items, shoppers=shoppers)
    assert refusal(path) == f"{path} shoppers column {name}: the name is taken by a column of impressions; rename it"


def test_image_embeddings_are_lists_and_lists_need_parquet(write_logs, impressions, items):
    with_images = items.assign(image_embedding=[[0.5, 1.0], None, [], [0.25, 2.0]])
    read = read_logs(write_logs(impressions=impressions, items=with_images)).items
    assert read["image_embedding"].tolist() == [[0.5, 1.0], None, [], [0.25, 2.0]]
    path = write_logs("csv", impressions=impressions, items=with_images)
    assert "column image_embedding: the column has a wrong type" in refusal(path)
    assert "expected lists (in a Parquet file)" in refusal(path)


FINITE = st.floats(0, 1e9, allow_nan=False)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8)
ROW = st.fixed_dictionaries(
    {
        "shopper_id": st.none() | TEXT,
        "timestamp": st.datetimes(pd.Timestamp("1990-01-01"), pd.Timestamp("2090-01-01")),
        "item_id": st.sampled_from(["10", "11", "12", "13"]),
        "placement": st.sampled_from(["organic", "ad"]),
        "clicked": st.integers(0, 1),
        "propensity": st.none() | st.floats(0, 1, exclude_min=True),
        "copy": st.none() | TEXT,
        "price_shown": st.none() | FINITE,
        "segment": st.none() | st.sampled_from(["new", "old", "lost"]),
        "age": st.none() | st.floats(-1e9, 1e9, width=32),
        "affinity.10": st.none() | st.floats(0, 99, width=32),
    }
)
TYPES = {
    "shopper_id": "str",
    "item_id": "str",
    "placement": "str",
    "clicked": "int8",
    "propensity": "float64",
    "copy": "str",
    "price_shown": "float64",
    "age": "float64",
    "affinity.10": "float32",
}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=12), suffix=st.sampled_from(["parquet", "csv"]))
def test_any_valid_frame_comes_back(write_logs, items, rows, suffix):
    frame = pd.DataFrame(rows).astype(TYPES)
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True).dt.as_unit("us")
    frame["segment"] = frame["segment"].astype("str").astype("category")
    key = pd.DataFrame({"visit_id": np.arange(len(frame)), "page": np.int32(0), "position": np.int32(1)})
    frame = pd.concat([key, frame], axis=1)
    end = pd.Timestamp("2090-01-01", tz="UTC")
    logs = read_logs(write_logs(suffix, impressions=frame, items=items), end)
    expected = frame.sort_values(["timestamp", "visit_id"], ignore_index=True)
    if frame["segment"].isna().all() and suffix == "csv":  # a file without types: it may as well hold numbers
        expected["segment"] = np.nan
    pd.testing.assert_frame_equal(logs.impressions, expected)
