"""What the writer learns from: logged lines with how they did, pairs of lines, and what to write for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Prompt
from hawker.shop.errors import InputError

ROUNDS = 10
"""Times that the factors of expected clicks are fitted in turn; lines and places that go together move for longest."""

TRIES = 20
"""Times that lines are drawn, as many as are wanted, before the guardrails are found to refuse too many."""

FACTORS = ("position", "placement", "item_id", "offer", "audience")
"""What may make an impression clicked whatever its line says."""


@dataclass(frozen=True)
class LoggedLine:
    """A line that a log has shown for one item, audience and offer.

    Attributes:
        brief: What the line was an answer to.
        line: The line.
        shown: Impressions of the line with this item, audience and offer.
        clicks: Clicks on the line by this audience, on all items.
        expected: Clicks that these impressions would have had with an average line.
        lift: What the line does for this audience: clicks over expected clicks, shrunk; above 0.
    """

    brief: Brief
    line: str
    shown: int
    clicks: float
    expected: float
    lift: float


@dataclass(frozen=True)
class Assignment:
    """Something to write for.

    Attributes:
        item_id: The item.
        brief: What the writer is told of it.
    """

    item_id: str
    brief: Brief


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt.

    Attributes:
        prompt: The prompt: text, or chat messages.
        chosen: The one that was preferred.
        rejected: The other.
    """

    prompt: Prompt
    chosen: str
    rejected: str


def item_brief(
    item: Mapping[Any, Any] | pd.Series[Any],
    surface: str,
    audience: str = "",
    discount: float = 0.0,
    voice: tuple[str, ...] = (),
) -> Brief:
    """Return the brief of a row of the items table, a mapping by column."""
    texts = {name: _text(item.get(name)) for name in ("title", "description", "category")}
    price = item.get("price")
    price = float(price) if isinstance(price, (int, float)) and 0 <= price < math.inf else None
    return Brief(surface, **texts, price=price, discount=discount, audience=audience, voice=voice)


def tier_discounts(impressions: pd.DataFrame, items: pd.DataFrame) -> dict[int, float]:
    """Return the share of the price that each tier of offer takes off, from the prices shown; 0 where none are."""
    tiers = impressions["offer"].dropna().unique().tolist() if "offer" in impressions else []
    discounts = dict.fromkeys(sorted({0, *map(int, tiers)}), 0.0)
    if {"price_shown", "offer"} <= set(impressions) and "price" in items:
        price = impressions["item_id"].map(items.set_index("item_id")["price"])
        off = (1 - impressions["price_shown"] / price).where(price > 0)
        medians = off.groupby(impressions["offer"]).median()
        for tier, median in zip(medians.index.tolist(), medians.tolist(), strict=True):
            if tier and math.isfinite(median):
                discounts[int(tier)] = round(min(max(float(median), 0.0), 1.0), 2)
    return discounts


def discount_of_tiers(impressions: pd.DataFrame, items: pd.DataFrame, tiers: int) -> tuple[float, ...]:
    """Return ``tier_discounts`` of the tiers 0 to ``tiers`` - 1 in their order; 0 of one that the log does not show."""
    known = tier_discounts(impressions, items)
    return tuple(known.get(tier, 0.0) for tier in range(tiers))


def expected_clicks(impressions: pd.DataFrame, prior: float) -> npt.NDArray[np.float64]:
    """Return P(click) of each impression were its line an average one, shape (n,).

    The overall rate times one factor for the position, the placement, the item, the offer, the audience and what the
    line does for it, each in turn the ratio of clicks to expected clicks, shrunk towards 1 by ``prior`` clicks (a
    Poisson regression by backfitting); the last is then taken out again. So lines get no credit for where they stood,
    and places none for good lines.

    Args:
        impressions: Rows with ``clicked``, ``audience``, ``copy`` and some more of the columns of ``FACTORS``.
        prior: Clicks.
    """
    clicked = impressions["clicked"].to_numpy(float)
    expected = np.full(len(clicked), clicked.mean())
    codes = [pd.factorize(impressions[name])[0] for name in FACTORS if name in impressions]
    said = impressions.groupby(["audience", "copy"], dropna=False, observed=True, sort=False).ngroup().to_numpy()
    effect = np.ones(len(clicked))
    for _ in range(ROUNDS):
        for code in codes:
            expected *= _ratio(code, clicked, expected * effect, prior)
        effect *= _ratio(said, clicked, expected * effect, prior)
        effect /= effect.mean()
    return np.asarray(np.minimum(expected * clicked.sum() / max(expected.sum(), 1e-12), 1.0))


