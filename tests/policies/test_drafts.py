from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hawker.policies.briefs import Brief
from hawker.policies.drafts import draft
from hawker.policies.guardrails import Guardrails

POT, HAT = Brief("headline", title="Tea pot"), Brief("headline", title="Wool hat")


def says(*lines: Sequence[str]) -> Any:
    """A writer who says what it is told to, whatever the briefs."""
    return SimpleNamespace(write=lambda briefs, count, temperature, seed: [list(some) for some in lines])


def test_what_breaks_a_rule_is_counted_and_not_kept():
    rules = Guardrails.load()
    writer = says(
        ['"A pot for slow mornings"', "Half price, 50% off today!!", "A pot for slow mornings\nIt is round."],
        ["", "BUY NOW BUY NOW", "Free hats"],
    )
    drafts = draft(writer, rules, [POT, HAT], 3, 1.0, 0)
    assert drafts.lines == [["A pot for slow mornings"], [rules.fallback(HAT)]]
    assert drafts.fell_back == [False, True]
    assert (drafts.drawn, drafts.refused) == (6, 4)
    assert {"discount", "shouting", "empty", "free"} <= set(drafts.rejected)
    assert not rules.hits(drafts.lines[1][0], HAT)


def test_nothing_to_write():
    drafts = draft(says(), Guardrails.load(), [], 3, 1.0, 0)
    assert (drafts.lines, drafts.drawn, drafts.refused) == ([], 0, 0)
