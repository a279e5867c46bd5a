"""Does a brand voice, given by five example lines, change what the writer says?

The same items are written for in two voices, with the same seed. A classifier of n-grams learns from the lines for one
half of the items which voice is which, and says of those for the other half what it takes them for, either half in
turn. Words of the item itself are masked, so that it has nothing but the way it is said. Lines that repeat an example
are no voice: they are counted, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from hawker.policies.briefs import DATA, Brief
from hawker.policies.guardrails import Guardrails, words
from hawker.policies.writer import Writer
from hawker.shop.figures import Figure, figure

VOICES: dict[str, tuple[str, ...]] = {
    name: tuple(lines)
    for name, lines in yaml.safe_load((DATA / "voices.yaml").read_text(encoding="utf-8"))["voices"].items()
}

RUN = 4
"""Words in a row that make a line a copy of an example that holds them too."""

RESAMPLES = 2_000
"""Draws of items for an interval."""

_WORD = re.compile(r"[^\W_]+")


def voice_lines(
    writer: Writer, guardrails: Guardrails, briefs: Sequence[Brief], count: int, seed: int
) -> dict[str, list[list[str]]]:
    """Return what a writer says for each brief in each voice, ``count`` lines each, tidied.

    Lines that a guardrail refuses stay: an untouched model's are mostly too long, and have a voice all the same.

    Args:
        writer: Who writes.
        guardrails: The rules.
        briefs: What to write for; each is given one voice after the other.
        count: Lines for each brief and voice.
        seed: Decides what is drawn, alike for all voices.
    """
    said = {}
    for name, examples in VOICES.items():
        asked = [replace(brief, voice=examples) for brief in briefs]
        said[name] = [[guardrails.tidy(text) for text in texts] for texts in writer.write(asked, count, 1.0, seed)]
    return said


def copied(line: str, examples: Sequence[str]) -> bool:
    """Whether a line repeats an example: four of its words in a row, or all of them where it has fewer.

    >>> copied("A teapot, quietly good at one thing", ["Quietly good at one thing."])
    True
    >>> copied("A teapot, quietly good", ["Quietly good at one thing."])
    False
    """
    said = f" {' '.join(words(line))} "
    for example in examples:
        spoken = words(example)
        runs = [spoken[i : i + RUN] for i in range(max(len(spoken) - RUN, 0) + 1)]
        if any(run and f" {' '.join(run)} " in said for run in runs):
            return True
    return False


def masked(line: str, brief: Brief) -> str:
    """Return a line with an ``x`` for each word that the item's title or category holds.

    >>> masked("The teapot, rustic!", Brief("headline", title="Rustic teapot"))
    'The x, x!'
    """
    own = set(words(f"{brief.title} {brief.category}"))
    return _WORD.sub(lambda match: "x" if set(words(match[0])) & own else match[0], line)


def tell_apart(briefs: Sequence[Brief], said: dict[str, list[list[str]]], seed: int) -> dict[str, Any]:
    """Return how well unseen lines in two voices are told apart.

    Args:
        briefs: What was written for, one for each item.
        said: Their lines in each voice, as ``voice_lines`` returns them.
        seed: Decides which items stand in which half.

    Returns:
        ``right`` and ``of``: by voice and brief, how many lines were tested and how many of them taken for what they
        are, shape (2, n); ``copied``: the share of all lines that repeat an example.
    """
    names = list(said)
    half = np.random.default_rng(seed).permutation(len(briefs)) % 2
    lines, voice, place, copies = [], [], [], 0
    for number, name in enumerate(names):
        for i, texts in enumerate(said[name]):
            for text in texts:
                copies += (repeats := copied(text, VOICES[name]))
                if text and not repeats:
                    lines.append(masked(text, briefs[i]))
                    voice.append(number)
                    place.append(i)
    drawn = sum(len(texts) for each in said.values() for texts in each)
    right, of = np.zeros((len(names), len(briefs))), np.zeros((len(names), len(briefs)))
    labels, items = np.array(voice, int), np.array(place, int)
    for test in (0, 1):
        held = half[items] == test
        if held.any():
            guess = _taken_for(
                [lines[i] for i in np.flatnonzero(~held)], labels[~held], [lines[i] for i in np.flatnonzero(held)]
            )
            np.add.at(of, (labels[held], items[held]), 1)
            np.add.at(right, (labels[held], items[held]), guess == labels[held])
    return {"right": right.tolist(), "of": of.tolist(), "copied": copies / drawn}


def _taken_for(lines: Sequence[str], labels: Any, unseen: Sequence[str]) -> Any:
    """Return which voice each unseen line is taken for; the first where there is nothing to learn from."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    if len(set(labels.tolist())) < 2:
        return np.zeros(len(unseen), int)
    grams = make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True),
        TfidfVectorizer(token_pattern=r"[^\W_]+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True),
    )
    model = make_pipeline(grams, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1_000))
    return model.fit(lines, labels).predict(unseen)


def accuracy(found: Sequence[dict[str, Any]]) -> Figure:
    """Return the mean over voices of the share of lines taken for what they are, 0.5 by chance; items are resampled.

    Args:
        found: What ``tell_apart`` returned, of one seed or several.
    """
    right = np.concatenate([np.array(one["right"]) for one in found], 1)
    of = np.concatenate([np.array(one["of"]) for one in found], 1)
    n = right.shape[1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    with np.errstate(invalid="ignore"):
        value = float((right.sum(1) / of.sum(1)).mean())
        drawn = ((weights @ right.T) / (weights @ of.T)).mean(1)
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (None, None)
    return figure(value, low, high, int(of.sum()), "share of unseen lines")