def _ratio(
    code: npt.NDArray[np.integer[Any]],
    clicked: npt.NDArray[np.float64],
    expected: npt.NDArray[np.float64],
    prior: float,
) -> npt.NDArray[np.float64]:
    """Return each row's group's clicks over expected clicks, shrunk towards 1; a code of -1 is a group too."""
    seen = np.bincount(code + 1, clicked) + prior, np.bincount(code + 1, expected) + prior
    return np.asarray((seen[0] / seen[1])[code + 1])


def logged_lines(
    impressions: pd.DataFrame,
    items: pd.DataFrame,
    surface: str,
    audiences: Sequence[str] | None = None,
    prior: float = 10.0,
) -> list[LoggedLine]:
    """Return the lines of a log with how they did, each for every item, audience and offer it was shown with.

    A line's lift is its clicks over the clicks expected at its positions, items and offers (``expected_clicks``),
    shrunk towards 1; within an audience it is shrunk towards the line's lift with everybody.

    Args:
        impressions: The log's impressions.
        items: Its items.
        surface: Where the lines stood.
        audiences: The label of each impression's shopper, shape (n,); None is one audience.
        prior: Expected clicks that weigh as much as a line's own.

    Raises:
        InputError: The log shows no lines.
    """
    if "copy" not in impressions or impressions["copy"].isna().all():
        raise InputError("the log shows no lines", where="impressions column copy", remedy="log which line was shown")
    rows = impressions.assign(
        audience=pd.Series([""] * len(impressions) if audiences is None else list(audiences)).values
    )
    rows = rows.assign(expected=expected_clicks(rows, prior))
    rows = rows[rows["copy"].fillna("").str.strip() != ""]
    if "offer" not in rows:
        rows = rows.assign(offer=0)
    discounts = tier_discounts(impressions, items)
    table = {str(item["item_id"]): item for item in items.to_dict("records")}
    everybody = rows.groupby("copy", observed=True)[["clicked", "expected"]].sum()
    overall = (everybody["clicked"] + prior) / (everybody["expected"] + prior)
    some = rows.groupby(["audience", "copy"], observed=True)[["clicked", "expected"]].sum()
    towards = overall.reindex(some.index.get_level_values("copy")).to_numpy()
    some["lift"] = (some["clicked"] + prior * towards) / (some["expected"] + prior)
    did = dict(zip(some.index, some.itertuples(index=False, name=None), strict=True))
    cells = rows.groupby(["item_id", "audience", "offer", "copy"], observed=True).size()
    briefs: dict[tuple[Any, ...], Brief] = {}
    lines = []
    for key, shown in cells.items():
        item, audience, offer, line = cast("tuple[str, str, int, str]", key)
        if (item, audience, offer) not in briefs:
            briefs[item, audience, offer] = item_brief(table[item], surface, audience, discounts[int(offer)])
        lines.append(LoggedLine(briefs[item, audience, offer], line, int(shown), *did[audience, line]))
    return lines


