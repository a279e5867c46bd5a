"""Filling the copy bank: a writer's lines, those that keep the rules, with what learned shoppers make of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from hawker.agents.copy_reward import CopyReward
from hawker.agents.writer_data import Assignment, item_brief
from hawker.policies.copy_bank import KEY, Candidate, ChoiceConfig, CopyBank, Floats, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import ROWS, Writer
from hawker.shop.errors import InputError, did_you_mean

SCORED = 256
"""Lines scored at once: each meets dozens of pages, in each of the members."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, "written" or "scored", and of how many lines of how many."""


def every_assignment(
    items: pd.DataFrame,
    surface: str,
    audiences: Iterable[str],
    discounts: Iterable[float],
    voice: tuple[str, ...] = (),
) -> list[Assignment]:
    """Return every row of the items table for every audience at every discount, discounts that differ in nothing once.

    Raises:
        InputError: An unknown surface, or a discount that is no share.
    """
    told = [(audience, discount) for audience in audiences for discount in sorted(set(discounts))]
    return [
        Assignment(str(item["item_id"]), item_brief(item, surface, audience, discount, voice))
        for item in items.to_dict("records")
        for audience, discount in told
    ]


def fill_bank(
    writer: Writer,
    guardrails: Guardrails,
    assignments: Sequence[Assignment],
    reward: CopyReward,
    *,
    count: int,
    temperature: float,
    seed: int,
    choice: ChoiceConfig | None = None,
    progress: Progress = lambda what, done, total: None,
) -> CopyBank:
    """Let a writer write for what is shown, and make a bank of what keeps the rules.

    Args:
        writer: Who writes.
        guardrails: The rules.
        assignments: What to write for; one that comes twice is written for once.
        reward: What the shoppers make of lines, in units of its reward.
        count: Lines to draw for each assignment.
        temperature: As in ``Writer.write``.
        seed: Decides what is drawn.
        choice: How the bank's lines will be chosen.
        progress: Told of every batch.

    Raises:
        InputError: As in ``Writer.write``, or nobody in the log is of an audience that is to be written for.
    """
    wanted = list(dict.fromkeys(assignments))
    for audience in dict.fromkeys(each.brief.audience for each in wanted):
        if audience and audience not in reward.labels:  # not after hours of writing
            remedy = did_you_mean(audience, reward.labels)
            raise InputError("no page of the log has this audience", where="copy bank", got=audience, remedy=remedy)
    said = _written(writer, wanted, count, temperature, seed, progress)

    def scored(
        item_ids: Sequence[str], audiences: Sequence[str], discounts: Sequence[float], lines: Sequence[str]
    ) -> Floats:
        parts = []
        for start in range(0, len(lines), SCORED):
            some = slice(start, start + SCORED)
            found = reward.by_member(item_ids[some], audiences[some], discounts[some], lines[some])
            parts.append(found["total"])
            progress("scored", min(start + SCORED, len(lines)), len(lines))
        return np.concatenate(parts, 1)

    return build_bank(said, scored, guardrails, writer.digest, choice)


def expected_gain(bank: CopyBank) -> float | None:
    """Return what a line of the bank is expected to earn more than the template in its place, None for no lines.

    Keys count alike, the lines of a key as often as they are chosen; in units of the reward they were scored with.
    """
    if not len(bank):
        return None
    table = bank.table.assign(gain=bank.table["effect"] * bank.propensity)
    return float(table.groupby(KEY)["gain"].sum().mean())


def _written(
    writer: Writer, assignments: Sequence[Assignment], count: int, temperature: float, seed: int, progress: Progress
) -> list[Candidate]:
    """Return ``count`` lines for each assignment, written batch by batch.

    A batch holds prompts of like length, so that little of it is padding, and those of an item stand together, so that
    most of each prompt is read once.
    """
    size, total = max(ROWS // max(count, 1), 1), count * len(assignments)
    order = sorted(range(len(assignments)), key=lambda i: _length(assignments[i]))
    seeds = np.random.SeedSequence(seed).generate_state(-(-len(order) // size))
    candidates: dict[int, list[Candidate]] = {}
    for batch, own in enumerate(seeds.tolist()):
        rows = order[batch * size : (batch + 1) * size]
        said = writer.write([assignments[i].brief for i in rows], count, temperature, own)
        for i, lines in zip(rows, said, strict=True):
            candidates[i] = [Candidate(assignments[i].item_id, assignments[i].brief, line) for line in lines]
        progress("written", count * min((batch + 1) * size, len(order)), total)
    return [each for i in range(len(assignments)) for each in candidates[i]]


def _length(assignment: Assignment) -> tuple[int, str, int]:
    """Return what batches are sorted by: the length of the item's own text, the item, the rest of the prompt."""
    brief = assignment.brief
    own = len(brief.title) + len(brief.category) + len(brief.description)
    return own, assignment.item_id, len(brief.audience) + brief.percent
