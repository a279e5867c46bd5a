"""Drafts: what a writer says, tidied and held against the rules, with a line to fall back on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Writer


class Drafts(NamedTuple):
    """Lines that may be shown.

    Attributes:
        lines: For each brief its distinct lines, in the order they were drawn; the fallback alone where none passed.
        fell_back: For each brief whether its line is the fallback.
        drawn: Lines that were drawn in all.
        rejected: How many of them broke each rule; one line may break several.
        refused: How many of them broke any.
    """

    lines: list[list[str]]
    fell_back: list[bool]
    drawn: int
    rejected: Counter[str]
    refused: int


def draft(
    writer: Writer, guardrails: Guardrails, briefs: Sequence[Brief], count: int, temperature: float, seed: int
) -> Drafts:
    """Draw ``count`` lines for each brief and keep those that break no rule.

    Args:
        writer: Who writes.
        guardrails: The rules.
        briefs: What to write for.
        count: Lines to draw for each.
        temperature: As in ``Writer.write``.
        seed: Decides what is drawn.

    Raises:
        InputError: As in ``Writer.write``.
    """
    said = writer.write(briefs, count, temperature, seed)
    kept: list[list[str]] = []
    rejected: Counter[str] = Counter()
    refused = 0
    for brief, texts in zip(briefs, said, strict=True):
        passed = []
        for line in map(guardrails.tidy, texts):
            rules = [hit.rule for hit in guardrails.hits(line, brief)]
            rejected.update(rules)
            refused += bool(rules)
            if not rules:
                passed.append(line)
        kept.append(list(dict.fromkeys(passed)))
    fell_back = [not lines for lines in kept]
    lines = [lines or [guardrails.fallback(brief)] for lines, brief in zip(kept, briefs, strict=True)]
    return Drafts(lines, fell_back, sum(map(len, said)), rejected, refused)
