"""From a log on disk to encoded logs on disk, one for each part of the split, in memory that the log does not fill.

The rows are read once to see whom the log tells apart, and once more to check them and to deal them out to files of
some whole shoppers each, which are then encoded one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_numeric_dtype

from hawker.shop.catalog import Catalog
from hawker.shop.context import ContextBuilder, with_time
from hawker.shop.contract import features
from hawker.shop.errors import InputError
from hawker.shop.language import Encoder
from hawker.shop.lines import Lines
from hawker.shop.stream import LogStream
from hawker.simulators.arrivals import chosen_units, first_rows
from hawker.simulators.query_world import Asked, QueryTally
from hawker.simulators.rows import encode_piece
from hawker.simulators.split import PARTS, deal
from hawker.simulators.stored import LogWriter, StoredLog
from hawker.simulators.support import Support
from hawker.simulators.units import Units

IntArray = npt.NDArray[np.int64]

PIECE = 500_000
"""Rows encoded at once, about: whole shoppers, though one of them may have more."""

LARGEST = {"position": 1_000, "offer": 100}
"""What a log may number: every position and every discount tier, from 0, has parameters of its own."""

_UNUSED = ("propensity", "price_shown", "ad_bid")
"""Columns that no shopper model reads."""


@dataclass
class PartSummary:
    """What is known of a part of a log.

    Attributes:
        rows: Its impressions.
        clicks: How many were clicked.
        first: Their first moment, and the last.
    """

    rows: int = 0
    clicks: int = 0
    first: pd.Timestamp | None = None
    last: pd.Timestamp | None = None

    def add(self, rows: pd.DataFrame) -> None:
        """Count more rows."""
        self.rows += len(rows)
        self.clicks += int(rows["clicked"].sum())
        first, last = rows["timestamp"].min(), rows["timestamp"].max()
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"impressions": self.rows, "clicks": self.clicks, "from": str(self.first), "to": str(self.last)}


@dataclass
class _Dealt:
    """The rows of a log, dealt out to files, and what was seen of them on the way."""

    files: dict[int, list[Path]]
    parts: list[PartSummary] = field(default_factory=lambda: [PartSummary() for _ in PARTS])
    largest: dict[str, int] = field(default_factory=lambda: {"position": 0, "offer": 0})
    copy: set[str] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class EncodedParts:
    """The parts of a log, encoded.

    Attributes:
        builder: Contexts and catalog, learned from the part to train against.
        lines: The lines of copy that the log shows.
        largest: The largest number of a position and of an offer.
        unit: What was split, "shopper" or "time".
        summaries: What is known of each part.
        logs: Each part.
        arrivals: The impressions that shoppers of a part, thinned where they are many, appeared with, in order of time.
        support: What the part to train against shows how often.
        asked: What is asked for in the part to train against; None where no query says anything.
    """

    builder: ContextBuilder
    lines: Lines | None
    largest: dict[str, int]
    unit: str
    summaries: dict[str, PartSummary]
    logs: dict[str, StoredLog]
    arrivals: dict[str, pd.DataFrame]
    support: Support
    asked: Asked | None = None


def encode_parts(
    stream: LogStream, shares: tuple[float, float, float], seed: int, encoder: Encoder | None, scratch: Path
) -> EncodedParts:
    """Split a log in three, and encode it.

    Args:
        stream: The log.
        shares: As ``three_way`` takes them.
        seed: Likewise.
        encoder: Reads items and lines.
        scratch: An empty directory that the encoded logs stand in as long as they are used.

    Raises:
        InputError: The log breaks a rule, or cannot be split.
    """
    units = Units.of(stream.who())
    unit = "shopper" if len(units.ids) else "time"
    part = deal(len(units), unit, shares, seed)
    tally, queries = ContextBuilder.tally(stream.columns), QueryTally()
    file = _files(units, part)
    dealt = _Dealt({i: [scratch / f"piece-{n}" for n in np.unique(file[part == i])] for i in range(len(PARTS))})
    writers: dict[int, pq.ParquetWriter] = {}
    for rows in stream.impressions(scratch):
        code = units.codes(rows)
        _see(dealt, rows, part[code])
        tally.add(with_time(rows[part[code] == 0]))
        queries.add(rows[part[code] == 0])
        _deal(writers, _plain(rows), file[code], scratch)
    for open_file in writers.values():
        open_file.close()
    for name, largest in dealt.largest.items():
        if largest > LARGEST[name]:
            where, expected = f"impressions column {name}", f"numbers from 0 to {LARGEST[name]}"
            raise InputError(
                "too large a number", where=where, got=largest, expected=expected, remedy="number them anew"
            )
    builder = ContextBuilder(tally.schema(), Catalog.from_items(stream.items, encoder))
    learned = queries.learned(stream.items, builder.catalog, encoder)
    if learned is not None:
        builder = builder.searching(learned[0])
    lines = None
    if encoder is not None and dealt.copy:
        lines = Lines.from_impressions(pd.DataFrame({"copy": pd.Series(sorted(dealt.copy), dtype="str")}), encoder)
    logs, arrivals, support = {}, {}, None
    for i, name in enumerate(PARTS):
        writer, firsts = LogWriter(scratch / name), []
        chosen, before = chosen_units(int((part == i).sum()), np.random.default_rng([seed, i, 1])), 0
        last = dealt.parts[i].last
        assert last is not None
        for path in dealt.files[i]:
            rows = _sorted(pq.ParquetFile(path).read().to_pandas())
            path.unlink()
            piece = encode_piece(rows, builder, lines, last, stream.events)
            writer.add(piece)
            here = int(piece.shopper.max()) + 1
            firsts.append(first_rows(rows, chosen[before : before + here]))
            before += here
            if i == 0:
                found = Support.from_impressions(rows, builder.catalog, lines, dealt.largest["offer"] + 1)
                support = found if support is None else support.plus(found)
        logs[name], arrivals[name] = writer.close(), _sorted(pd.concat(firsts, ignore_index=True))
    assert support is not None
    summaries = dict(zip(PARTS, dealt.parts, strict=True))
    asked = None if learned is None else learned[1]
    return EncodedParts(builder, lines, dealt.largest, unit, summaries, logs, arrivals, support, asked)


def _files(units: Units, part: npt.NDArray[np.int8]) -> IntArray:
    """Return the file of each unit's rows, shape (n_units,): a part's follow each other, with about ``PIECE`` rows."""
    file, used = np.zeros(len(units), np.int64), 0
    for i in range(len(PARTS)):
        own = part == i
        rows = units.rows[own]
        number = np.unique((rows.cumsum() - rows) // PIECE, return_inverse=True)[1]
        file[own] = used + number
        used += int(number[-1]) + 1
    return file


def _see(dealt: _Dealt, rows: pd.DataFrame, part: npt.NDArray[np.int8]) -> None:
    for i, summary in enumerate(dealt.parts):
        if (own := part == i).any():
            summary.add(rows[own])
    for name in dealt.largest:
        if name in rows:
            dealt.largest[name] = max(dealt.largest[name], int(rows[name].max()))
    if "copy" in rows:
        dealt.copy.update(map(str, rows["copy"].dropna().unique()))


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what models read, in types that do not depend on which rows came together."""
    types = {
        name: "float64" if is_numeric_dtype(rows[name]) else "str" for name in features("impressions", rows.columns)
    }
    return rows.drop(columns=[name for name in _UNUSED if name in rows]).astype(types)


def _deal(writers: dict[int, pq.ParquetWriter], rows: pd.DataFrame, file: IntArray, scratch: Path) -> None:
    """Append rows to the files they go to."""
    order = np.argsort(file, kind="stable")
    table = pa.Table.from_pandas(rows, preserve_index=False).take(pa.array(order))
    numbers, starts = np.unique(file[order], return_index=True)
    for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(order)], strict=True):
        if number not in writers:
            writers[number] = pq.ParquetWriter(scratch / f"piece-{number}", table.schema)
        writers[number].write_table(table[int(start) : int(end)])


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["timestamp", "visit_id", "page", "position"], kind="stable", ignore_index=True)
