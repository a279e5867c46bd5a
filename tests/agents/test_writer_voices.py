"""Rows with a voice: what the untouched model answers after five logged lines."""

from collections.abc import Sequence
from typing import Any

import pytest

from hawker.agents.writer_data import LoggedLine
from hawker.agents.writer_voices import BRIEFS, EACH, FIVE, voiced_answers
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails

RULES = Guardrails.load()
POT, HAT = Brief("headline", title="Tea pot"), Brief("headline", title="Wool hat")
SAID = (
    "made by hand",
    "makes mondays better",
    "built to last",
    "kind to the planet",
    "our bestseller",
    "say yes to fun",
)
LINES = [LoggedLine(brief, line, 10, 1.0, 1.0, 1.0) for brief in (POT, HAT) for line in SAID]
REFUSED = LoggedLine(POT, "OMG click now!!!", 10, 5.0, 1.0, 5.0)


class Untouched:
    """Plays the model before it is tuned: one answer that may be shown, one too long, one refused, one from a voice."""

    def __init__(self, fine: str = " Slow mornings, warm hands ") -> None:
        self.fine, self.asked = fine, list[Brief]()

    def write(self, briefs: Sequence[Brief], count: int, temperature: float, seed: int) -> list[list[str]]:
        assert (count, temperature) == (EACH, 1.0)
        self.asked += briefs
        return [[self.fine, "long " * 40, "You won't believe this!!!", brief.voice[0]] for brief in briefs]


def voiced(lines: Sequence[LoggedLine] = LINES, n: int = 6, seed: int = 0, who: Any = None) -> Any:
    return voiced_answers(who or Untouched(), lines, RULES, n, seed)


def test_five_logged_lines_and_an_answer_that_may_be_shown():
    found = voiced([*LINES, REFUSED])
    assert len(found) == 6
    for brief, line in found:
        assert line == "Slow mornings, warm hands"
        assert len(set(brief.voice)) == FIVE
        assert set(brief.voice) <= set(SAID)  # what guardrails refuse is in no voice
        assert brief.title in {"Tea pot", "Wool hat"}
    assert len({brief.voice for brief, _ in found}) > 1


def test_the_seed_decides():
    assert voiced(seed=3) == voiced(seed=3)
    assert voiced(seed=3) != voiced(seed=4)


def test_more_rows_than_briefs_are_asked_for():
    who = Untouched()
    assert len(voiced(n=5 * BRIEFS, who=who)) == 5 * BRIEFS
    assert len(who.asked) == BRIEFS


@pytest.mark.parametrize(
    ("lines", "n", "who"),
    [(LINES, 0, None), (LINES[:4], 6, None), (LINES, 6, Untouched("Shocking secret revealed"))],
)
def test_none(lines: list[LoggedLine], n: int, who: Any):
    assert voiced(lines, n, who=who) == []
