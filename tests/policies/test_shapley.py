"""Shapley values against their definition: the average over every order in which players may join."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.policies.shapley import MOST, coalitions, shapley_values


def by_orders(worth: np.ndarray, players: int) -> np.ndarray:
    found = np.zeros(players)
    for order in itertools.permutations(range(players)):
        joined = 0
        for player in order:
            found[player] += worth[joined | 1 << player] - worth[joined]
            joined |= 1 << player
    return found / math.factorial(players)


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_values_are_those_of_the_definition(players):
    worth = np.random.default_rng(players).normal(size=2**players)
    np.testing.assert_allclose(shapley_values(worth), by_orders(worth, players), atol=1e-12)


def test_the_glove_game():
    """One left glove, two right ones, a pair is worth 1: Shapley's own kind of example, by hand (2/3, 1/6, 1/6)."""
    there = coalitions(3)
    worth = (there[:, 0] & (there[:, 1] | there[:, 2])).astype(float)
    np.testing.assert_allclose(shapley_values(worth), [2 / 3, 1 / 6, 1 / 6])


@given(st.integers(0, 6), st.integers(0, 2**31))
def test_values_sum_to_what_is_gained_and_linear_games_give_the_weights(players, seed):
    generator = np.random.default_rng(seed)
    worth = generator.normal(size=(3, 2**players))
    np.testing.assert_allclose(shapley_values(worth).sum(1), worth[:, -1] - worth[:, 0], atol=1e-9)
    weights = generator.normal(size=players)
    np.testing.assert_allclose(shapley_values(coalitions(players) @ weights), weights, atol=1e-9)


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_who_changes_nothing_gets_nothing_and_equals_get_the_same(players, seed):
    generator = np.random.default_rng(seed)
    there = coalitions(players + 1)
    worth = generator.normal(size=2**players)[(there[:, :-1] << np.arange(players)).sum(1)]  # the last one is idle
    assert abs(shapley_values(worth)[-1]) < 1e-12
    alike = generator.normal(size=players + 2)[there.sum(1)]  # only how many there are counts
    values = shapley_values(alike)
    np.testing.assert_allclose(values, values[0], atol=1e-9)


@pytest.mark.parametrize(("call", "line"), [
    (lambda: coalitions(MOST + 1), "13 players, must be from 0 to 12"),
    (lambda: coalitions(-1), "-1 players"),
    (lambda: shapley_values(np.zeros((2, 6))), "6 coalitions, must be a power of 2"),
])  # fmt: skip
def test_other_games_are_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call()
