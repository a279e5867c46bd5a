"""Given lines of copy, judged: the rules that they break, and the click rates that learned shoppers expect."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t

from hawker.policies.briefs import SURFACES, Brief
from hawker.policies.guardrails import Guardrails
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.figures import Figure, figure

if TYPE_CHECKING:
    import pandas as pd

    from hawker.agents.copy_reward import CopyReward

NEEDED = ("item_id", "line")
CATALOGUE = ("title", "description", "category", "price")
FIELDS = (*NEEDED, "surface", "audience", "discount", "source", *CATALOGUE)
"""``source`` is who wrote it, as `hawker writer write` notes it; it is not read."""

SURFACE = "headline"
"""Where a line stands that does not say where."""


@dataclass(frozen=True)
class Given:
    """A line to judge.

    Attributes:
        where: File and line, for messages.
        item_id: The item it is about.
        line: The line.
        surface: Where it will stand.
        audience: For whom; "" for anybody.
        discount: Share of the price taken off.
        told: What the file says of the item, by name of ``CATALOGUE``.
    """

    where: str
    item_id: str
    line: str
    surface: str
    audience: str
    discount: float
    told: dict[str, Any]


def read_lines(path: Path) -> list[Given]:
    """Read the lines of a JSONL or CSV file.

    Raises:
        InputError: The file is missing or empty, has a column or key that is not known, or a value of another kind;
            the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError("not a text file", where=path, got=str(error), expected="JSONL or CSV, in UTF-8") from None
    rows = _csv_rows(text, path) if path.suffix.lower() == ".csv" else _json_rows(text, path)
    lines = [_given(values, where) for where, values in rows]
    if not lines:
        raise InputError("no lines in the file", where=path)
    return lines


def score_lines(given: list[Given], shoppers: Path | None, rules: Path | None, seed: int) -> dict[str, Any]:
    """Judge lines and return the report of ``hawker copy score``: a dict for each line, and the rules' digest.

    Raises:
        InputError: An item or audience that the shoppers do not know, or shoppers whose log shows no lines.
    """
    guardrails = Guardrails.load(rules)
    expected: list[Figure | None] = [None] * len(given)
    items: dict[str, Any] = {}
    if shoppers is not None:
        reward, table = _reward(shoppers, seed)
        items = {str(row["item_id"]): row for row in table.to_dict("records")}
        _refuse_strangers(given, items, reward)
        expected = [*_rates(given, reward)]
    lines = []
    for line, ctr in zip(given, expected, strict=True):
        hits = guardrails.hits(line.line, _brief(line, items.get(line.item_id, {})))
        lines.append(
            {
                "item_id": line.item_id,
                "line": line.line,
                "surface": line.surface,
                "audience": line.audience,
                "discount": line.discount,
                "ctr": ctr,
                "hits": [hit._asdict() for hit in hits],
            }
        )
    return {"lines": lines, "guardrails": {"version": guardrails.version, "digest": guardrails.digest}}


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, row in enumerate(text.split("\n"), 1):  # other line breaks may stand within a text
        if row.strip():
            try:
                values = json.loads(row)
            except ValueError as error:
                raise InputError("not JSON", where=f"{path} line {i}", got=str(error), expected="an object") from None
            if not isinstance(values, dict):
                raise InputError("not an object", where=f"{path} line {i}", got=values, expected=", ".join(NEEDED))
            yield f"{path} line {i}", values


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            where = f"{path} line {reader.line_num}"
            if None in values or None in values.values():
                got = "more cells" if None in values else "fewer cells"
                raise InputError("the row does not fit the header", where=where, got=got)
            yield where, {name: value for name, value in values.items() if value != "" or name in NEEDED}
    except csv.Error as error:
        raise InputError("not CSV", where=f"{path} line {reader.line_num}", got=str(error)) from None


