"""Lines as a shop would ship them, and what is measured of them without asking any shopper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawker.policies.briefs import SURFACES, TEMPLATE, Brief
from hawker.policies.guardrails import Guardrails, words
from hawker.policies.writer import Writer
from hawker.simulators.bazaar_parameters import BazaarParameters
from hawker.simulators.bazaar_reading import RULES, read_lines


@dataclass(frozen=True)
class Shipped:
    """What a writer said for n briefs, each as often, and what became of it.

    Attributes:
        lines: What is shown: the tidied line, or the fallback where a guardrail refused it; as many lists as briefs.
        rejected: Share of the lines that were refused.
    """

    lines: list[list[str]]
    rejected: float


def ship(writer: Writer, guardrails: Guardrails, briefs: Sequence[Brief], count: int, seed: int) -> Shipped:
    """Let a writer write ``count`` lines for each brief, and hold each against the guardrails."""
    lines, refused, n = [], 0, 0
    for brief, said in zip(briefs, writer.write(briefs, count, 1.0, seed), strict=True):
        tidy = [guardrails.tidy(text) for text in said]
        bad = [bool(guardrails.hits(line, brief)) for line in tidy]
        lines.append([guardrails.fallback(brief) if b else line for line, b in zip(tidy, bad, strict=True)])
        refused, n = refused + sum(bad), n + len(bad)
    return Shipped(lines, refused / max(n, 1))


def distinct_bigrams(lines: Sequence[str]) -> int:
    """Return how many different pairs of adjacent words the lines hold."""
    return len({pair for line in lines for pair in itertools.pairwise(words(line))})


def echoes(lines: Sequence[str], briefs: Sequence[Brief], p: BazaarParameters) -> int:
    """Return how many lines give back their brief: words of a briefing, its audience's label, or its instructions.

    Words of a briefing are those that the gold world's shoppers know; of a label, whatever it says between two commas,
    of two words or more; of instructions, any four words in a row that the item's own text does not hold.
    """
    echo = read_lines(p, lines).dislikes[:, RULES.index("echo")] > 0
    count = 0
    for line, brief, found in zip(lines, briefs, echo, strict=True):
        said = " ".join(words(line))
        parts = [" ".join(words(part)) for part in brief.audience.split(",")]
        told = _fours(words(f"{TEMPLATE['system']} {TEMPLATE['ask']} {SURFACES[brief.surface].instruction}"))
        told -= _fours(words(f"{brief.title} {brief.description}"))
        label = any(" " in part and f" {part} " in f" {said} " for part in parts)
        count += bool(found or label or told & _fours(words(line)))
    return count


def _fours(spoken: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(spoken[i : i + 4]) for i in range(len(spoken) - 3)}


def fluency(base: Writer, lines: Sequence[str]) -> float:
    """Return the mean nats per token of lines under the untouched model, as texts of their own."""
    return float(np.nanmean(base.log_likelihood(None, lines)[0]))
