"""Events become periods: by hand, and what cannot be used is refused."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hawker.shop.errors import InputError
from hawker.simulators.histories import Histories

ROWS = [
    ("ann", "2026-01-01 09:00", "purchase", 10.0),
    ("ann", "2026-01-01 22:00", "purchase", 20.0),  # the same day: one event of 30
    ("ann", "2026-01-03 00:00", "purchase", 50.0),
    ("bob", "2026-01-09 12:00", "purchase", None),
    ("bob", "2026-01-10 12:00", "view", None),
    (None, "2026-01-10 13:00", "purchase", 5.0),
    ("ann", "2026-01-14 23:59", "purchase", -4.0),  # a refund is worth nothing
    ("cid", "2026-02-01 00:00", "purchase", 1.0),
]


def events(rows: list[tuple[Any, ...]] = ROWS) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["shopper_id", "timestamp", "kind", "revenue"])
    frame["timestamp"] = pd.to_datetime(frame["timestamp"]).dt.tz_localize("UTC")
    return frame


def day(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz="UTC")


def test_events_are_counted_by_period_and_day() -> None:
    found = Histories.from_events(events(), start=day("2026-01-01"), end=day("2026-01-15"))
    assert found.shoppers.tolist() == ["ann", "bob"]  # cid lies in the future
    assert found.count.tolist() == [[2, 1], [0, 1]]
    assert found.birth.tolist() == [0, 1]
    assert found.unknown == 1
    np.testing.assert_allclose(found.value, np.log1p([[40, 0], [np.nan, np.nan]]), rtol=1e-6)
    assert (found.periods, len(found), found.period_days) == (2, 2, 7)


def test_periods_are_counted_back_from_the_end() -> None:
    found = Histories.from_events(events(), start=day("2026-01-01"), end=day("2026-01-11"))
    assert found.count.tolist() == [[2, 0], [0, 1]]  # 3 days, then 7
    assert Histories.from_events(events(), end=day("2026-01-15"), period_days=1).count.shape == (2, 14)


def test_the_record_ends_with_the_last_day_of_any_event_unless_told() -> None:
    late = [*ROWS[:2], ("bob", "2026-01-14 01:00", "view", None)]
    found = Histories.from_events(events(late))
    assert found.end == day("2026-01-15")
    assert found.count.tolist() == [[1, 0]]


def test_until_forgets_what_came_later() -> None:
    whole = Histories.from_events(events(), start=day("2026-01-01"), end=day("2026-01-15"))
    known = whole.until(1)
    again = Histories.from_events(events(), start=day("2026-01-01"), end=day("2026-01-08"))
    assert known.end == again.end
    assert known.shoppers.tolist() == again.shoppers.tolist() == ["ann"]
    np.testing.assert_array_equal(known.count, again.count)
    for period in (0, 3):
        with pytest.raises(InputError, match="no such period"):
            whole.until(period)
    with pytest.raises(InputError, match="nobody had appeared"):
        Histories.from_events(events(), start=day("2025-12-01"), end=day("2026-01-15")).until(1)


def test_a_shopper_with_many_events_is_one_row() -> None:
    times = pd.date_range("2026-01-01", periods=100_000, freq="min", tz="UTC")
    frame = pd.DataFrame({"shopper_id": "bot", "timestamp": times, "kind": "purchase"})
    found = Histories.from_events(frame)
    assert found.count.max() == 7
    assert found.count.sum() == 70  # days
    assert np.isnan(found.value).all()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda frame: frame.drop(columns="kind"), {}, "the column kind is missing"),
        (lambda frame: frame, {"kind": "cart"}, "no event is a cart; kinds there: purchase, view"),
        (lambda frame: frame[:0], {}, "no event is a purchase; kinds there: none"),
        (lambda frame: frame, {"period_days": 0}, "period_days: not a number of days; got 0"),
        (lambda frame: frame, {"period_days": 0.5}, "period_days: not a number of days; got 0.5"),
        (lambda frame: frame, {"end": day("2025-01-01")}, "end: the end is not after the start"),
        (lambda frame: frame, {"start": day("2027-01-01")}, "end: the end is not after the start"),
        (lambda frame: frame, {"end": pd.NaT}, "end: not a time"),
        (lambda frame: frame, {"start": day("2026-01-20"), "end": day("2026-01-30")}, "no purchase of a known"),
        (lambda frame: frame.assign(shopper_id=None), {}, "no purchase of a known shopper"),
        (lambda frame: frame.assign(timestamp=frame["timestamp"].where(frame["kind"] == "view")), {}, "row 0: time"),
        (lambda frame: frame.assign(timestamp="today"), {}, "timestamp holds no times"),
        (lambda frame: frame, {"start": day("1700-01-01"), "period_days": 1}, None),
    ],
)
def test_bad_input_is_one_clear_line(change: Any, options: dict[str, Any], message: str | None) -> None:
    if message is None:  # long, but it fits
        assert Histories.from_events(change(events()), **options).periods > 100_000
        return
    with pytest.raises(InputError, match=re.escape(message)):
        Histories.from_events(change(events()), **options)


def test_too_many_periods_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hawker.simulators.histories.MOST_CELLS", 20)
    with pytest.raises(InputError, match=r"too many shoppers and periods.*choose longer periods"):
        Histories.from_events(events(), period_days=1)
