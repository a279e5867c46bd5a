"""What a line is worth while the writer is optimised: the learned shoppers' answer, people's preference, and floors.

Optimising a writer against learned shoppers finds what they are wrong about: lines that are no language, one line for
everything, the prompt given back. Hence the floors: they pay nothing, and cost where a line is worse copy than those
of the writer it began as.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hawker.agents.writer_config import RewardedConfig
from hawker.agents.writer_data import Assignment
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails, words
from hawker.policies.writer import Writer, prompt_of
from hawker.shop.errors import InputError

Floats = npt.NDArray[np.float64]

Answers = Callable[[Sequence[str], Sequence[str], Sequence[float], Sequence[str]], Mapping[str, npt.NDArray[Any]]]
"""The learned shoppers: (item ids, audiences, discounts, lines) to the expected response to each line by component,
shape (n,) each; ``total`` is what counts (`hawker.agents.copy_reward.CopyReward`)."""


class Preferences(Protocol):
    """A model of preferences (`hawker.agents.writer_prefs.PreferenceModel`)."""

    @property
    def digest(self) -> str:
        """What its scores depend on."""
        ...

    def score(self, prompts: Sequence[Any], lines: Sequence[str]) -> Floats:
        """Return the score of each line as an answer to its prompt, shape (n,)."""
        ...


TAIL = 0.1
"""Share of the first writer's lines that lie beyond the floors. Held against the mean, half of them would be punished,
and what is but ordinary variation between lines would count for more than what shoppers say."""


@dataclass(frozen=True)
class Level:
    """What the lines of the first writer are like.

    Attributes:
        spread: Standard deviation of the shoppers' total among lines for one brief.
        preference: Standard deviation of the preference model's score among lines for one brief.
        fluency: Nats per token under the untouched model that all but ``TAIL`` of them reach.
        repeated: ``repetition`` that all but ``TAIL`` of them stay below.
    """

    spread: float
    preference: float
    fluency: float
    repeated: float


def _silent(name: str, value: float) -> None:
    """Log nothing."""


class WriterReward:
    """The reward of lines, as trl's GRPOTrainer calls it; every part is logged by itself.

    The reward of a line is the shoppers' total, in units of ``Level.spread`` and relative to its group, plus the
    preference likewise, less penalties: for each nat a token below the least fluent of the first writer's lines; for
    pairs of words that other lines of the batch use too, beyond its most repeated ones (``TAIL`` aside); and for a line
    that a guardrail refuses or that did not end, which also gains nothing from shoppers and preference.

    Args:
        assignments: What there is to write for; the dataset's column ``row`` counts them.
        answers: The learned shoppers.
        guardrails: Rules of copy.
        base: The untouched model, the judge of fluency.
        ends: Tokens that end a line.
        config: Weights.
        preferences: A model of preferences.
    """

    __name__ = "writer"  # trl's name for it in logs

    def __init__(
        self,
        assignments: Sequence[Assignment],
        answers: Answers,
        guardrails: Guardrails,
        base: Writer,
        ends: Sequence[int],
        config: RewardedConfig,
        preferences: Preferences | None = None,
    ) -> None:
        self._assignments, self._answers, self._guardrails, self._base = assignments, answers, guardrails, base
        self._ends, self._config, self._preferences = frozenset(ends), config, preferences
        self._level = Level(1.0, 1.0, 0.0, 0.0)

    def calibrate(self, rows: Sequence[int], said: Sequence[Sequence[str]]) -> Level:
        """Take the lines of the first writer as the level to hold others against, and return it.

        Args:
            rows: Assignments.
            said: Lines for each.

        Raises:
            InputError: The shoppers' answers are not finite.
        """
        flat = [row for row, lines in zip(rows, said, strict=True) for _ in lines]
        lines = [self._guardrails.tidy(text) for texts in said for text in texts]
        total, preference = self._responses(flat, lines, _silent)
        if not np.isfinite(total).all():
            raise InputError("the shoppers' answers are not finite", where="writer", remedy="fit them anew")
        nats = self._nats(lines)
        briefs = [self._assignments[row].brief for row in flat]
        size = self._config.batch  # repetition depends on how many lines there are
        repeated = [
            repetition(lines[i : i + size], briefs[i : i + size]) for i in range(0, max(len(lines) - size + 1, 1), size)
        ]
        self._level = Level(
            _within(total, flat),
            _within(preference, flat),
            float(np.nanquantile(nats, TAIL)) if np.isfinite(nats).any() else 0.0,
            float(np.quantile(np.concatenate(repeated), 1 - TAIL)),
        )
        return self._level

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """Return the reward of each completion, None where the shoppers' answer is not finite.

        Args:
            prompts: What was asked; not read, since ``row`` says it.
            completions: What was said: text, or chat messages.
            completion_ids: Its tokens, the end included.
            row: The assignment of each.
            log_metric: Called with the name and the batch's mean of each part.

        Raises:
            InputError: No answer of the batch is finite.
        """
        started = time.perf_counter()
        texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
        lines = [self._guardrails.tidy(text) for text in texts]
        ended = np.array([bool(ids) and ids[-1] in self._ends for ids in completion_ids])
        rewards = self.of_lines(list(row), lines, ended, log_metric)
        log_metric("seconds/reward", time.perf_counter() - started)
        return rewards

    def of_lines(
        self,
        rows: Sequence[int],
        lines: Sequence[str],
        ended: npt.NDArray[np.bool_],
        log: Callable[[str, float], None] = _silent,
    ) -> list[float | None]:
        """Return the reward of each line, None where the shoppers' answer is not finite.

        Args:
            rows: The assignment of each.
            lines: The lines, tidied.
            ended: Which of them have ended, shape (n,).
            log: Called with the name and the mean of each part.

        Raises:
            InputError: No answer is finite.
        """
        config, level = self._config, self._level
        briefs = [self._assignments[row].brief for row in rows]
        total, preference = self._responses(rows, lines, log)
        known = np.isfinite(total)
        log("reward/unscored", float((~known).mean()))
        if not known.any():
            remedy = "fit the shoppers anew; the last checkpoint is as it was"
            raise InputError("no answer of the shoppers is finite", where="writer", remedy=remedy)
        found = [
            [hit.rule for hit in self._guardrails.hits(line, brief)] for line, brief in zip(lines, briefs, strict=True)
        ]
        for rules, end in zip(found, ended, strict=True):
            if not end:
                rules.append("unfinished")
        refused = np.array([bool(rules) for rules in found])
        for rule in sorted({rule for rules in found for rule in rules}):
            log(f"refused/{rule}", sum(rule in rules for rules in found) / len(found))
        gain = _relative(total, rows, ~refused & known) / level.spread
        liked = _relative(preference, rows, ~refused) / level.preference * config.preference
        gain = np.where(refused, np.minimum(gain + liked, 0.0), gain + liked)
        nats = np.nan_to_num(self._nats(lines), nan=level.fluency)  # an empty line is refused
        repeated = repetition(lines, briefs)
        parts = {
            "fluency": config.fluency * np.maximum(level.fluency - config.slack - nats, 0.0),
            "diversity": config.diversity * np.maximum(repeated - level.repeated, 0.0),
            "refused": config.hit * refused,
        }
        for name, values in {"nats": nats, "repeated": repeated}.items():
            log(f"line/{name}", float(values.mean()))
        for name, values in parts.items():
            log(f"penalty/{name}", float(values.mean()))
        rewards = gain - sum(parts.values())
        return [float(reward) if fine else None for reward, fine in zip(rewards, known, strict=True)]

    def _responses(
        self, rows: Sequence[int], lines: Sequence[str], log: Callable[[str, float], None]
    ) -> tuple[Floats, Floats]:
        """Return the shoppers' total and the preference of each line, shape (n,) each, logging every component.

        A line that stands there for the same brief before is not asked about again.
        """
        asked = list(dict.fromkeys(zip(rows, lines, strict=True)))
        place = {each: i for i, each in enumerate(asked)}
        again = [place[each] for each in zip(rows, lines, strict=True)]
        given, texts = [self._assignments[row] for row, _ in asked], [line for _, line in asked]
        briefs = [each.brief for each in given]
        answers = self._answers(
            [each.item_id for each in given],
            [brief.audience for brief in briefs],
            [brief.discount for brief in briefs],
            texts,
        )
        for name, values in answers.items():
            seen = np.asarray(values, float)[again]
            log(f"shoppers/{name}", float(seen[np.isfinite(seen)].mean()) if np.isfinite(seen).any() else float("nan"))
        preference = np.zeros(len(lines))
        if self._preferences is not None:
            prompts = [prompt_of(self._base.tokenizer, brief) for brief in briefs]
            preference = self._preferences.score(prompts, texts)[again]
            log("preference", float(preference.mean()))
        return np.asarray(answers["total"], float)[again], preference

    def _nats(self, lines: Sequence[str]) -> Floats:
        """Return each line's nats a token under the untouched model, shape (n,), reading equal lines once."""
        texts = list(dict.fromkeys(lines))
        nats = dict(zip(texts, self._base.log_likelihood(None, texts)[0].tolist(), strict=True))
        return np.array([nats[line] for line in lines], float)


