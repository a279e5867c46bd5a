"""Who goes into which part, and which rows a bootstrap leaves out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.errors import InputError
from hawker.simulators.split import bootstrap_shoppers, shopper_codes, three_way

SHARES = (0.6, 0.2, 0.2)


def log(shopper_id: list[str | None]) -> pd.DataFrame:
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(shopper_id)), unit="min")
    visits = np.arange(len(shopper_id))
    return pd.DataFrame({"visit_id": visits, "shopper_id": pd.Series(shopper_id, dtype="str"), "timestamp": times})


@given(
    shopper=st.lists(st.integers(0, 30), min_size=5, max_size=200).filter(lambda ids: len(set(ids)) >= 5),
    seed=st.integers(0, 1000),
)
def test_shoppers_are_dealt_out_whole(shopper, seed):
    part, unit = three_way(log([f"s{i}" for i in shopper]), SHARES, seed)
    assert unit == "shopper"
    parts = pd.Series(part).groupby(np.array(shopper))
    assert (parts.nunique() == 1).all()
    counts = np.bincount(parts.first(), minlength=3)
    assert np.abs(counts - np.array(SHARES) * counts.sum()).max() <= 1


def test_a_shopper_stays_in_their_part_whatever_the_order_of_the_rows():
    one = log([f"s{i % 20}" for i in range(200)])
    other = one.iloc[::-1].reset_index(drop=True)
    for seed in range(5):
        assert (three_way(one, SHARES, seed)[0] == three_way(other, SHARES, seed)[0][::-1]).all()
    assert (three_way(one, SHARES, 0)[0] != three_way(one, SHARES, 1)[0]).any()


def test_visits_of_unknown_shoppers_stay_together():
    some_known = log(["b", None, "a", None, None, "b"]).assign(visit_id=[7, 5, 5, 5, 6, 8])
    assert shopper_codes(some_known).tolist() == [1, 2, 0, 2, 3, 1]
    part, unit = three_way(pd.concat([some_known] * 5, ignore_index=True), SHARES, 0)
    assert unit == "shopper"  # no shopper that is known is ever shared between parts
    none_known = log([None] * 12).assign(visit_id=np.repeat([3, 1, 2, 9, 8, 7], 2))
    part, unit = three_way(none_known, (0.5, 0.25, 0.25), 0)
    assert (unit, part.tolist()) == ("time", [0] * 6 + [1] * 4 + [2] * 2)  # 6 visits, none of them cut


@given(n=st.integers(5, 300))
def test_time_is_cut_into_three_stretches(n):
    part, unit = three_way(log([None] * n), SHARES, 0)
    assert unit == "time"
    assert (np.diff(part) >= 0).all()
    assert np.abs(np.bincount(part) - np.array(SHARES) * n).max() <= 1


def test_ten_rows_are_cut_six_two_two():
    assert three_way(log([None] * 10), SHARES, 0)[0].tolist() == [0] * 6 + [1] * 2 + [2] * 2


@pytest.mark.parametrize(
    ("ids", "shares", "message"),
    [
        ([None] * 9, (0.5, 0.2, 0.2), "shares: bad shares; got (0.5, 0.2, 0.2), expected three positive numbers"),
        ([None] * 9, (1.2, -0.1, -0.1), "bad shares"),
        ([None] * 9, (1.0, 0.0, 0.0), "bad shares"),
        ([None] * 9, (0.5, 0.5), "bad shares"),
        ([None] * 9, (float("nan"), 0.5, 0.5), "bad shares"),
        ([None] * 3, SHARES, "impressions: too few visits to split in three; got 3"),
        (["a", "b", "c"] * 50, SHARES, "impressions: too few shoppers to split in three; got 3"),
        ([], SHARES, "too few visits to split in three; got 0"),
    ],
)
def test_what_cannot_be_split_is_refused(ids, shares, message):
    with pytest.raises(InputError) as caught:
        three_way(log(ids), shares, 0)
    assert message in str(caught.value)


def test_bootstrap_draws_shoppers_whole():
    shopper = np.random.default_rng(1).integers(0, 40, 500)
    drawn, left_out = bootstrap_shoppers(shopper_codes(log([f"s{i}" for i in shopper])), np.random.default_rng(0))
    times = np.bincount(drawn, minlength=500)
    assert (pd.Series(times).groupby(shopper).nunique() == 1).all()
    assert times[np.unique(shopper, return_index=True)[1]].sum() == 40, "as many shoppers as there are"
    assert np.array_equal(left_out, np.flatnonzero(times == 0))


def test_bootstrap_draws_rows_where_shoppers_are_unknown():
    owner = shopper_codes(log([None] * 10_000))
    drawn, left_out = bootstrap_shoppers(owner, np.random.default_rng(0))
    assert len(drawn) == 10_000
    assert not set(drawn) & set(left_out)
    assert len(set(drawn)) + len(left_out) == 10_000
    assert len(left_out) / 10_000 == pytest.approx(np.exp(-1), abs=0.015)
    assert np.array_equal(drawn, bootstrap_shoppers(owner, np.random.default_rng(0))[0])


def test_bootstrap_of_one_shopper_leaves_nobody_out():
    drawn, left_out = bootstrap_shoppers(np.zeros(3, np.int64), np.random.default_rng(0))
    assert (drawn.tolist(), left_out.tolist()) == ([0, 1, 2], [])


def test_timelines_are_drawn_as_their_shoppers_are():
    """Units of a log with a timeline are shoppers, in whatever order their owners' codes stand."""
    owner = np.array([4, 0, 2, 1, 3])
    drawn, left_out = bootstrap_shoppers(owner, np.random.default_rng(0))
    times = np.bincount(np.random.default_rng(0).integers(5, size=5), minlength=5)
    assert np.bincount(drawn, minlength=5).tolist() == times[owner].tolist()
    assert set(left_out) == {unit for unit, who in enumerate(owner) if times[who] == 0}
