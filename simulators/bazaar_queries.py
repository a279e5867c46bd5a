"""What shoppers of a bazaar with a search box type into it, and what each item is to that: known only to the world."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hawker.simulators.bazaar_parameters import BazaarParameters, SearchBox, Segment
from hawker.simulators.bazaar_shop import BazaarItems

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries that are ever typed, Q of them.

    Attributes:
        texts: What is typed.
        chance: P(query | segment, there is one), shape (segments, Q).
        relevance: Grade of each item, 0 to 3, shape (Q, n).
    """

    texts: tuple[str, ...]
    chance: Floats
    relevance: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Wanted:
    """What a query means: a category, a kind of its items or any, a style or any; -1 is any."""

    category: int
    noun: int
    style: int


def make_queries(p: BazaarParameters, search: SearchBox, items: BazaarItems) -> Queries:
    """Return all queries of a shop: everything that may be wanted, in each of the words that say it.

    A text that may mean several things is one query for each of them.
    """
    also = {entry.of: entry.words for entry in search.synonyms}
    found: list[tuple[str, _Wanted, float]] = []
    styles = [-1, *range(len(p.styles))]
    for number, category in enumerate(p.categories):
        for noun, style in itertools.product([-1, *range(len(category.nouns))], styles):
            wanted = _Wanted(number, noun, style)
            said = category.name if noun < 0 else category.nouns[noun]
            things = _said((said,), also.get(said, ()), search.synonym)
            looks = [("", 1.0)]
            if style >= 0:
                names = p.styles[style].titles
                looks = _said(tuple(name.lower() for name in names), also.get(p.styles[style].name, ()), search.synonym)
            for (thing, one), (look, other) in itertools.product(things, looks):
                found.append((f"{look} {thing}".strip(), wanted, one * other))
    wishes = [wanted for _, wanted, _ in found]
    words = np.array([chance for _, _, chance in found])
    chance = np.array([[_chance(p, search, segment, wanted) for wanted in wishes] for segment in p.segments]) * words
    relevance = np.stack([_relevance(wanted, items) for wanted in wishes])
    return Queries(tuple(text for text, _, _ in found), chance / chance.sum(1, keepdims=True), relevance)


def _said(names: tuple[str, ...], also: tuple[str, ...], share: float) -> list[tuple[str, float]]:
    """Return words for something, with their chances: its names, and synonyms with ``share`` where it has any."""
    share = share if also else 0.0
    return [(name, (1 - share) / len(names)) for name in names] + [(word, share / len(also)) for word in also]


def _chance(p: BazaarParameters, search: SearchBox, segment: Segment, wanted: _Wanted) -> float:
    """Return P(something is wanted) in a segment, all ways to say it together."""
    tastes, styles = (search.taste * np.array(t) for t in (segment.category_taste, segment.style_taste))
    chance = _softmax(tastes)[wanted.category]
    nouns = len(p.categories[wanted.category].nouns)
    chance *= 1 - search.kind if wanted.noun < 0 else search.kind / nouns
    chance *= 1 - search.style if wanted.style < 0 else search.style * _softmax(styles)[wanted.style]
    return float(chance)


def _softmax(values: Floats) -> Floats:
    weights: Floats = np.exp(values - values.max())
    shares: Floats = weights / weights.sum()
    return shares


def _relevance(wanted: _Wanted, items: BazaarItems) -> npt.NDArray[np.int64]:
    """Return the grade of each item, see ``data/search.yaml``, shape (n,)."""
    category = items.category == wanted.category
    kind = category & ((items.noun == wanted.noun) | (wanted.noun < 0))
    all_of_it = kind & ((items.style == wanted.style) | (wanted.style < 0))
    grade: npt.NDArray[np.int64] = np.where(all_of_it, 3, np.where(kind, 2, np.where(category, 1, 0)))
    return grade
