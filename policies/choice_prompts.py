"""Prompts by which a language model chooses items: what it is told of a shopper, and candidates by label.

All words stand in ``data/choice.yaml``. Text of the catalogue and of the log is data, as in `hawker.policies.briefs`:
delimited and capped, it cannot forge a delimiter, a label on a line of its own, or a special token.
"""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from hawker.policies.briefs import DATA, data
from hawker.shop.catalog import Catalog
from hawker.shop.context import TIME
from hawker.shop.errors import InputError
from hawker.shop.features import EFFECT_LINE, EFFECT_OFFER, FeatureSchema

TEMPLATE: dict[str, Any] = yaml.safe_load((DATA / "choice.yaml").read_text(encoding="utf-8"))

LETTERS = string.ascii_uppercase + string.ascii_lowercase
"""Labels, in the order in which candidates get them."""

FITS = 9
"""The fit of the candidate that the shopper has the highest affinity with; that of the lowest is 0."""

CENTS = 10.0
"""Prices below this are told to the cent; many tokenizers take a token for each digit."""

OPAQUE = ("history.", EFFECT_OFFER, EFFECT_LINE)
"""What begins the names of columns that a reader's memory fills: numbers that no word tells. What they come to is in
the affinities, which prompts tell as fits."""


def item_words(items: pd.DataFrame, catalog: Catalog) -> tuple[str, ...]:
    """Return what prompts say of each item of a catalog, in its order: title, category and price as far as known.

    Args:
        items: The log's table of items; an item without a title goes by its id.
        catalog: Its items are among those of the table.

    Raises:
        InputError: The table lacks an item.
    """
    rows = {str(row["item_id"]): row for row in items.to_dict("records")}
    if missing := [item for item in catalog.item_ids if item not in rows]:
        raise InputError("an item is not in the table items", where="items", got=missing[0])
    return tuple(_words(item, rows[item]) for item in catalog.item_ids)


def _words(item: str, row: dict[Any, Any]) -> str:
    known = {name: value for name, value in row.items() if not pd.api.types.is_scalar(value) or not pd.isna(value)}
    parts = [_delimited("title", str(known.get("title", ""))) or _delimited("title", item)]
    if "category" in known:
        parts.append(_delimited("category", str(known["category"])))
    if isinstance(known.get("price"), (int, float)) and math.isfinite(known["price"]):
        price = float(known["price"])
        parts.append(f"{price:.2f}" if price < CENTS else f"{price:.0f}")
    return ", ".join(filter(None, parts))


def shopper_words(schema: FeatureSchema, row: npt.NDArray[np.float32]) -> str:
    """Return what a prompt says of a shopper from its encoded features, shape (width,).

    A category that the schema does not know is left out; a missing number is the column's mean, as everywhere.
    """
    values: dict[str, str] = {}
    for name, value in zip(schema.numeric, row.tolist(), strict=False):
        if name not in TIME and not name.startswith(OPAQUE):
            values[name] = f"{value:.3g}"
    start = len(schema.numeric)
    for name, known in schema.categories.items():
        place = np.flatnonzero(row[start : start + len(known)] > 0.5)
        if len(place) and not name.startswith(OPAQUE):
            values[name] = _delimited("value", known[place[0]])
        start += len(known)
    told = list(values.items())[: TEMPLATE["most_features"]]
    longest = TEMPLATE["longest"]["name"]
    features = [TEMPLATE["feature"].format(name=data(name, longest), value=value) for name, value in told if value]
    if (hour := _hour(schema, row)) is not None:
        features.append(TEMPLATE["feature"].format(name="hour", value=hour))
    return ", ".join(features)


def fits(affinity: npt.NDArray[np.float32]) -> list[int] | None:
    """Return the fits of a page's n candidates, from 0 to ``FITS``, by affinity (n,); None where all are alike."""
    low, high = float(affinity.min()), float(affinity.max())
    if not high > low:
        return None
    return [round(FITS * (value - low) / (high - low)) for value in affinity.tolist()]


def with_fit(words: str, fit: int) -> str:
    """Return the words of an item with its fit."""
    return f"{words}, {TEMPLATE['fit'].format(fit=fit)}"


def shuffled(shopper: str, items: Sequence[str], seed: int) -> list[int]:
    """Return the order in which a page's items get their labels: a function of what is told, and of a seed."""
    said = "\n".join([str(seed), shopper, *items])
    digest = hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=16).digest()
    return [int(i) for i in np.random.default_rng(int.from_bytes(digest)).permutation(len(items))]


def choice_messages(shopper: str, items: Sequence[str], labels: Sequence[str]) -> list[dict[str, str]]:
    """Return the chat messages that ask for one of the items; what follows is ``answer`` and a label.

    Args:
        shopper: As ``shopper_words`` tells.
        items: The words of each item.
        labels: At least as many; they are dealt out in their order.
    """
    lines = [TEMPLATE["item"].format(label=label, words=words) for label, words in zip(labels, items, strict=False)]
    told = [TEMPLATE["shopper"].format(features=shopper)] if shopper else []
    asked = "\n".join([*told, TEMPLATE["items"], *lines, TEMPLATE["ask"]])
    return [{"role": "system", "content": TEMPLATE["system"]}, {"role": "user", "content": asked}]


def choice_text(shopper: str, items: Sequence[str], labels: Sequence[str]) -> str:
    """Return the same for a tokenizer without a chat template."""
    return "".join(f"{message['content']}\n" for message in choice_messages(shopper, items, labels))


def _hour(schema: FeatureSchema, row: npt.NDArray[np.float32]) -> int | None:
    """Return the hour of the day, UTC, 0 to 23; None where the context does not tell it."""
    if not set(TIME) <= set(schema.numeric):
        return None
    sine, cosine = (float(row[schema.numeric.index(name)]) for name in TIME)
    if math.hypot(sine, cosine) < 0.5:  # not on the circle: the mean of all hours
        return None
    return round(24 * math.atan2(sine, cosine) / (2 * math.pi)) % 24


def _delimited(name: str, text: str) -> str:
    inner = data(text, TEMPLATE["longest"][name])
    return f"{TEMPLATE['open']}{inner}{TEMPLATE['close']}" if inner else ""