def repetition(lines: Sequence[str], briefs: Sequence[Brief]) -> Floats:
    """Return how much of each line stands in the other lines too, 0 to 1, shape (n,).

    The mean over the line's pairs of adjacent words, folded, of the share of other lines that hold the pair; pairs out
    of the item's own title do not count, since every line for it may name it. A line of one word is its own pair.
    """
    held = []
    for line, brief in zip(lines, briefs, strict=True):
        title = pairs_of(brief.title)
        held.append(pairs_of(line) - title)
    counts: dict[tuple[str, ...], int] = {}
    for pairs in held:
        for pair in pairs:
            counts[pair] = counts.get(pair, 0) + 1
    others = max(len(lines) - 1, 1)
    return np.array([np.mean([(counts[p] - 1) / others for p in pairs]) if pairs else 0.0 for pairs in held], float)


def pairs_of(text: str) -> set[tuple[str, ...]]:
    """Return the pairs of adjacent words of a text, folded; of one word the word."""
    spoken = words(text)
    return set(itertools.pairwise(spoken)) if len(spoken) != 1 else {(spoken[0],)}


def _relative(values: Floats, rows: Sequence[int], counted: npt.NDArray[np.bool_]) -> Floats:
    """Return values less the mean of their group's counted ones, or of all the group's where none counts."""
    relative, groups = np.array(values, float), np.asarray(rows)
    for group in np.unique(groups):
        here = groups == group
        some = here & counted if (here & counted).any() else here & np.isfinite(values)
        relative[here] -= values[some].mean() if some.any() else 0.0
    return relative


def _within(values: Floats, rows: Sequence[int]) -> float:
    """Return the standard deviation of values about their group's mean; 1 where they hardly differ."""
    spread = float(np.sqrt(np.mean(_relative(values, rows, np.ones(len(values), bool)) ** 2)))
    return spread if spread > 1e-9 else 1.0
