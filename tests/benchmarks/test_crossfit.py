"""The cross-fitted click model: what it learns, what it must not see, where it falls back."""

import numpy as np
import pytest

from hawker.benchmarks.crossfit import crossfit_q
from hawker.shop.errors import InputError


def planted(n: int = 10_000, seed: int = 0) -> tuple[dict[str, np.ndarray | int], np.ndarray]:
    """Return arguments of `crossfit_q` for a shop whose click probabilities (n, 6) are known, and those."""
    generator = np.random.default_rng(seed)
    features, action = generator.normal(3, 2, size=(n, 2)), generator.integers(6, size=n)
    position, affinity = generator.integers(3, size=n), generator.poisson(0.5, size=(n, 6)).astype(float)
    item_features = generator.normal(size=(6, 1))
    score = -3.5 + 0.3 * (features[:, :1] - 3) + 0.4 * item_features.T + 0.4 * affinity
    truth = 1 / (1 + np.exp(-(score - 0.3 * position[:, None] + np.array([0.5, 0, 0, 0, 0, -0.5]))))
    reward = (generator.random(n) < truth[np.arange(n), action]).astype(int)
    arguments = {
        "features": features, "action": action, "reward": reward, "position": position, "n_actions": 6,
        "item_features": item_features, "affinity": affinity,
    }  # fmt: skip
    return arguments, truth


def test_learns_planted_click_probabilities():
    arguments, truth = planted()
    q = crossfit_q(**arguments)
    assert q.shape == truth.shape
    assert np.corrcoef(q.ravel(), truth.ravel())[0, 1] > 0.95
    assert q.mean() == pytest.approx(truth.mean(), rel=0.1)
    assert np.array_equal(q, crossfit_q(**arguments))
    assert not np.array_equal(q, crossfit_q(**arguments, seed=1))


def test_no_row_is_predicted_by_a_model_that_saw_it():
    arguments, _ = planted(n=600)
    q = crossfit_q(**arguments)
    for row in (0, 17, 599):
        flipped = arguments["reward"].copy()
        flipped[row] = 1 - flipped[row]
        changed = np.abs(crossfit_q(**{**arguments, "reward": flipped}) - q).max(axis=1) > 1e-9
        assert not changed[row]
        assert changed.mean() == pytest.approx(2 / 3, abs=0.02)  # every other fold has learned from the row


def test_no_shopper_is_predicted_by_a_model_that_saw_them():
    arguments, _ = planted(n=600)
    shopper = np.repeat([f"s{i}" for i in range(60)], 10)
    q = crossfit_q(**arguments, cluster=shopper)
    flipped = arguments["reward"].copy()
    flipped[:10] = 1 - flipped[:10]
    changed = np.abs(crossfit_q(**{**arguments, "reward": flipped}, cluster=shopper) - q).max(axis=1) > 1e-9
    assert not changed[:10].any()
    assert changed.mean() == pytest.approx(2 / 3)
    assert (changed.reshape(60, 10).all(axis=1) | ~changed.reshape(60, 10).any(axis=1)).all()


@pytest.mark.parametrize(("click", "share"), [(0, 0.5 / 401), (1, 400.5 / 401)])
def test_one_class_falls_back_to_the_smoothed_mean(click: int, share: float):
    arguments, _ = planted(n=600)
    q = crossfit_q(**{**arguments, "reward": np.full(600, click)})
    assert q == pytest.approx(np.full((600, 6), share))


def test_one_click_in_all_is_enough_for_the_folds_that_hold_it_out():
    arguments, _ = planted(n=600)
    reward = np.zeros(600, dtype=int)
    reward[5] = 1
    q = crossfit_q(**{**arguments, "reward": reward})
    assert ((q > 0) & (q < 1)).all()
    assert q[5] == pytest.approx(np.full(6, 0.5 / 401))


def test_features_may_be_absent():
    arguments, truth = planted(n=5_000)
    bare = {"features": np.empty((5_000, 0)), "item_features": np.empty((6, 0)), "affinity": None}
    q = crossfit_q(**{**arguments, **bare})
    assert np.unique(q.round(12), axis=0).shape[0] <= 9  # three folds, three positions
    assert q.mean() == pytest.approx(truth.mean(), rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(3)}, "features: shape; got (3,), expected two dimensions, at least one row"),
        ({"features": [[0.0], [np.nan], [0]]}, "features, row 1: not finite; expected finite numbers"),
        ({"action": [0, 1]}, "action: not an index per row; got (2,), expected (3,) integers in [0, 2)"),
        ({"action": [0, 2, 1]}, "action, row 1: out of range; got 2, expected integers in [0, 2)"),
        ({"position": [0, -1, 1]}, "position, row 1: out of range; got -1, expected integers >= 0"),
        ({"reward": [0, 1]}, "reward: not a click; got (2,), expected (3,) of 0 or 1"),
        ({"reward": [0, 1, 2]}, "reward: not a click; got 2, expected (3,) of 0 or 1"),
        ({"item_features": np.zeros((3, 1))}, "item_features: shape; got (3, 1), expected (2, f), a row per item"),
        ({"affinity": np.zeros((3, 3))}, "affinity: shape; got (3, 3), expected (3, 2)"),
        ({"cluster": ["a"]}, "cluster: shape; got (1,), expected (3,), one label per row"),
        ({"cluster": ["a", "a", "b"]}, "crossfit_q: folds; got 3, expected 2 .. 2 (rows or shoppers)"),
        ({"folds": 1}, "crossfit_q: folds; got 1, expected 2 .. 3 (rows or shoppers)"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str):
    good = {
        "features": np.zeros((3, 1)), "action": [0, 1, 1], "reward": [0, 1, 0], "position": [0, 0, 0],
        "n_actions": 2, "item_features": np.zeros((2, 1)),
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        crossfit_q(**{**good, **change})
    assert str(caught.value) == message
