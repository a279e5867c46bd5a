"""When arms may be called different: the models' interval; the rest is tested with the tests that use it."""

import math

import numpy as np
import pytest

from hawker.benchmarks.comparison import judged_by, model_interval


def test_the_model_interval_by_hand() -> None:
    mean, low, high = model_interval(np.array([0.10, 0.20, 0.30, 0.00, 0.15]))
    half = 2.776445 * math.sqrt(0.0500 / 4) * math.sqrt(6 / 5)  # squared deviations from 0.15 sum to 0.05
    assert (mean, low, high) == pytest.approx((0.15, 0.15 - half, 0.15 + half), rel=1e-6)
    assert model_interval(np.array([0.1]))[0] == 0.1
    assert math.isnan(model_interval(np.array([0.1]))[1])


def test_the_model_interval_covers_the_truth() -> None:
    """Logs give a fit around the truth, bootstraps give members around the fit: 95% of intervals hold the truth."""
    generator = np.random.default_rng(0)
    fits = generator.normal(0.1, 0.05, 5_000)
    members = generator.normal(fits[:, None], 0.05, (5_000, 5))
    held = [low <= 0.1 <= high for _, low, high in map(model_interval, members)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("error", [0.02, 0.05, 0.2])
def test_errors_of_measurement_make_it_wider_than_it_need_be(error: float) -> None:
    generator = np.random.default_rng(1)
    fits = generator.normal(0.1, 0.05, 5_000)
    members = generator.normal(fits[:, None], 0.05, (5_000, 5))
    held = [low <= 0.1 <= high for _, low, high in map(model_interval, generator.normal(members, error))]
    assert np.mean(held) >= 0.945


def test_who_judged_is_said() -> None:
    assert "truth is known" in judged_by(None)
    assert "5 models: a simulation" in judged_by(5)
