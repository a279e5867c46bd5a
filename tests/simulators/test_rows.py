"""Logs as rows: who saw which page when, by hand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators import rows as rows_module
from hawker.simulators.rows import EncodedLog, Rows, Timeline, encode_log, encode_piece, ranges
from hawker.simulators.small import small_tables
from hawker.simulators.split import shopper_codes

CPU = torch.device("cpu")
HEADER = ("visit_id", "page", "position", "shopper_id", "timestamp", "item_id", "clicked")
DIARY = [
    ("v2", 0, 0, "ann", "2026-01-04 01:00", 0, 0),  # out of order: tables need not be sorted
    ("v1", 0, 0, "ann", "2026-01-01 22:00", 1, 1),
    ("v1", 0, 1, "ann", "2026-01-01 22:00", 2, 0),
    ("v1", 1, 0, "ann", "2026-01-01 22:06", 3, 0),
    ("v3", 0, 0, "bob", "2026-01-02 12:00", 4, 0),
    ("v4", 0, 0, None, "2026-01-03 00:00", 5, 0),
    ("v4", 1, 1, None, "2026-01-03 00:01", 6, 1),
    ("v4", 1, 0, None, "2026-01-03 00:01", 7, 0),
    ("v5", 0, 0, "cid", "2026-01-06 11:30", 8, 0),  # half an hour before the end
    ("v6", 0, 0, "dan", "2026-01-06 11:31", 9, 0),
    ("v7", 0, 0, None, "2026-01-06 12:00", 10, 0),
]


BUILDER = ContextBuilder.fit(*small_tables())


def log_of(diary: list[tuple]) -> pd.DataFrame:
    """Return impressions with these values, and unremarkable others."""
    log = pd.DataFrame(diary, columns=HEADER)
    log["timestamp"] = pd.to_datetime(log["timestamp"], utc=True)
    log["shopper_id"] = pd.Series(log["shopper_id"], dtype="str")
    log["item_id"] = [f"item-{i}" for i in log["item_id"]]
    return log.assign(placement="organic", propensity=0.5, age=30.0, segment="new")


def encoded(log: pd.DataFrame) -> EncodedLog:
    return encode_log(log, BUILDER, None, CPU)


@pytest.fixture
def diary() -> EncodedLog:
    return encoded(log_of(DIARY))


def test_rows_stand_shopper_by_shopper_in_order_of_time(diary):
    rows = diary.rows
    assert rows.item.tolist() == [1, 2, 3, 0, 4, 8, 9, 5, 7, 6, 10]
    assert diary.order.tolist() == [1, 2, 3, 0, 4, 8, 9, 5, 7, 6, 10]
    assert rows.page.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8]
    assert rows.position.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert rows.clicked.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert len(rows) == 11
    assert len(rows.shopper) == 9
    absent = (rows.converted, rows.revenue, rows.line, rows.offer, rows.ad)
    assert absent == (None,) * 5, "what the log does not record"


def test_shoppers_are_those_the_log_tells_apart(diary):
    assert diary.rows.time.first.tolist() == [0, 3, 4, 5, 6, 8, 9]
    assert len(diary.rows.time) == 6
    code = shopper_codes(log_of(DIARY))
    assert diary.shopper.tolist() == [code[row] for row in (1, 4, 8, 9, 5, 10)]


def test_gaps_and_page_numbers(diary):
    time, minute = diary.rows.time, 1 / 1440
    gaps = [0, 6 * minute, 2 + (2 * 60 + 54) * minute, 0, 0, 0, 0, minute, 0]
    assert time.gap.tolist() == pytest.approx(gaps, abs=1e-6)
    assert time.number.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_a_page_closes_its_visit_unless_the_log_ends_too_soon_to_know(diary):
    """Whoever was seen less than half an hour before the end may have gone on."""
    closes = diary.rows.time.closes.tolist()
    assert closes[:6] == [0, 1, 1, 1, 1, pytest.approx(math.nan, nan_ok=True)]
    assert closes[6] == 0
    assert closes[7] == 1
    assert math.isnan(closes[8])


def test_a_wait_is_in_whole_days_and_the_last_one_is_cut_off(diary):
    time = diary.rows.time
    # Calendar days (UTC): 1 to 4 January is three days, however many hours; the last visits wait until the 6th.
    ends = [1, 2, 3, 4, 5]
    assert time.wait[ends].tolist() == [3, 2, 4, 0, 0]
    assert time.returned[ends].tolist() == [1, 0, 0, 0, 0]


def test_nobody_knows_whether_a_stranger_came_back(diary):
    assert diary.rows.time.returned.isnan().tolist() == [True, False, False, False, False, False, True, True, True]


def test_the_visit_cut_off_by_the_end_may_still_count_as_left():
    """A shopper who comes back closes the visit before, however close to the end."""
    log = log_of(
        [
            ("v1", 0, 0, "ann", "2026-01-01 12:00", 0, 0),
            ("v2", 0, 0, "ann", "2026-01-01 12:10", 0, 0),
        ]
    )
    time = encoded(log).rows.time
    assert time.closes[0] == 1
    assert math.isnan(time.closes[1])
    assert (time.returned.tolist(), time.wait.tolist()) == ([1, 0], [0, 0])


def test_visits_that_overlap_wait_no_negative_days():
    log = log_of(
        [
            ("v1", 0, 0, "ann", "2026-01-01 23:50", 0, 0),
            ("v1", 1, 0, "ann", "2026-01-02 00:10", 1, 0),
            ("v2", 0, 0, "ann", "2026-01-01 23:55", 2, 0),
            ("v3", 0, 0, "bob", "2026-01-03 00:00", 3, 0),
        ]
    )
    time = encoded(log).rows.time
    assert (time.gap >= 0).all()
    assert time.wait.tolist() == [1, 0, 2, 0]


def test_pages_of_which_nobody_sees_two_have_no_timeline():
    log = log_of([DIARY[i] for i in (4, 5, 1, 2)])
    found = encoded(log)
    assert found.rows.time is None
    assert found.rows.item.tolist() == [1, 2, 4, 5]
    assert found.shopper.tolist() == [shopper_codes(log)[row] for row in (2, 0, 1)]


def test_single_impressions_of_strangers_keep_the_order_of_the_table():
    impressions, items = small_tables(n_rows=50)
    found = encode_log(impressions, ContextBuilder.fit(impressions, items), None, CPU)
    assert found.order.tolist() == found.rows.page.tolist() == found.shopper.tolist() == list(range(50))
    assert found.rows.item.tolist() == [int(item[5:]) for item in impressions["item_id"]]
    assert found.rows.time is None


def test_rows_hold_the_affinity_with_the_item_shown():
    impressions, items = small_tables(n_items=4, n_rows=50)
    impressions["affinity.item-2"] = np.arange(50.0)
    rows = encode_log(impressions, ContextBuilder.fit(impressions, items), None, CPU).rows
    for i in range(50):
        item = impressions["item_id"][i]
        known = impressions[f"affinity.{item}"][i] if item in ("item-0", "item-2") else 0.0
        assert (rows.item[i], rows.position[i]) == (int(item[5:]), impressions["position"][i])
        assert rows.affinity[i] == known


def test_whatever_a_log_records_stands_in_its_row(journeys):
    impressions, items, _ = journeys
    mixed = impressions.sample(frac=1, random_state=0).reset_index(drop=True)
    mixed.loc[:9, "converted"] = np.nan
    lines = Lines.from_impressions(mixed, load_encoder("hashed:16", CPU))
    builder = ContextBuilder.fit(mixed, items)
    found = encode_log(mixed, builder, lines, CPU)
    rows, log = found.rows, mixed.iloc[found.order]
    assert sorted(found.order) == list(range(len(mixed)))
    for name, values in (("clicked", rows.clicked), ("converted", rows.converted), ("revenue", rows.revenue)):
        assert np.array_equal(values.numpy(), log[name].to_numpy(np.float32), equal_nan=True), name
    assert rows.offer.tolist() == log["offer"].tolist()
    assert rows.ad.tolist() == (log["placement"] == "ad").astype(float).tolist()
    assert [None if i < 0 else lines.texts[i] for i in rows.line] == [None if pd.isna(c) else c for c in log["copy"]]
    # The features of a page are those of its rows.
    torch.testing.assert_close(rows.shopper[rows.page], torch.from_numpy(builder.encode_shoppers(log)))


def test_what_is_the_same_everywhere_is_no_input(journeys):
    impressions, items, _ = journeys
    plain = impressions.assign(offer=0, placement="organic", converted=np.nan, revenue=np.nan)
    rows = encode_log(plain, ContextBuilder.fit(plain, items), None, CPU).rows
    assert (rows.offer, rows.ad, rows.converted, rows.revenue, rows.line) == (None,) * 5


def test_a_log_without_copy_shows_no_lines(journeys):
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", CPU))
    builder = ContextBuilder.fit(impressions, items)
    assert encode_log(impressions.drop(columns="copy"), builder, lines, CPU).rows.line is None


def test_a_line_that_is_not_in_the_bank_is_named(journeys):
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions[impressions["copy"] != "made by hand"], load_encoder("hashed:16", CPU))
    with pytest.raises(InputError, match="column copy: a line that is not in the bank; got 'made by hand'"):
        encode_log(impressions, ContextBuilder.fit(impressions, items), lines, CPU)


def test_a_history_without_end_is_cut_into_several(monkeypatch):
    """Nothing is lost but the state; the pieces have one owner."""
    hours = pd.date_range("2026-01-01", periods=9, freq="5h")
    log = log_of([(f"v{i // 2}", i % 2, 0, "ann", time, i, 0) for i, time in enumerate(hours)])
    log = pd.concat([log, log_of([("w", 0, 0, "bob", hours[4], 9, 0)])], ignore_index=True)
    whole = encoded(log)
    monkeypatch.setattr(rows_module, "LONGEST", 4)
    found = encoded(log)
    assert whole.rows.time.first.tolist() == [0, 9, 10]
    assert found.rows.time.first.tolist() == [0, 4, 8, 9, 10]
    assert found.shopper.tolist() == [0, 0, 0, 1]
    for name in ("gap", "number", "closes", "wait", "returned"):
        one, other = getattr(whole.rows.time, name), getattr(found.rows.time, name)
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), name


@given(
    start=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6),
)
def test_ranges(start):
    first, count = (torch.tensor([pair[i] for pair in start], dtype=torch.long) for i in (0, 1))
    assert ranges(first, count).tolist() == [a + i for a, n in start for i in range(n)]


def ragged() -> Rows:
    """Three pages of 2, 0 and 3 rows, of shoppers with features 10, 11 and 12."""
    page = torch.tensor([0, 0, 2, 2, 2])
    number = torch.arange(5)
    shopper = torch.tensor([[10.0], [11.0], [12.0]])
    return Rows(shopper, page, number, number, number.float(), number.float(), offer=number, ad=number.float())


@pytest.mark.parametrize(
    ("pages", "item", "page"),
    [
        ([2], [2, 3, 4], [0, 0, 0]),
        ([2, 0], [2, 3, 4, 0, 1], [0, 0, 0, 1, 1]),
        ([0, 2, 0], [0, 1, 2, 3, 4, 0, 1], [0, 0, 1, 1, 1, 2, 2]),
        ([1, 0, 1], [0, 1], [1, 1]),
        ([1], [], []),
        ([], [], []),
    ],
)
def test_pages_are_taken_whole_and_may_repeat(pages, item, page):
    taken = ragged().take(torch.tensor(pages, dtype=torch.long))
    assert (taken.item.tolist(), taken.page.tolist()) == (item, page)
    assert taken.shopper.flatten().tolist() == [10 + i for i in pages]
    for name in ("position", "affinity", "clicked", "offer", "ad"):
        assert getattr(taken, name).tolist() == item, name
    assert (taken.converted, taken.revenue, taken.line, taken.time) == (None,) * 4


def test_taking_keeps_every_field_of_the_rows(journeys):
    impressions, items, _ = journeys
    rows = encode_log(impressions, ContextBuilder.fit(impressions, items), None, CPU).rows
    everything = rows.take(torch.arange(len(rows.shopper)), rows.time)
    for field in dataclasses.fields(Rows):
        one, other = getattr(rows, field.name), getattr(everything, field.name)
        assert one is other or torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), field.name


def test_shoppers_of_a_timeline_are_taken_with_all_their_pages():
    number = torch.arange(6.0)
    time = Timeline(torch.tensor([0, 1, 4, 6]), *[number + i for i in range(5)])
    who = torch.tensor([1, 0, 1])
    assert time.pages(who).tolist() == [1, 2, 3, 0, 1, 2, 3]
    taken = time.take(who)
    assert len(taken) == 3
    assert taken.first.tolist() == [0, 3, 4, 7]
    for i, name in enumerate(("gap", "number", "closes", "wait", "returned")):
        assert getattr(taken, name).tolist() == [p + i for p in (1, 2, 3, 0, 1, 2, 3)]
    nobody = time.take(torch.tensor([], dtype=torch.long))
    assert (len(nobody), nobody.first.tolist(), nobody.gap.tolist()) == (0, [0], [])


@given(
    pages=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 3)), min_size=2, max_size=25),
    seed=st.integers(0, 100),
)
def test_however_a_log_is_shuffled_its_rows_stand_in_the_same_order(pages, seed):
    """Pages: (shopper, days since the page before in the log, rows); the shopper 0 is not known."""
    diary, now, visits = [], pd.Timestamp("2026-01-01"), {}
    for shopper, days, n in pages:
        now += pd.Timedelta(days=days, minutes=1)
        visit, page, last = visits.get(shopper, (0, -1, now))
        visit, page = (visit + 1, 0) if (now - last).days >= 1 else (visit, page + 1)
        visits[shopper] = (visit, page, now)
        name = f"s{shopper}" if shopper else None
        diary += [(f"v{shopper}-{visit}", page, k, name, now, len(diary) % 20, 0) for k in range(n)]
    log = log_of(diary)
    shuffled = log.sample(frac=1, random_state=seed)
    unit = log["shopper_id"].fillna(log["visit_id"])
    found, again = encode_log(log, BUILDER, None, CPU), encode_log(shuffled.reset_index(drop=True), BUILDER, None, CPU)
    one, other = log.index[found.order], shuffled.index[again.order]
    for name in unit.unique():
        own = one[(unit[one] == name).to_numpy()].tolist()
        assert own == sorted(own), "as they were logged"
        assert own == other[(unit[other] == name).to_numpy()].tolist()
    if found.rows.time is not None:
        first = torch.searchsorted(found.rows.page, found.rows.time.first[:-1])
        assert sorted(unit[one[first.numpy()]]) == sorted(unit.unique()), "every shopper in one piece"


def test_late_pages_are_the_last_in_time_and_all_of_the_moment_where_the_cut_falls(monkeypatch):
    rows = [(f"v{i}", 0, position, f"s{i}", f"2026-01-{1 + i:02d}", i, 0) for i in range(10) for position in range(2)]
    log = encoded(log_of(rows))
    assert log.late_pages(0.3).tolist() == [False] * 7 + [True] * 3
    assert log.late_pages(0.25).tolist() == [False] * 7 + [True] * 3, "half of a page makes it late"
    assert not log.late_pages(0.0).any()
    assert log.late_pages(1.0).all()
    together = encoded(log_of(rows).assign(timestamp=pd.Timestamp("2026-01-01", tz="UTC")))
    assert together.late_pages(0.3).all()
    monkeypatch.setattr(rows_module, "LATE", 4)
    assert log.late_pages(0.5).tolist() == [False] * 8 + [True] * 2, "a long log's last rows are enough"


def test_whom_rows_belong_to(diary):
    code = shopper_codes(log_of(DIARY))
    assert diary.owners().tolist() == code[diary.order].tolist()


def test_who_does_something_outside_the_logged_pages_has_come_back():
    """Ann buys in a branch between two visits, Bob after his last one; what happens around a page is no visit more."""
    log = log_of(
        [
            ("v1", 0, 0, "ann", "2026-01-01 10:00", 0, 0),
            ("v2", 0, 0, "ann", "2026-01-09 10:00", 1, 0),
            ("v3", 0, 0, "bob", "2026-01-02 10:00", 2, 0),
            ("v4", 0, 0, "cid", "2026-01-03 10:00", 3, 0),
            ("v5", 0, 0, None, "2026-01-03 12:00", 3, 0),
            ("v6", 0, 0, "dan", "2026-01-10 00:00", 3, 0),
            ("v6", 1, 0, "dan", "2026-01-10 00:02", 3, 0),
        ]
    )
    done = [
        ("ann", "2026-01-04 10:00"),
        ("ann", "2026-01-05 22:00"),
        ("ann", "2026-01-09 10:20"),  # still in the shop
        ("bob", "2026-01-05 10:00"),
        ("cid", "2026-01-03 09:45"),  # on the way to the page
        ("cid", "2026-01-11 09:45"),  # after the log's end
        ("eve", "2026-01-03 09:45"),  # was never shown anything
    ]
    events = pd.DataFrame(done, columns=["shopper_id", "timestamp"])
    events["timestamp"] = pd.to_datetime(events["timestamp"], utc=True)
    end = log["timestamp"].max()
    time, plain = (encode_piece(log, BUILDER, None, end, known).rows.time for known in (events, None))
    # Pages: ann's two, bob's, cid's, dan's two, the stranger's.
    assert time.wait[:4].tolist() == [3, 1, 3, 7]
    assert time.returned[:4].tolist() == [1, 0, 1, 0]
    assert time.gap[:4].tolist() == pytest.approx([0, 3.5, 0, 0])
    assert plain.wait[:4].tolist() == [8, 1, 8, 7]
    assert plain.returned[:4].tolist() == [1, 0, 0, 0]
    assert plain.gap[:4].tolist() == [0, 8, 0, 0]
    assert math.isnan(time.returned[6])
    for name in ("closes", "number", "first"):
        assert torch.equal(getattr(time, name).nan_to_num(-1), getattr(plain, name).nan_to_num(-1))


@given(
    pages=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=20, unique=True),
    done=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=20),
)
def test_events_shop_by_shop_and_hour_by_hour(pages, done):
    """Times in hours, each page a visit: the rules one by one."""
    start = pd.Timestamp("2026-01-01", tz="UTC")
    log = log_of([(f"v{i}", 0, 0, f"s{who}", "2026-01-01", 0, 0) for i, (who, _) in enumerate(pages)])
    log["timestamp"] = start + pd.to_timedelta([7 * hour for _, hour in pages], unit="h")
    log = log.sort_values(["timestamp", "visit_id"], ignore_index=True)
    events = pd.DataFrame({"shopper_id": [f"s{who}" for who, _ in done]})
    events["timestamp"] = start + pd.to_timedelta([7 * hour + 1 for _, hour in done], unit="h")
    found = encode_piece(log, BUILDER, None, log["timestamp"].max(), events)
    last = max(hour for _, hour in pages)
    for page, (who, hour) in enumerate(sorted(pages)):
        later = [7 * other for one, other in pages if one == who and other > hour]
        later += [7 * other + 1 for one, other in done if one == who and hour <= other < last]
        until = min(later, default=7 * last)
        assert found.rows.time.wait[page] == until // 24 - 7 * hour // 24
        assert found.rows.time.returned[page] == bool(later)
        earlier = [7 * other for one, other in pages if one == who and other < hour]
        if earlier:
            earlier += [7 * other + 1 for one, other in done if one == who and other < hour]
            assert found.rows.time.gap[page] == pytest.approx((7 * hour - max(earlier)) / 24, abs=1e-6)
