"""Tables of features as arrays: one schema, learned once from the logs, used by logs, worlds and serving alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from hawker.shop.errors import InputError

MAX_CATEGORIES = 200
"""Categories kept per column, the most frequent ones; a rarer or unseen one encodes as all zeros."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a feature can hold."""

EFFECT_OFFER, EFFECT_LINE = "effect.offer.", "effect.line."
"""What begins the names of columns that tell what each offer tier, and each line of the bank, makes of what a page is
worth at once: the logarithm of its factor. A number follows."""


@dataclass(frozen=True)
class FeatureSchema:
    """How the columns of a table become a float vector of ``width`` entries.

    Numeric columns come first and keep their own units (whoever computes with them subtracts ``centre`` and divides by
    ``spread``); then every category gets one 0/1 entry. An unknown category is all zeros and a missing number is the
    column's mean, so that a page can be served when a feature is late; so is a number that float32 cannot hold.

    Attributes:
        numeric: Names of the numeric columns.
        mean: Mean of each numeric column.
        scale: Standard deviation of each numeric column, 1 where it is constant.
        categories: For each text column its categories, in the order of their entries.
    """

    numeric: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    categories: dict[str, tuple[str, ...]]

    @classmethod
    def fit(cls, table: pd.DataFrame, columns: list[str]) -> FeatureSchema:
        """Learn the schema of ``columns`` from ``table``."""
        numeric = [c for c in columns if is_numeric_dtype(table[c]) and not is_bool_dtype(table[c])]
        values = table[numeric].to_numpy(np.float64)
        known = np.abs(values) <= LARGEST
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0.0).sum(axis=0) / count
        scale = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / count)
        categories = {c: _most_frequent(table[c]) for c in columns if c not in numeric}
        scale = np.where(scale > 1e-12 * (1.0 + np.abs(mean)), scale, 1.0)
        return cls(tuple(numeric), tuple(mean.tolist()), tuple(scale.tolist()), categories)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, numeric ones first."""
        return [*self.numeric, *self.categories]

    @property
    def width(self) -> int:
        """Entries of an encoded row."""
        return len(self.numeric) + sum(map(len, self.categories.values()))

    @property
    def centre(self) -> npt.NDArray[np.float32]:
        """What to subtract from an encoded row to centre it: shape (width,)."""
        return np.array([*self.mean, *[0.0] * (self.width - len(self.numeric))], np.float32)

    @property
    def spread(self) -> npt.NDArray[np.float32]:
        """What to divide a centred row by to bring it to unit scale: shape (width,), positive."""
        return np.array([*self.scale, *[1.0] * (self.width - len(self.numeric))], np.float32)

    def encode(self, table: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Return the rows of ``table`` as an array of shape (n, width); columns it lacks count as missing."""
        encoded = np.zeros((len(table), self.width), np.float32)
        for i, (name, mean) in enumerate(zip(self.numeric, self.mean, strict=True)):
            if name in table:
                values = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
                encoded[:, i] = np.where(np.abs(values) <= LARGEST, values, mean)
            else:
                encoded[:, i] = mean
        start = len(self.numeric)
        for name, known in self.categories.items():
            if name in table:
                distinct, texts = _texts(table[name])
                place = {text: i for i, text in enumerate(known)}
                code = np.array([*(place.get(text, -1) for text in texts), -1])[distinct]
                rows = np.flatnonzero(code >= 0)
                encoded[rows, start + code[rows]] = 1.0
            start += len(known)
        return encoded

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as JSON values."""
        return {
            "numeric": {
                name: {"mean": mean, "scale": scale}
                for name, mean, scale in zip(self.numeric, self.mean, self.scale, strict=True)
            },
            "categories": {name: list(known) for name, known in self.categories.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object) -> FeatureSchema:
        """Build a schema from what ``to_dict`` returned.

        Raises:
            InputError: ``values`` has another form.
        """
        try:
            numeric = values["numeric"]
            return cls(
                tuple(numeric),
                tuple(float(entry["mean"]) for entry in numeric.values()),
                tuple(float(entry["scale"]) for entry in numeric.values()),
                {name: tuple(known) for name, known in values["categories"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("not a feature schema", where=where, got=repr(error)) from None


def _texts(column: pd.Series) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return each row's number among the column's distinct values, -1 where missing, and those values as texts."""
    numbers, values = pd.factorize(column)
    return numbers, [str(value) for value in values]


def _most_frequent(column: pd.Series) -> tuple[str, ...]:
    numbers, texts = _texts(column)
    count: Counter[str] = Counter()
    for text, n in zip(texts, np.bincount(numbers[numbers >= 0], minlength=len(texts)).tolist(), strict=True):
        count[text] += n
    return tuple(sorted(sorted(count, key=lambda text: (-count[text], text))[:MAX_CATEGORIES]))
