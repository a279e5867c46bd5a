"""The lines of copy that a shop's logs have shown, as vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.catalog import TEXT_VARIANCE
from hawker.shop.errors import InputError
from hawker.shop.language import Encoder, HashedEncoder

ROOM = 2_048
"""Least width of hashed encodings of lines: what a new line shares with those of the logs is a few n-grams, which must
not share their entries with others."""

AXES = 128
"""Most entries of a line's vector."""

ENOUGH = 2_048
"""Lines, evenly from a longer bank, that the axes are found with."""


@dataclass(frozen=True, eq=False)
class Lines:
    """A bank of lines in a fixed order: a line is its number in it.

    A log shows few lines, so their wide encodings vary along few axes. Turned onto those, and cut off behind the first
    128, they are small, and as near to each other as before.

    Attributes:
        texts: The lines.
        vectors: Their encodings, centred, on the axes, shape (n_lines, n_axes).
        centre: What to subtract from an encoding, shape (width,).
        axes: The principal axes of the log's lines, shape (width, n_axes).
        scale: What to divide by afterwards: as with item texts, all entries share one scale.
    """

    texts: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    axes: npt.NDArray[np.float32]
    scale: float

    @classmethod
    def from_impressions(cls, impressions: pd.DataFrame, encoder: Encoder) -> Lines | None:
        """Collect the lines of a log, in alphabetical order; None where it shows none."""
        if "copy" not in impressions or impressions["copy"].isna().all():
            return None
        texts = tuple(sorted(map(str, impressions["copy"].dropna().unique())))
        encodings = _encode(texts, encoder)
        centre = encodings.mean(0)
        axes = _principal_axes(encodings - centre)
        vectors = (encodings - centre) @ axes
        variance = float(vectors.var(0).sum())
        scale = float(np.sqrt(variance / TEXT_VARIANCE)) if variance > 1e-12 else 1.0
        return cls(texts, vectors, centre, axes, scale)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def scaled(self) -> npt.NDArray[np.float32]:
        """The vectors, scaled, shape (n_lines, n_axes)."""
        return self.vectors / np.float32(self.scale)

    @cached_property
    def _number(self) -> pd.Index:
        return pd.Index(self.texts)

    def index(self, column: pd.Series) -> npt.NDArray[np.int64]:
        """Return the number of each text, -1 where there is none, shape (n,).

        Raises:
            InputError: A text is not in the bank.
        """
        codes, texts = pd.factorize(column)
        found = self._number.get_indexer(pd.Index([str(text) for text in texts]))
        if (found < 0).any():
            unknown = str(texts[int(np.argmax(found < 0))])
            raise InputError("a line that is not in the bank", where="column copy", got=unknown[:80])
        return np.append(found, -1)[codes].astype(np.int64)

    def with_texts(self, texts: tuple[str, ...], encoder: Encoder) -> Lines:
        """Return the bank with other lines in place of its own, on the same axes and scale."""
        vectors = np.asarray((_encode(texts, encoder) - self.centre) @ self.axes, np.float32)
        return Lines(texts, vectors, self.centre, self.axes, self.scale)

    def familiar(self, texts: tuple[str, ...], encoder: Encoder) -> npt.NDArray[np.float32]:
        """Return how much of each text is the bank's, shape (n,), from 0 to 1: all of it where it is in the bank.

        Of another it is the share of its encoding, squared and from the centre on, that lies along the axes.
        """
        apart = _encode(texts, encoder) - self.centre
        along, whole = np.square(apart @ self.axes).sum(1), np.square(apart).sum(1)
        found = np.divide(along, whole, out=np.ones_like(whole), where=whole > 0)
        known = set(self.texts)
        return np.asarray(np.where([text in known for text in texts], 1.0, found.clip(0.0, 1.0)), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the arrays as JSON values."""
        return {"texts": list(self.texts), "scale": self.scale}


def _encode(texts: tuple[str, ...], encoder: Encoder) -> npt.NDArray[np.float32]:
    if isinstance(encoder, HashedEncoder):
        encoder = HashedEncoder(max(encoder.width, ROOM))
    return encoder.encode(texts)


def _principal_axes(centred: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the axes along which rows (n, width) vary most, shape (width, n_axes), one at least."""
    some = centred[:: -(-len(centred) // ENOUGH)]
    _, lengths, axes = np.linalg.svd(some.astype(np.float64), full_matrices=False)
    count = max(1, min(AXES, int((lengths > 1e-4 * lengths[0]).sum())))
    # The sign of an axis is arbitrary: that which makes its largest entry positive.
    axes = axes[:count]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    return np.ascontiguousarray(axes.T, np.float32)
