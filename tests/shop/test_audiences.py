"""Audiences: labels worked out by hand, and what every label keeps to."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.audiences import AWAY, MOST_LIKED, STAGES, Audiences, History
from hawker.shop.catalog import Catalog

ITEMS = pd.DataFrame(
    {"item_id": ["k", "g", "t", "x"], "category": ["kitchen", "garden", "toys", None], "price": [1.0, 2.0, 3.0, 4.0]}
)
TWO = Audiences(("kitchen", "garden"))


def log(*rows: tuple[str | None, int, int, float, str, int, float]) -> pd.DataFrame:
    """Impressions from (shopper, visit, page, day, item, clicked, converted)."""
    frame = pd.DataFrame(rows, columns=["shopper_id", "visit_id", "page", "day", "item_id", "clicked", "converted"])
    frame["timestamp"] = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(frame.pop("day"), unit="D")
    return frame


def labels(audiences: Audiences, frame: pd.DataFrame) -> list[str]:
    return list(audiences.label(frame, ITEMS))


def test_a_shopper_by_hand():
    """First visit, a second one after 6 days with a purchase, a third the day after, and one 22 days later."""
    frame = log(
        ("a", 1, 0, 0.0, "k", 1, 0),
        ("a", 1, 1, 0.01, "k", 1, 0),
        ("a", 1, 2, 0.02, "g", 1, 0),
        ("a", 2, 0, 6.0, "g", 1, 1),
        ("a", 2, 1, 6.01, "g", 0, 0),
        ("a", 3, 0, 7.0, "k", 0, 0),
        ("a", 4, 0, 29.1, "k", 0, 0),
    )
    assert labels(TWO, frame) == [
        "new",  # nothing is known before the first page
        "new",  # one click is not yet a liking
        "new, likes kitchen",
        "returning, likes kitchen",
        "returning, bought before, likes garden",  # 2 to 2: the latest
        "returning, bought before, likes garden",
        "back after a while, likes garden",
    ]


def test_shoppers_do_not_mix_and_the_order_of_rows_does_not_matter():
    one = [("a", 1, 0, 0.0, "k", 1, 0.0), ("a", 1, 0, 0.0, "k", 1, 0.0), ("a", 2, 0, 3.0, "g", 0, 0.0)]
    other = [("b", 3, 0, 0.1, "g", 1, 1.0), ("b", 3, 1, 0.2, "t", 0, 0.0), ("b", 4, 0, 9.0, "t", 0, 0.0)]
    stranger = [(None, 5, 0, 1.0, "g", 1, 0.0), (None, 5, 1, 1.1, "g", 1, 0.0), (None, 6, 0, 2.0, "g", 0, 0.0)]
    expected = ["new", "new", "returning, likes kitchen", "new", "new", "returning, bought before", "new", "new", "new"]
    frame = log(*one, *other, *stranger)
    assert labels(TWO, frame) == expected
    mixed = np.random.default_rng(1).permutation(len(frame))
    assert labels(TWO, frame.iloc[mixed]) == [expected[i] for i in mixed]


def test_a_visit_of_a_stranger_is_a_history_of_its_own():
    rows = [(None, 5, page, page / 100, "g", 1, 0.0) for page in range(3)]
    assert labels(TWO, log(*rows)) == ["new", "new", "new, likes garden"]


def test_a_purchase_that_is_not_known_yet_is_none():
    frame = log(("a", 1, 0, 0.0, "k", 1, np.nan), ("a", 2, 0, 1.0, "k", 0, np.nan))
    assert labels(TWO, frame) == ["new", "returning"]
    assert labels(TWO, frame.drop(columns="converted")) == ["new", "returning"]


def test_the_categories_clicked_most_are_named():
    frame = log(*[("a", 1, p, p / 100, item, 1, 0) for p, item in enumerate("ggtxkx")], ("b", 2, 0, 0, "k", 0, 0))
    assert Audiences.fit(frame, ITEMS).liked == ("garden", "kitchen", "toys")  # equals by the alphabet
    assert Audiences.fit(frame, ITEMS.drop(columns="category")).liked == ()
    many = pd.DataFrame({"item_id": [str(i) for i in range(30)], "category": [f"c{i}" for i in range(30)]})
    clicks = log(*[("a", 1, p, p / 100, str(p % 30), 1, 0) for p in range(40)])
    audiences = Audiences.fit(clicks, many)
    assert len(audiences.liked) == MOST_LIKED
    assert set(audiences.liked[:3]) <= {f"c{i}" for i in range(10)}  # those clicked twice
    assert len(audiences.labels) == len(set(audiences.labels)) == len(STAGES) * (1 + MOST_LIKED) <= 40


def test_names_are_told_on_one_short_line():
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "category": ["tea\n& \x07coffee", "x" * 99, "tea & coffee"]})
    frame = log(*[("a", 1, p, p / 100, item, 1, 0) for p, item in enumerate("aaabbc")])
    audiences = Audiences.fit(frame, items)
    assert audiences.liked == ("tea\n& \x07coffee", "x" * 99)  # the third would be told like the first
    assert audiences.labels[1:3] == ("new, likes tea & coffee", "new, likes " + "x" * 32)
    assert set(audiences.label(frame, items)) == {"new", "new, likes tea & coffee"}


def test_without_impressions_there_are_no_labels():
    empty = log(("a", 1, 0, 0.0, "k", 0, 0)).iloc[:0]
    assert len(TWO.label(empty, ITEMS)) == 0
    assert Audiences.fit(empty, ITEMS).labels == STAGES


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.floats(0, 60), st.integers(0, 3), st.lists(st.integers(0, 4), min_size=2, max_size=2)
        ),
        min_size=1,
    )
)
def test_every_history_has_one_label(people: list[tuple[int, float, int, list[int]]]):
    visits, away, purchases, clicks = (np.array(part) for part in zip(*people, strict=True))
    numbers = TWO.number(History(visits, away, purchases, clicks, np.zeros_like(clicks)))
    for number, (seen, days, bought, clicked) in zip(numbers, people, strict=True):
        label = TWO.labels[number]
        assert label.startswith("new") == (seen == 0)
        assert label.startswith("back") == (seen > 0 and days > AWAY)
        assert ("bought" in label) == (seen > 0 and days <= AWAY and bought > 0)
        assert ("likes" in label) == (max(clicked) >= 2)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
def test_of_categories_clicked_as_often_the_latest_is_liked_whatever_the_numbers_are_kept_in(kind: type):
    counted = np.array([[2, 2], [2, 2], [3, 2], [2, 3]], kind), np.array([[5, 9], [9, 5], [1, 9], [1, 0]], kind)
    numbers = TWO.number(History(np.ones(4, int), np.zeros(4), np.zeros(4, int), *counted))
    assert [TWO.labels[number] for number in numbers] == [f"returning, likes {TWO.liked[i]}" for i in (1, 0, 0, 1)]


@pytest.mark.parametrize("visits", [0, 1])
def test_a_shop_without_categories_tells_stages_alone(visits: int):
    history = History(np.array([visits]), np.zeros(1), np.zeros(1, int), np.zeros((1, 0), int), np.zeros((1, 0), int))
    assert Audiences(()).labels[Audiences(()).number(history)[0]] == STAGES[visits]


def test_a_catalog_says_what_clicks_on_its_items_tell():
    catalog = Catalog.from_items(ITEMS.assign(brand=["a", "b", "a", "b"]))
    assert TWO.liked_of(catalog).tolist() == [0, 1, -1, -1]
    assert Audiences(("toys", "books")).liked_of(catalog).tolist() == [-1, -1, 0, -1]
    assert Audiences(()).liked_of(catalog).tolist() == [-1] * 4


def test_categories_may_be_numbers():
    """As a log's labels name them: 7.0 where the column has gaps."""
    items = ITEMS.assign(category=[7, 7, 3, np.nan])
    audiences = Audiences.fit(log(("a", 1, 0, 0.0, "k", 1, 0)), items)
    assert audiences.liked_of(Catalog.from_items(items)).tolist() == [0, 0, -1, -1]
    whole = ITEMS.assign(category=[7, 7, 3, 4])
    audiences = Audiences.fit(log(("a", 1, 0, 0.0, "t", 1, 0)), whole)
    assert audiences.labels[1] == "new, likes 3"
    assert audiences.liked_of(Catalog.from_items(whole)).tolist() == [-1, -1, 0, -1]
