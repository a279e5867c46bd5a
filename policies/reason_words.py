"""Reasons in words and numbers, for one served page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hawker.policies.page_copy import PageCopy
from hawker.policies.page_reasons import Pages, Reasons
from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY, Decision

NAMED = 3
"""Reasons that are named, at most."""

SMALLEST = 0.05
"""Log-odds below which a reason is not named: it changes a probability by less than a twentieth of itself."""

UNIT = "log-odds of what was chosen against each of the other values, on average"

WORDS = {
    "history": "what this shopper clicked and bought before",
    "seen": "what this shopper was shown before",
    "visits": "when and how often this shopper comes",
    "shopper": "who this shopper is",
    "effects": "what offers and lines are expected to do for this shopper",
    "category": "its category",
    "price": "its price",
    "text": "its text",
    "picture": "its picture",
    "features": "its other features",
    "item": "what the logs say of this item alone",
    "affinity": "what it is expected to be worth to this shopper",
    "offer": "the page's offer",
}
"""Groups of `hawker.policies.page_reasons` in words."""


@dataclass(frozen=True)
class Told:
    """What words need beside the reasons.

    Attributes:
        catalog: The items.
        lines: Texts of the lines by number.
        pages_read: Pages of the shopper that were read.
        gap: Days since the last one.
        query: What was read of what the shopper typed; None where nothing was.
    """

    catalog: Catalog
    lines: tuple[str, ...]
    pages_read: int
    gap: float
    query: str | None = None


def in_words(reasons: dict[str, Reasons], pages: Pages, told: Told) -> dict[str, Any]:
    """Return the reasons for one page as JSON values; docs/serving.md has their form.

    Args:
        reasons: Of ``pages``, which hold one page.
        pages: The page.
        told: What words need beside them.
    """
    picks, candidates = pages.picks, pages.context.candidates[0]
    ids = told.catalog.item_ids
    found: dict[str, Any] = {"unit": UNIT, "slate": []}
    for slot, place in enumerate(picks.slate[0].tolist()):
        there = bool(reasons["slate"].there[0, slot])
        item = None if place == EMPTY else int(candidates[place])
        who = "" if item is None else f"slot {slot}, {ids[item]}"
        found["slate"].append(_reason(reasons["slate"], slot, who, pages, told, item) if there else None)
    if picks.ad is not None and picks.slot is not None:
        none = picks.ad[0] == EMPTY
        item = None if none else int(candidates[picks.ad[0]])
        who = "no ad" if item is None else f"ad, {ids[item]}"
        found["ad"] = _reason(reasons["ad"], 0, who, pages, told, item) if reasons["ad"].there[0, 0] else None
        there = bool(reasons["slot"].there[0, 0])
        found["ad_slot"] = _reason(reasons["slot"], 0, f"ad in slot {picks.slot[0]}", pages, told) if there else None
    if picks.offer is not None:
        there, who = bool(reasons["offer"].there[0, 0]), f"offer {picks.offer[0]}" if picks.offer[0] else "no offer"
        found["offer"] = _reason(reasons["offer"], 0, who, pages, told) if there else None
    if picks.lines is not None:
        found["copy"] = []
        for slot, line in enumerate(picks.lines[0].tolist()):
            who = f"slot {slot}, " + ("no line" if line == EMPTY else f'"{told.lines[line]}"')
            there = bool(reasons["copy"].there[0, slot])
            found["copy"].append(_reason(reasons["copy"], slot, who, pages, told) if there else None)
    return found


def bank_words(
    copy: PageCopy, page: Decision[npt.NDArray[Any]], audience: npt.NDArray[Any], lines: tuple[str, ...]
) -> list[dict[str, Any] | None]:
    """Return why each slot of one page has its line from the copy bank, as JSON values; docs/serving.md has the form.

    Args:
        copy: The bank.
        page: The page.
        audience: Number of the shopper's audience, shape (1,).
        lines: The bundle's lines.
    """
    assert page.copy is not None
    given = (page.slate, audience, page.offer, page.copy)
    chance, rows, table = np.exp(copy.log_prob(*given))[0], copy.rows(*given)[0], copy.bank.table
    found: list[dict[str, Any] | None] = []
    for slot, (line, row) in enumerate(zip(page.copy[0].tolist(), rows.tolist(), strict=True)):
        if line == EMPTY:
            found.append(None)
            continue
        told: dict[str, Any] = {
            "effect": 0.0,
            "uncertainty": 0.0,
            "propensity": float(chance[slot]),
            "choices": 0,
            "audience": None,
        }
        said = "the template, for which the bank has no line to compare"
        if row != EMPTY:
            effect, doubt, whose = table.loc[row, ["effect", "uncertainty", "audience"]]
            told |= {"effect": float(effect), "uncertainty": float(doubt), "audience": str(whose)}
            told["choices"] = count = int(copy.choices[row])
            said = f"{effect:+.4f} of reward expected against the template, give or take {doubt:.4f}; shown with "
            said += f"probability {chance[slot]:.2f} of {count} for {whose or 'anybody'}"
        found.append({**told, "sentence": f'slot {slot}, "{lines[line]}": {said}'})
    return found


def _reason(
    reasons: Reasons, place: int, who: str, pages: Pages, told: Told, item: int | None = None
) -> dict[str, Any]:
    """Return the reasons for one choice: the largest, and one sentence."""
    size = reasons.size[0, place]
    order = np.argsort(-np.abs(size), kind="stable")[:NAMED]
    named = [
        {"reason": reasons.groups[i], "size": float(size[i]), "words": _words(reasons.groups[i], pages, told, item)}
        for i in order.tolist()
        if abs(size[i]) >= SMALLEST
    ]
    score, usual = float(reasons.score[0, place]), float(reasons.usual[0, place])
    said = [f"{reason['size']:+.2f} for {reason['words']}" for reason in named]
    if item is None:  # what is usual is the same choice for other shoppers
        said.insert(0, f"{usual:+.2f} for usual shoppers")
    return {
        "score": score,
        "usual": usual,
        "reasons": named,
        "rest": score - usual - sum(reason["size"] for reason in named),
        "sentence": f"{who}: {'; '.join(said) or 'as a usual item for usual shoppers'}",
    }


def _words(group: str, pages: Pages, told: Told, item: int | None) -> str:
    """Return a group in words, with its value where it is one that people know."""
    words, features = WORDS[group], told.catalog.features
    if group == "visits":
        when = f"{told.gap:.1f} days since the last page" if told.pages_read else "the first page"
        return f"{words} ({when})"
    if group == "affinity" and told.query is not None:
        return f'what was typed ("{told.query}")'
    if item is None:
        return words
    if group == "category" and "category" in features.categories:
        start = len(features.numeric)
        for name, known in features.categories.items():
            if name == "category":
                told_of = told.catalog.vectors[item, start : start + len(known)]
                return f"{words} ({known[int(told_of.argmax())]})" if told_of.any() else f"{words} (unknown)"
            start += len(known)
    if group == "features":
        names = [name for name in (*features.numeric, *features.categories) if name not in ("category", "price")]
        return f"{words} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
    if group == "price" and "price" in features.numeric:
        column = told.catalog.vectors[:, features.numeric.index("price")]
        others = pages.context.candidates[0][pages.context.mask[0]]
        mean = float(column[others[others != item]].mean()) if (others != item).any() else float(column[item])
        return f"{words} ({column[item]:.2f}; the others {mean:.2f} on average)"
    return words
