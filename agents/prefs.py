"""Preference pairs: what people preferred, imported once, and what a log's clicks tell apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from hawker.agents.writer_data import Pair, item_brief, read_pairs, tier_discounts
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.shop.artefacts import verify_directory, write_directory, write_json
from hawker.shop.errors import InputError

Floats = npt.NDArray[np.float64]

KIND, PAIRS = "preferences", "pairs.jsonl"

ENOUGH = 5.0
"""Clicks that could have fallen either way, from which on a comparison is tested (Mantel and Fleiss 1980)."""


@dataclass(frozen=True)
class Imported:
    """What an import of preferences found.

    Attributes:
        pairs: How many pairs there are.
        prompts: How many prompts they are about.
        repeated: Pairs that stand there more than once, beyond the first time; kept, since they are more votes.
        contradicted: Pairs whose opposite stands there too; kept likewise.
    """

    pairs: int
    prompts: int
    repeated: int
    contradicted: int


class Comparison(NamedTuple):
    """Two lines that a log tells apart.

    Attributes:
        brief: What both could be an answer to: the item that showed them most often, its audience and offer.
        better: The line that was clicked more.
        worse: The other.
        z: By how many standard errors (Mantel-Haenszel), above 0.
    """

    brief: Brief
    better: str
    worse: str
    z: float


def read_preferences(path: Path) -> list[Pair]:
    """Read pairs from what ``import_preferences`` wrote, or from a JSONL file of prompt, chosen and rejected.

    Raises:
        InputError: There is no such file, it was changed after the import, or a line is no pair; names file and line.
    """
    path = Path(path)
    return read_pairs(verify_directory(path, KIND) / PAIRS if path.is_dir() else path)


def import_preferences(source: Path, out: Path) -> Imported:
    """Read pairs that people made, every one of them, and write them as an artefact: all or nothing.

    Raises:
        InputError: As in ``read_preferences``, or something else stands at ``out``.
    """
    pairs = read_pairs(source)
    keys = [(json.dumps(pair.prompt), pair.chosen, pair.rejected) for pair in pairs]
    unique = set(keys)
    opposed = sum((prompt, rejected, chosen) in unique for prompt, chosen, rejected in keys)
    found = Imported(len(pairs), len({prompt for prompt, _, _ in keys}), len(keys) - len(unique), opposed)
    with write_directory(out, KIND) as path:
        with (path / PAIRS).open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(asdict(pair))}\n" for pair in pairs)
        write_json(path / "manifest.json", asdict(found))
    return found


def logged_pairs(
    impressions: pd.DataFrame,
    items: pd.DataFrame,
    surface: str,
    audiences: Sequence[str] | None = None,
    *,
    by: Literal["item", "category"] = "category",
    level: float = 0.05,
    guardrails: Guardrails | None = None,
) -> list[Comparison]:
    """Return the pairs of lines whose click rates a log tells apart, the clearest first.

    Two lines are compared only where both were shown: with the same audience, item, offer, placement and position.
    These cells are pooled over positions and placements, and ``by`` category over its items too, by the test of Mantel
    and Haenszel (1959), which needs no model of what positions are worth. Of the pairs returned, a share of ``level``
    is expected to be chance (Benjamini and Hochberg 1995).

    Limits: clicks count as independent of each other, which those of one shopper are not, so that ``level`` is
    optimistic where few shoppers click a lot; what else the logging strategy chose lines by (time, features) confounds;
    the line that won clicks may cost conversions or returns; lines that were never shown in one place are not compared.

    Args:
        impressions: Of a log, with ``copy``.
        items: Its items.
        surface: Where the lines stood.
        audiences: Label of each impression's shopper, shape (n,); None is one audience.
        by: Whether lines are compared item by item, or over the items of a category.
        level: False discovery rate, between 0 and 1.
        guardrails: Drops pairs whose better line breaks a rule: spam wins clicks too.

    Raises:
        InputError: The log shows no lines, or ``level`` is no rate.
    """
    if not 0 < level < 1:
        raise InputError("bad level", where="logged pairs", got=level, expected="a rate between 0 and 1")
    if "copy" not in impressions or impressions["copy"].isna().all():
        raise InputError("the log shows no lines", where="impressions column copy", remedy="log which line was shown")
    rows = _counted(impressions, items, audiences, by)
    groups: Any = rows.groupby(["group", "audience", "offer"])
    tested = [one for group, cells in groups for one in _tests(group, cells)]
    if not tested:
        return []
    p = np.array([2 * norm.sf(abs(z)) for *_, z in tested])
    ranked = np.sort(p)
    passed = ranked <= level * np.arange(1, len(p) + 1) / len(p)
    limit = ranked[passed].max(initial=-1.0)
    discounts, table = tier_discounts(impressions, items), items.to_dict("records")
    by_id = {str(row["item_id"]): i for i, row in enumerate(table)}
    shown: Any = rows.groupby(["group", "audience", "offer", "line", "item"])["shown"].sum()
    pairs = []
    for (group, one, other, z), chance in zip(tested, p, strict=True):
        if chance > limit:
            continue
        better, worse = (one, other) if z > 0 else (other, one)
        item = (shown[(*group, better)] + shown[(*group, worse)]).dropna().idxmax()  # shown with both, most often
        brief = item_brief(table[by_id[item]], surface, str(group[1]), discounts[int(group[2])])
        if guardrails is None or not guardrails.hits(better, brief):
            pairs.append(Comparison(brief, better, worse, abs(z)))
    return sorted(pairs, key=lambda pair: -pair.z)


def _counted(
    impressions: pd.DataFrame, items: pd.DataFrame, audiences: Sequence[str] | None, by: Literal["item", "category"]
) -> pd.DataFrame:
    """Return impressions and clicks of each line in each cell: group, audience, offer, item, cell, line."""
    item = impressions["item_id"].astype(str)
    told = dict(zip(items["item_id"].astype(str), items.get("category", items["item_id"]), strict=True))
    rows = pd.DataFrame(
        {
            "line": impressions["copy"],
            "item": item,
            "group": item.map(told).fillna("").astype(str) if by == "category" else item,
            "audience": "" if audiences is None else np.asarray(audiences, dtype=object),
            "offer": impressions["offer"].fillna(0).astype(int) if "offer" in impressions else 0,
            "position": impressions["position"],
            "placement": impressions["placement"].astype(str),
            "clicked": impressions["clicked"].astype(float),
        }
    )
    rows = rows[rows["line"].notna() & (rows["line"].astype(str).str.strip() != "")]
    rows["line"] = rows["line"].astype(str)
    rows["cell"] = rows.groupby(["item", "position", "placement"]).ngroup()
    keys = ["group", "audience", "offer", "item", "cell", "line"]
    return rows.groupby(keys)["clicked"].agg(shown="size", clicks="sum").reset_index()


def _tests(group: Any, cells: pd.DataFrame) -> list[tuple[Any, str, str, float]]:
    """Return (group, line, other line, z) of the pairs of lines that share enough cells; z > 0: the first is better."""
    code, names = pd.factorize(cells["line"], sort=True)
    lines = names.tolist()
    shape = len(lines), len(lines)
    gain, variance, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    order = np.argsort(cells["cell"].to_numpy(), kind="stable")
    ends = np.flatnonzero(np.diff(cells["cell"].to_numpy()[order])) + 1
    shown, clicks = cells["shown"].to_numpy(np.float64), cells["clicks"].to_numpy(np.float64)
    for rows in np.split(order, ends):
        if len(rows) < 2 or not clicks[rows].any():
            continue
        n, c, at = shown[rows], clicks[rows], np.ix_(code[rows], code[rows])
        both, clicked = n[:, None] + n, c[:, None] + c  # (m, m), of line and other line
        expected = n[:, None] * clicked / both
        gain[at] += c[:, None] - expected
        variance[at] += expected * (n / both) * (both - clicked) / np.maximum(both - 1, 1)
        low[at] += expected - np.maximum(0, clicked - n)
        high[at] += np.minimum(n[:, None], clicked) - expected
    one, other = np.nonzero(np.triu((low >= ENOUGH) & (high >= ENOUGH) & (variance > 0), 1))
    z = gain[one, other] / np.sqrt(variance[one, other])
    return [(group, lines[i], lines[j], float(x)) for i, j, x in zip(one, other, z, strict=True)]
