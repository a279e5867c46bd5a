"""Whom a streamed log tells apart, by the numbers that ``shopper_codes`` gives to a table held whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from hawker.shop.stream import visit_keys

IntArray = npt.NDArray[np.int64]

AT_ONCE = 1 << 20
"""Ids that wait, at least, before those that are equal become one."""


@dataclass(frozen=True, eq=False)
class Units:
    """The shoppers of a log in alphabetical order, then the visits of those it does not know in order of time.

    Attributes:
        ids: The shoppers' ids, (S,).
        visits: Keys of the other visits, ascending, (V,); see ``visit_keys``.
        place: The number of each of these visits, from 0 in order of time, (V,).
        rows: Impressions of each shopper, then of each visit, (S + V,).
    """

    ids: pa.ChunkedArray
    visits: IntArray
    place: IntArray
    rows: IntArray

    @classmethod
    def of(cls, pieces: Iterable[pd.DataFrame]) -> Units:
        """Collect them from pieces of impressions with ``shopper_id``, ``visit_id`` and ``timestamp``."""
        known = _Counts("id", pa.large_string())
        others = _Counts("visit", pa.int64())
        for piece in pieces:
            known_row = piece["shopper_id"].notna().to_numpy()
            moment = piece["timestamp"].to_numpy("datetime64[us]").astype(np.int64)
            known.add(pa.array(piece["shopper_id"][known_row], pa.large_string()), moment[known_row])
            others.add(pa.array(visit_keys(piece["visit_id"][~known_row])), moment[~known_row])
        shoppers, visits = known.total().sort_by("id"), others.total()
        # Where two visits begin at one moment, their keys decide.
        order = pc.sort_indices(visits, sort_keys=[("first", "ascending"), ("visit", "ascending")]).to_numpy()
        keys, rows = visits["visit"].to_numpy()[order], visits["n"].to_numpy()[order]
        ascending = np.argsort(keys)
        counts = np.concatenate([shoppers["n"].to_numpy(), rows])
        return cls(shoppers["id"], keys[ascending], ascending, counts.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def codes(self, piece: pd.DataFrame) -> IntArray:
        """Return the number of each row's shopper, or visit where the shopper is unknown, shape (n,)."""
        known = piece["shopper_id"].notna().to_numpy()
        found = np.empty(len(piece), np.int64)
        number, ids = pd.factorize(piece["shopper_id"][known])
        place = pc.index_in(pa.array(ids, pa.large_string()), value_set=self.ids)
        found[known] = place.to_numpy(zero_copy_only=False).astype(np.int64)[number]
        if not known.all():
            at = np.searchsorted(self.visits, visit_keys(piece["visit_id"][~known]))
            found[~known] = len(self.ids) + self.place[at]
        return found


class _Counts:
    """How often each of some values came, and its first moment, with memory for the values that differ."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self._name = name
        self._schema = pa.schema([(name, kind), ("first", pa.int64()), ("n", pa.int64())])
        self._waiting: list[pa.Table] = []
        self._compact = 0

    def add(self, values: pa.Array, moments: IntArray) -> None:
        """Add values and their moments, shape (n,) both."""
        ones = pa.array(np.ones(len(values), np.int64))
        self._waiting.append(_summed(pa.table([values, moments, ones], schema=self._schema), self._name))
        if sum(map(len, self._waiting)) > max(AT_ONCE, 2 * self._compact):
            self._compact = len(self.total())

    def total(self) -> pa.Table:
        """Return each value once."""
        whole = _summed(pa.concat_tables([self._schema.empty_table(), *self._waiting]), self._name)
        self._waiting = [whole]
        return whole


def _summed(table: pa.Table, name: str) -> pa.Table:
    grouped: Any = table.group_by(name).aggregate([("first", "min"), ("n", "sum")])
    return grouped.rename_columns({"first_min": "first", "n_sum": "n"}).select([name, "first", "n"])
