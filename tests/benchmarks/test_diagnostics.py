"""Diagnostics of a log against a strategy, and when they forbid an estimate."""

import numpy as np
import pytest

from hawker.benchmarks.diagnostics import diagnose, effective_rows, refusal
from hawker.shop.errors import InputError


def test_four_weights_by_hand():
    found = diagnose([0.0, 1.0, 1.0, 2.0])
    assert found.n == 4
    assert found.ess == pytest.approx(16 / 6)
    assert found.largest_weight_share == pytest.approx(0.5)
    assert found.mean_weight == pytest.approx(1.0)
    assert found.mean_weight_error == pytest.approx((2 / 3) ** 0.5 / 2)  # squared deviations 1 + 0 + 0 + 1, over 3
    assert found.unsupported_mass is None


@pytest.mark.parametrize(
    ("weight", "ess"), [([1.0] * 7, 7), ([0.0, 5.0, 0.0], 1), ([0.0, 0.0], 0), ([1e200, 1e200], 2)]
)
def test_effective_rows(weight: list[float], ess: float):
    assert effective_rows(np.array(weight)) == pytest.approx(ess)


def test_mass_without_support():
    target = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    everywhere = diagnose([1.0, 1.0], target, [True, True, False])
    assert everywhere.unsupported_mass == pytest.approx((0.2 + 0.8) / 2)
    by_row = diagnose([1.0, 1.0], target, [[True, False, False], [True, True, True]])
    assert by_row.unsupported_mass == pytest.approx((0.5 + 0) / 2)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.ones(100), None),
        (np.ones(99), "the effective sample size is 99.0 of 99 rows, under 100"),
        (np.zeros(1_000), "the effective sample size is 0.0 of 1000 rows, under 100"),
        (np.r_[np.ones(90_000), 9_000.0], None),  # 9.1% of the weight on one row, 121 effective rows
        (
            np.r_[np.ones(100_000), 12_000.0],
            "the effective sample size is 87.1 of 100001 rows, under 100 and "
            "one row holds 10.7% of the weight, over 10%",
        ),
    ],
)
def test_refusal(weight: np.ndarray, reason: str | None):
    assert refusal(diagnose(weight)) == reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "weight: no weights to diagnose; got (0,), expected shape (n,), n >= 1"),
        (([1.0, -2.0],), "weight, row 1: not a weight; got -2.0, expected a finite number >= 0"),
        (([np.nan],), "weight, row 0: not a weight; got nan, expected a finite number >= 0"),
        (([1.0], None, [True]), "diagnose: logged_support is given without target; expected both"),
        (([1.0], [[0.5, 0.5]], [True]), "logged_support: shape; got (1,), expected (2,) or (1, 2)"),
        (([1.0, 1.0], [[0.5, 0.5]], [True, True]), "target: shape; got (1, 2), expected (2, n_actions)"),
    ],
)
def test_bad_input_is_named(arguments: tuple, message: str):
    with pytest.raises(InputError) as caught:
        diagnose(*arguments)
    assert str(caught.value) == message
