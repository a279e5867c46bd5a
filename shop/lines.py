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
from hawker.shop.language import Encoder


@dataclass(frozen=True, eq=False)
class Lines:
    """A bank of lines in a fixed order: a line is its number in it.

    Attributes:
        texts: The lines.
        vectors: Their encodings, shape (n_lines, width).
        centre: What to subtract from an encoding, shape (width,).
        scale: What to divide it by afterwards: as with item texts, all entries share one scale.
    """

    texts: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    scale: float

    @classmethod
    def from_impressions(cls, impressions: pd.DataFrame, encoder: Encoder) -> Lines | None:
        """Collect the lines of a log, in alphabetical order; None where it shows none."""
        if "copy" not in impressions or impressions["copy"].isna().all():
            return None
        texts = tuple(sorted(map(str, impressions["copy"].dropna().unique())))
        vectors = encoder.encode(texts)
        variance = float(vectors.var(0).sum())
        scale = float(np.sqrt(variance / TEXT_VARIANCE)) if variance > 1e-12 else 1.0
        return cls(texts, vectors, vectors.mean(0), scale)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def scaled(self) -> npt.NDArray[np.float32]:
        """The encodings centred and scaled, shape (n_lines, width)."""
        return np.asarray((self.vectors - self.centre) / np.float32(self.scale), np.float32)

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
        """Return the bank with other lines in place of its own, on the same scale."""
        return Lines(texts, encoder.encode(texts), self.centre, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the vectors as JSON values."""
        return {"texts": list(self.texts), "scale": self.scale}
