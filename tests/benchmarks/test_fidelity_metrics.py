from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.benchmarks.fidelity_metrics import (
    auc_within,
    by_shopper,
    distance,
    distance_figure,
    explained,
    hazard_losses,
    losses,
    reliability,
    returned_by,
    tercile_means,
    within_correlation,
    worst_error,
)


def test_losses_are_those_of_the_events() -> None:
    found = losses(np.array([0.25, 0.25, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert found[:2] == pytest.approx([math.log(4), math.log(4 / 3)])
    assert 0 < found[2] < 1e-5


def test_a_wait_counts_the_days_that_passed_and_the_return() -> None:
    hazard = np.tile([0.1, 0.2, 0.5], (4, 1))
    wait = np.array([1.0, 3.0, 3.0, 1.0])
    returned = np.array([1.0, 1.0, 0.0, 0.0])
    expected = [
        -math.log(0.1),
        -math.log(0.9 * 0.8 * 0.5),
        -math.log(0.9 * 0.8),  # day 3 has not ended: not counted
        0.0,
    ]
    assert hazard_losses(hazard, wait, returned) == pytest.approx(expected)


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6))
def test_waits_are_a_distribution(hazard: list[float]) -> None:
    days = len(hazard)
    table = np.tile(hazard, (days + 1, 1))
    wait = np.append(np.arange(1, days + 1), days + 1).astype(float)
    returned = np.append(np.ones(days), 0.0)
    assert np.exp(-hazard_losses(table, wait, returned)).sum() == pytest.approx(1.0)


def test_explained_is_a_ratio_of_totals() -> None:
    generator = np.random.default_rng(0)
    constant, truth = np.array([3.0, 5.0, 4.0]), np.array([1.0, 2.0, 3.0])
    assert explained(constant, constant, truth, generator)["value"] == 0.0
    perfect = explained(constant, truth, truth, generator)
    assert (perfect["value"], perfect["low"], perfect["high"]) == (1.0, 1.0, 1.0)
    half = explained(constant, np.array([3.0, 4.0, 2.0]), truth, generator)
    assert half["value"] == pytest.approx(3 / 6)
    assert half["low"] is not None
    assert half["high"] is not None
    assert half["low"] <= 0.5 <= half["high"]


def test_sums_by_shopper_keep_those_without_events() -> None:
    assert by_shopper(np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), 4).tolist() == [2.0, 0.0, 5.0, 0.0]


def test_reliability_has_deciles_and_the_tenths_that_hold_enough() -> None:
    predicted = np.concatenate([np.full(990, 0.05), np.full(10, 0.55)])
    truth = np.concatenate([np.full(990, 0.04), np.full(10, 0.5)])
    observed = np.concatenate([np.zeros(990), np.ones(10)])
    bins = reliability(predicted, truth, observed)
    assert [entry["kind"] for entry in bins] == ["count"] * 10 + ["width"] * 2
    assert bins[0]["error"] == pytest.approx(0.05 / 0.04 - 1)
    assert bins[10]["share"] == pytest.approx(0.99)
    assert (bins[11]["predicted"], bins[11]["observed"]) == (pytest.approx(0.55), 1.0)
    assert worst_error(bins) == pytest.approx(0.25)
    assert len(reliability(np.append(predicted, np.full(9, 0.95)), np.full(1009, 0.1), np.zeros(1009))) == 11


def test_correlation_within_rows_ignores_their_level() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random((30, 5))
    assert within_correlation(2 * truth + 10 * generator.random((30, 1)), truth) == pytest.approx(1.0)
    assert within_correlation(-truth, truth) == pytest.approx(-1.0)
    # (-1, 0, 1) against (-1, 1, 0): 1 / sqrt(2 * 2)
    assert within_correlation(np.array([[0.0, 1.0, 2.0]]), np.array([[3.0, 5.0, 4.0]])) == pytest.approx(0.5)


def test_returns_add_up_over_days() -> None:
    assert returned_by(np.array([[0.5, 0.5, 0.0]])).tolist() == [[0.5, 0.75, 0.75]]


def test_terciles_go_from_low_to_high() -> None:
    values = np.array([[6.0], [1.0], [2.0], [5.0], [3.0], [4.0]])
    assert [m.tolist() for m in tercile_means(values, values[:, 0])] == [[1.5], [3.5], [5.5]]


def test_distance_of_counts() -> None:
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    assert distance(a, b) == pytest.approx(0.5)  # at 1: 1.0 against 0.5
    assert distance(a, a[::-1]) == 0.0
    assert distance(a, b, np.array([1.0, 0.0, 1.0, 1.0])) == pytest.approx(0.5)
    found = distance_figure(a, np.arange(4), b, np.arange(4), np.random.default_rng(0), "x")
    assert found["value"] == pytest.approx(0.5)
    assert found["low"] is not None
    assert found["high"] is not None
    assert 0 <= found["low"] <= found["high"] <= 1


def test_auc_within_position_ignores_the_positions() -> None:
    probability = np.array([0.9, 0.1, 0.5, 0.1])
    position = np.array([0, 0, 1, 1])
    # At a position the pair is ordered rightly with odds p(1-q) to q(1-p).
    right = [0.9 * 0.9, 0.5 * 0.9]
    ties = [0.9 * 0.1 + 0.1 * 0.9, 0.25 + 0.09]  # an item against itself
    clicks, rest = [1.0, 0.6], [1.0, 1.4]
    expected = np.mean([(r + t / 2) / (c * n) for r, t, c, n in zip(right, ties, clicks, rest, strict=True)])
    assert auc_within(np.array([2.0, 1.0, 20.0, 10.0]), probability, position) == pytest.approx(expected)
