"""Rows that keep a writer's ear for a brand voice while it is tuned on logged copy.

A shop's log knows one voice, and a writer tuned on it alone says the same whatever lines stand there as earlier
answers. So some rows of supervised fine-tuning show five logged lines as earlier answers, and what the untouched model
answers after them: where there is a voice, the writer goes on to do as the untouched model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hawker.agents.writer_data import LoggedLine
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Writer

FIVE = 5
"""Logged lines that stand for a voice."""

BRIEFS = 48
"""Briefs that the untouched model is asked to answer, at most."""

EACH = 4
"""Its answers to each; guardrails refuse many, mostly for their length."""


def voiced_answers(
    untouched: Writer, lines: Sequence[LoggedLine], guardrails: Guardrails, n: int, seed: int
) -> list[tuple[Brief, str]]:
    """Return n briefs with a voice and what the untouched model answers, drawn evenly from those that may be shown.

    Args:
        untouched: The model before it is tuned.
        lines: What the log has shown; briefs are drawn from them, and so are five distinct lines for each.
        guardrails: Lines that they refuse are in no voice, and no answers.
        n: How many.
        seed: Decides what is drawn.

    Returns:
        As many as were wanted, some of them more than once; none where every answer is refused, or where the log shows
        fewer than five lines that may be shown.
    """
    generator = np.random.default_rng(seed)
    stock = sorted({each.line for each in lines if not guardrails.hits(each.line, each.brief)})
    if n < 1 or len(stock) < FIVE:
        return []
    briefs = [
        replace(lines[i].brief, voice=tuple(stock[k] for k in generator.choice(len(stock), FIVE, replace=False)))
        for i in generator.choice(len(lines), min(n, BRIEFS))
    ]
    said = untouched.write(briefs, EACH, 1.0, seed)
    tidy = [(brief, guardrails.tidy(text)) for brief, texts in zip(briefs, said, strict=True) for text in texts]
    fit = [(brief, line) for brief, line in tidy if not guardrails.hits(line, brief) and line not in brief.voice]
    return [fit[i] for i in generator.integers(len(fit), size=n)] if fit else []
