"""Which rows are drawn together, and the limits that follow from the draws."""

import numpy as np
import pytest

from hawker.benchmarks.bootstrap import MAX_GROUPS, assign_groups, limits


def mean_sums(values: np.ndarray) -> np.ndarray:
    """Return the totals (n, 1, 4) of a plain mean."""
    ones = np.ones(len(values))
    return np.stack([ones, 0 * ones, values, ones], axis=1)[:, None, :]


def added(value: float) -> np.ndarray:
    return np.array([[1.0, 0.0, value, 1.0]])


def test_rows_are_their_own_groups_until_there_are_too_many():
    generator = np.random.default_rng(0)
    assert np.array_equal(assign_groups(5, None, generator), np.arange(5))
    sizes = np.bincount(assign_groups(3 * MAX_GROUPS + 7, None, generator))
    assert len(sizes) == MAX_GROUPS
    assert set(sizes) == {3, 4}


@pytest.mark.parametrize("labels", [["b", "a", "b"], [7, -1, 7], [0.5, 0.1, 0.5]])
def test_rows_of_one_label_are_one_group(labels: list[object]):
    assert assign_groups(3, np.array(labels), np.random.default_rng(0)).tolist() == [1, 0, 1]


def test_many_labels_are_gathered_whole():
    label = np.repeat(np.arange(MAX_GROUPS + 500), 2)
    group = assign_groups(len(label), label, np.random.default_rng(0)).reshape(-1, 2)
    assert (group[:, 0] == group[:, 1]).all()
    assert len(np.unique(group)) == MAX_GROUPS


def test_limits_of_a_skewed_mean_lean_to_the_long_side():
    values = np.random.default_rng(0).exponential(size=400)
    low, high = limits(mean_sums(values), added(values.min()), added(values.max()), np.random.default_rng(0))
    assert low[0] < 0 < high[0]
    assert high[0] > -1.1 * low[0]
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_the_added_rows_widen_a_log_that_holds_no_variation():
    flat = mean_sums(np.zeros(1_000))
    low, high = limits(flat, added(0.0), added(1.0), np.random.default_rng(0))
    assert low[0] == 0
    assert 1 / 1_000 < high[0] < 6 / 1_000


def test_limits_do_not_depend_on_where_zero_is():
    values = np.random.default_rng(0).normal(size=300)
    near, far = (
        limits(mean_sums(values + c), added(c - 1), added(c + 1), np.random.default_rng(0)) for c in (0.0, 1e6)
    )
    assert np.concatenate(near) == pytest.approx(np.concatenate(far), rel=1e-6)
