"""Figures of forecasts, by hand."""

import math

import numpy as np
import pytest

from hawker.simulators.scoring import auc, bootstrap_figures, calibration_error, score


def test_metrics_by_hand() -> None:
    happened = np.array([False, True, False, True])
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), happened) == 1.0
    assert auc(np.array([0.1, 0.3, 0.35, 0.8]), happened) == 0.75
    assert auc(np.full(4, 0.5), happened) == 0.5
    assert math.isnan(auc(np.ones(4), np.ones(4, bool)))
    found = score(np.array([1.0, 2.0]), np.array([0.5, 0.5]), np.array([0.0, 4.0]))
    assert found == {"rmse": pytest.approx(math.sqrt(2.5)), "auc": 0.5, "ece": 0.0, "bias": -0.25}


def test_calibration_error_by_hand() -> None:
    chance = np.repeat(np.arange(10) / 10, 10)
    happened = np.concatenate([np.arange(10) < k for k in range(10)])
    assert calibration_error(chance, happened) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(chance + 0.05, happened) == pytest.approx(0.05)
    assert calibration_error(np.full(8, 0.25), np.arange(8) < 4) == pytest.approx(0.25)  # one bin


def test_intervals_are_the_basic_ones_and_absent_where_nothing_can_be_told() -> None:
    values = np.arange(100.0)
    found = bootstrap_figures(
        lambda rows: {"mean": float(values[rows].mean()), "never": math.nan},
        {"mean": "days", "never": "ratio"},
        100,
        np.random.default_rng(1),
        2000,
    )
    mean = found["mean"]
    assert (mean["value"], mean["n"], mean["unit"]) == (49.5, 100, "days")
    assert mean["low"] == pytest.approx(49.5 - 1.96 * values.std() / 10, abs=0.6)
    assert mean["high"] == pytest.approx(49.5 + 1.96 * values.std() / 10, abs=0.6)
    assert found["never"] == {"value": None, "low": None, "high": None, "n": 100, "unit": "ratio"}