def _given(values: dict[str, Any], where: str) -> Given:
    for name in values:
        if name not in FIELDS:
            raise InputError(f"unknown column {name!r}", where=where, remedy=did_you_mean(name, FIELDS))
    if missing := [name for name in NEEDED if values.get(name) is None]:
        raise InputError(f"{missing[0]} is missing", where=where, expected=", ".join(NEEDED))
    values = {name: value for name, value in values.items() if value is not None}
    if isinstance(values["item_id"], int) and not isinstance(values["item_id"], bool):
        values["item_id"] = str(values["item_id"])
    for name in ("item_id", "line", "surface", "audience", *CATALOGUE[:-1]):
        if not isinstance(values.get(name, ""), str):
            raise InputError(f"{name} is not text", where=where, got=values[name])
    surface = values.get("surface", SURFACE)
    if surface not in SURFACES:
        raise InputError("unknown surface", where=where, got=surface, remedy=did_you_mean(surface, SURFACES))
    discount = _amount(values.get("discount", 0.0), 1.0, "discount", "a share of the price, 0..1", where)
    told = {name: values[name] for name in CATALOGUE if name in values}
    if "price" in told:
        told["price"] = _amount(told["price"], math.inf, "price", "a finite number >= 0", where)
    return Given(where, values["item_id"], values["line"], surface, values.get("audience", ""), discount, told)


def _amount(value: Any, most: float, name: str, expected: str, where: str) -> float:
    try:
        amount = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        amount = math.nan
    if not (0 <= amount <= most and math.isfinite(amount)):
        raise InputError(f"bad {name}", where=where, got=value, expected=expected)
    return amount


def _brief(line: Given, item: dict[str, Any]) -> Brief:
    """Return the brief of a line; what the file tells of its item counts over what the catalogue does."""
    texts = {name: item[name] for name in CATALOGUE[:-1] if isinstance(item.get(name), str)}
    price = item.get("price")
    known = {"price": float(price)} if isinstance(price, float) and math.isfinite(price) else {}
    return Brief(line.surface, **{**texts, **known, **line.told}, discount=line.discount, audience=line.audience)


def _reward(shoppers: Path, seed: int) -> tuple[CopyReward, pd.DataFrame]:
    """Return what the judge's ensemble expects of lines, and the shop's items."""
    import torch

    from hawker.agents.copy_reward import CopyReward
    from hawker.agents.writer_data import tier_discounts
    from hawker.shop.devices import choose_threads
    from hawker.shop.logs import read_logs
    from hawker.shop.reward import RewardSpec
    from hawker.simulators.store import load_shoppers

    choose_threads()
    fitted = load_shoppers(shoppers, torch.device("cpu"))
    impressions, items = fitted.read_part("judge"), read_logs(fitted.logs).items
    assert items is not None  # the log has impressions, hence items
    discounts = tuple(tier_discounts(impressions, items).values())
    return CopyReward(fitted, impressions, items, RewardSpec(), discounts=discounts, role="judge", seed=seed), items


def _refuse_strangers(given: list[Given], items: dict[str, Any], reward: CopyReward) -> None:
    for line in given:
        if line.item_id not in items:
            remedy = did_you_mean(line.item_id, list(items)[:1000])
            raise InputError("no such item in the catalogue", where=line.where, got=line.item_id, remedy=remedy)
        if line.audience and line.audience not in reward.labels:
            remedy = did_you_mean(line.audience, reward.labels)
            raise InputError("no page of the log has this audience", where=line.where, got=line.audience, remedy=remedy)


def _rates(given: list[Given], reward: CopyReward) -> Iterator[Figure]:
    """Yield each line's click rate, with the interval of Student's t for what one more member would expect."""
    asked = [(line.item_id, line.audience, line.discount, line.line) for line in given]
    item_ids, audiences, discounts, lines = zip(*asked, strict=True)
    click = reward.by_member(item_ids, audiences, discounts, lines)["click"]  # (M, n)
    members, mean = len(click), click.mean(0)
    half = np.full(len(mean), math.nan)
    if members > 1:
        half = float(t.ppf(0.975, members - 1)) * click.std(0, ddof=1) * math.sqrt(1 + 1 / members)
    for value, low, high in zip(mean, np.maximum(mean - half, 0.0), np.minimum(mean + half, 1.0), strict=True):
        yield figure(float(value), float(low), float(high), members, "probability")
