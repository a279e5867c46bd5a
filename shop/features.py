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
        tally = FeatureTally(columns)
        tally.add(table)
        return tally.schema()

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


class FeatureTally:
    """What a schema is learned from, gathered from pieces of a table."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._numeric: list[str] | None = None
        self._texts: dict[str, Counter[str]] = {}
        self._count = self._mean = self._squares = np.zeros(0)

    def add(self, table: pd.DataFrame) -> None:
        """Add the rows of a piece; its columns are numbers, or texts, in all pieces."""
        if self._numeric is None:
            self._numeric = [c for c in self._columns if is_numeric_dtype(table[c]) and not is_bool_dtype(table[c])]
            self._texts = {c: Counter() for c in self._columns if c not in self._numeric}
            self._count, self._mean, self._squares = np.zeros((3, len(self._numeric)))
        values = table[self._numeric].to_numpy(np.float64)
        known = np.abs(values) <= LARGEST
        count = known.sum(axis=0)
        mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(known, values - mean, 0.0) ** 2).sum(axis=0)
        # Means and squares of two samples become those of both (Chan, Golub & LeVeque, 1979).
        both = np.maximum(self._count + count, 1)
        apart = mean - self._mean
        self._squares = self._squares + squares + apart**2 * self._count * count / both
        self._mean = self._mean + apart * count / both
        self._count = self._count + count
        for name, counter in self._texts.items():
            numbers, texts = _texts(table[name])
            times = np.bincount(numbers[numbers >= 0], minlength=len(texts)).tolist()
            for text, n in zip(texts, times, strict=True):
                counter[text] += n

    def schema(self) -> FeatureSchema:
        """Return the schema of all rows that were added.

        Means and scales have the precision of float32, which is how they are used: so they do not depend on how the
        rows came in pieces.
        """
        scale = np.sqrt(self._squares / np.maximum(self._count, 1))
        scale = np.where(scale > 1e-12 * (1.0 + np.abs(self._mean)), scale, 1.0)
        mean, scale = (array.astype(np.float32).tolist() for array in (self._mean, scale))
        categories = {name: _most_frequent(counter) for name, counter in self._texts.items()}
        return FeatureSchema(tuple(self._numeric or ()), tuple(mean), tuple(scale), categories)


def _texts(column: pd.Series) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return each row's number among the column's distinct values, -1 where missing, and those values as texts."""
    numbers, values = pd.factorize(column)
    return numbers, [str(value) for value in values]


def _most_frequent(count: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(sorted(count, key=lambda text: (-count[text], text))[:MAX_CATEGORIES]))