def draw_lines(
    lines: Sequence[LoggedLine], guardrails: Guardrails, n: int, sharpness: float, together: int, seed: int
) -> list[LoggedLine]:
    """Draw n lines that may be shown, with replacement, in proportion to impressions times lift ** sharpness.

    That is advantage-weighted regression by resampling (Peng et al. 2019, arXiv 1910.00177), the advantage being the
    logarithm of the lift and the temperature 1 / sharpness. Lines that a guardrail refuses are passed over: what was
    shown once may not be what a shop wants to say, and clickbait does well in a log. Lines of one brief come in runs,
    as long as the brief has lines and at most ``together``, and it is drawn the less often for it.

    Raises:
        InputError: There are no lines, or the guardrails refuse nearly all of them.
    """
    if not lines:
        raise InputError("no lines to learn from", where="writer sft")
    weights = np.array([line.shown for line in lines]) * np.array([line.lift for line in lines]) ** sharpness
    found: dict[Brief, list[int]] = {}
    for i, line in enumerate(lines):
        found.setdefault(line.brief, []).append(i)
    places = [np.array(each) for each in found.values()]
    share = np.array([weights[each].sum() / min(len(each), together) for each in places])
    generator, kept, tried = np.random.default_rng(seed), list[LoggedLine](), 0
    while tried < TRIES * n:
        for brief in generator.choice(len(places), n, p=share / share.sum()):
            here = places[brief]
            chances = weights[here] / weights[here].sum()
            picks = [lines[i] for i in generator.choice(here, min(len(here), together), p=chances)]
            kept += [line for line in picks if not guardrails.hits(line.line, line.brief)]
            tried += len(picks)
            if len(kept) >= n:
                return kept[:n]
    what, got = "the guardrails refuse nearly every line of the log", f"{len(kept):,} of {tried:,} pass"
    raise InputError(what, where="writer sft", got=got, remedy="see which rule with hawker copy score")


def read_pairs(path: Path) -> list[Pair]:
    """Read preference pairs from JSONL: one object a line with prompt (text, or chat messages), chosen and rejected.

    Raises:
        InputError: The file is missing or empty, or a line is not such an object; the message names the line.
    """
    try:
        # Not splitlines: JSON strings may hold separators that only Unicode knows.
        written = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError("not a text file", where=path, got=str(error)) from None
    pairs = [_pair(text, f"{path} line {number}") for number, text in enumerate(written, 1) if text.strip()]
    if not pairs:
        raise InputError("no pairs in the file", where=path)
    return pairs


def _pair(text: str, where: str) -> Pair:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError("not JSON", where=where, got=str(error)) from None
    if not isinstance(value, dict) or not {"prompt", "chosen", "rejected"} <= set(value):
        got = sorted(value) if isinstance(value, dict) else value
        raise InputError("not a pair", where=where, got=got, expected="an object with prompt, chosen and rejected")
    prompt, chosen, rejected = value["prompt"], value["chosen"], value["rejected"]
    if not (isinstance(prompt, str) and prompt.strip()) and not _is_chat(prompt):
        expected = "text, or a list of messages with role and content"
        raise InputError("not a prompt", where=where, got=prompt, expected=expected)
    for name, line in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(line, str) or not line.strip():
            raise InputError(f"{name} is not a line", where=where, got=line, expected="text that is not blank")
    if chosen == rejected:
        raise InputError("the two lines are the same", where=where, got=chosen)
    return Pair(prompt, chosen, rejected)


def _is_chat(prompt: Any) -> bool:
    if not isinstance(prompt, list) or not prompt:
        return False
    return all(
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(part, str) for part in message.values())
        for message in prompt
    )


def draw_assignments(
    items: pd.DataFrame,
    surface: str,
    audiences: Sequence[str],
    discounts: Sequence[float],
    n: int,
    seed: int,
    voice: tuple[str, ...] = (),
) -> list[Assignment]:
    """Draw n items, audiences and discounts, evenly and independently; every item comes once before any twice."""
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(len(items)) for _ in range(-(-n // len(items)))])[:n]
    who, off = generator.integers(len(audiences), size=n), generator.integers(len(discounts), size=n)
    table = items.to_dict("records")
    briefs = [
        item_brief(table[i], surface, audiences[w], discounts[d], voice)
        for i, w, d in zip(order, who, off, strict=True)
    ]
    return [Assignment(str(table[i]["item_id"]), brief) for i, brief in zip(order, briefs, strict=True)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
