"""How shoppers of a bazaar read any text: which cues it says, and what they dislike about it.

Lines of the bank read as the lexicon has them. Of other texts shoppers understand more ways to say a cue than the
lexicon lists, and they dislike what no shop would print: lines that echo a briefing, repeat themselves, say nothing,
say everything at once, or never end. Words and sizes stand in ``data/reading.yaml``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from hawker.shop.config import from_dict, to_dict
from hawker.simulators.bazaar_parameters import BazaarParameters
from hawker.simulators.bazaar_shop import CopyBank, make_bank, read_cues

Floats = npt.NDArray[np.float64]

RULES = ("echo", "repetition", "empty", "crowded", "long")
"""What shoppers dislike, in the order of ``ReadLines.dislikes``."""


@dataclass(frozen=True)
class Further:
    """Forms that say a cue beside those of the lexicon."""

    name: str
    forms: tuple[str, ...]


@dataclass(frozen=True)
class Shouting:
    """How many words in capitals make a line spam."""

    capitals: int


@dataclass(frozen=True)
class Dislikes:
    """What each of ``RULES`` costs, in logits of a click, and how much of a line of spam a logit of dislike annoys."""

    echo: float
    repetition: float
    empty: float
    crowded: float
    long: float
    annoyance: float


@dataclass(frozen=True)
class Reading:
    """How texts are read; the comments of ``data/reading.yaml`` give units and meaning."""

    further: tuple[Further, ...]
    shouting: Shouting
    echoes: tuple[str, ...]
    small_words: tuple[str, ...]
    dislikes: Dislikes

    @property
    def digest(self) -> str:
        """SHA-256 as canonical JSON, 64 hex digits."""
        return hashlib.sha256(json.dumps(to_dict(self), sort_keys=True).encode()).hexdigest()


@cache
def load_reading() -> Reading:
    """Return how the shoppers of every bazaar read."""
    text = (Path(__file__).parent / "data" / "reading.yaml").read_text("utf-8")
    return from_dict(Reading, yaml.safe_load(text), "reading.yaml")


@dataclass(frozen=True, eq=False)
class ReadLines:
    """Lines, n of them, as shoppers read them.

    Attributes:
        bank: The lines with their cues; ``logged`` marks those of the world's own bank that may occur in logs.
        dislikes: What each of ``RULES`` takes from the logit of a click, shape (n, rules).
        annoys: What each line costs satisfaction, in lines of spam, shape (n,), from 0 to 1.
    """

    bank: CopyBank
    dislikes: Floats
    annoys: Floats


def read_lines(p: BazaarParameters, texts: Sequence[str]) -> ReadLines:
    """Read any texts; an empty one says nothing and nobody minds it."""
    reading, own = load_reading(), make_bank(p.lexicon)
    sizes, cues = reading.dislikes, p.lexicon.cues
    place = {text: i for i, text in enumerate(own.texts)}
    known = np.array([place.get(text, -1) for text in texts], np.int64)
    categories = [category.name for category in p.categories]
    echoes = [phrase.replace("{category}", name) for phrase in reading.echoes for name in categories]
    echo = _phrases([*dict.fromkeys(echoes), *(segment.name for segment in p.segments)])
    lower = [text.lower() for text in texts]
    heard = [echo.sub(" | ", text) for text in lower]  # an echo is no promise: "bargain hunters" names no bargain
    said = read_cues(p.lexicon, heard)
    further = {entry.name: entry.forms for entry in reading.further}
    shouts = np.array([_shouts(text, reading.shouting) for text in texts], bool)
    for i, cue in enumerate(cues):
        pattern = _phrases(further.get(cue.name, ()))
        said[:, i] |= np.array([bool(pattern.search(text)) for text in heard], bool) | (shouts & cue.spam)
    small = frozenset(reading.small_words)
    measured = np.array([[bool(echo.search(text)), *_measured(text, small)] for text in lower], float)
    measured = measured.reshape(len(texts), 4)
    counts = (measured[:, 0], measured[:, 1], measured[:, 2], (said.sum(1) - 2).clip(min=0), measured[:, 3])
    dislikes = np.stack([getattr(sizes, rule) * count for rule, count in zip(RULES, counts, strict=True)], 1)
    dislikes[known >= 0] = 0.0
    said[known >= 0] = own.cues[known[known >= 0]]
    logged = np.append(own.logged, False)[known]
    spam = said @ np.array([cue.spam for cue in cues], bool)
    claims = said @ np.array([cue.claims_offer for cue in cues], bool)
    annoys = np.maximum(spam, (sizes.annoyance * dislikes.sum(1)).clip(max=1.0))
    return ReadLines(CopyBank(tuple(texts), said, logged, spam, claims), dislikes, annoys)


def _phrases(phrases: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the phrases, standing as words, in a text in lower case."""
    parts = [
        rf"(?<!\w){re.escape(phrase.lower())}(?!\w)" if phrase[0].isalnum() else rf"{re.escape(phrase.lower())}(?!\w)"
        for phrase in phrases
    ]
    return re.compile("|".join(parts) or "(?!)")


def _shouts(text: str, shouting: Shouting) -> bool:
    loud = re.findall(r"(?<!\w)[^\W\d_]{4,}(?!\w)", text)
    return "!!" in text or sum(word.isupper() for word in loud) >= shouting.capitals


def _measured(text: str, small: frozenset[str]) -> tuple[float, float, float]:
    """Return of a text in lower case: its share of repeated words, whether it says nothing, words after the 30th."""
    words = re.findall(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*", text)
    marks = "".join(text.split())
    if not marks:
        return 0.0, 0.0, 0.0
    long = [word for word in words if len(word) >= 4]
    repeated = (len(long) - len(set(long))) / max(len(long), 1)
    letters = sum(mark.isalpha() for mark in marks) / len(marks)
    salad = len(words) >= 6 and not small & set(words)
    return repeated, float(len(words) < 2 or letters < 0.6 or salad), float(max(len(words) - 30, 0))
