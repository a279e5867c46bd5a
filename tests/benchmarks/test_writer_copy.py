"""Lines as they are shipped, and what is measured of them."""

import numpy as np
import pytest

from hawker.benchmarks.writer_copy import distinct_bigrams, echoes, fluency, ship
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.simulators.bazaar_parameters import load_bazaar

BRIEF = Brief("headline", title="Rustic teapot", description="A warm farmhouse look.", audience="new, likes garden")


class Parrot:
    """Says what it was given, for every brief."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def write(self, briefs: list[Brief], count: int, temperature: float, seed: int) -> list[list[str]]:
        return [self.said[:count] for _ in briefs]

    def log_likelihood(self, briefs: None, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([-float(len(line)) if line else np.nan for line in lines]), np.ones(len(lines))


def test_what_is_refused_is_replaced_and_counted():
    guardrails = Guardrails.load()
    parrot = Parrot(['Sure, here is a headline:\n"A teapot for slow mornings"', "90% off, only today!!!"])
    shipped = ship(parrot, guardrails, [BRIEF, BRIEF], 2, 0)
    assert shipped.rejected == 0.5
    assert shipped.lines == [["A teapot for slow mornings", guardrails.fallback(BRIEF)]] * 2


def test_distinct_bigrams_by_hand():
    assert distinct_bigrams(["A warm teapot", "a warm day", "teapot", ""]) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A teapot for slow mornings", 0),
        ("A teapot for our audience", 1),  # a word of a briefing
        ("For those whom it likes garden most", 1),  # of the label
        ("New in the garden", 0),  # a single word of the label is no echo
        ("Write a headline that sells", 1),
        ("It tells you about the item and more", 1),  # the instructions
        ("A warm farmhouse look for you", 0),  # the item's own text
    ],
)
def test_echoes(line: str, expected: int):
    assert echoes([line], [BRIEF], load_bazaar()) == expected


def test_fluency_is_the_mean_over_lines_that_say_something():
    assert fluency(Parrot([]), ["ab", "", "abcd"]) == -3.0
