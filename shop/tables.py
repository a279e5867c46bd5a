"""Table files: Parquet or CSV in, arrow columns out; bad rows go to a quarantine file that keeps them as they stood."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from hawker.shop.errors import InputError

QUARANTINE = "quarantine.parquet"
_QUARANTINE_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())]
)
_QUARANTINE_BATCH = 10_000  # rows turned into text at a time

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RawTable:
    """A table file as it was written. Parquet columns are read when asked for, so that they are never held all at once.

    Attributes:
        path: The file.
        data: Its n rows: an open Parquet file, or of a CSV file a table of texts, null where the cell is empty.
        rows: The row of the file that each row of ``data`` stands in, from 0, the header not counted. Shape (n,).
        torn: Rows of a CSV file with too many or too few cells, as (row, text, reason); they are not in ``data``.
        is_csv: Whether the file has no types of its own.
    """

    path: Path
    data: pa.Table | pq.ParquetFile
    rows: IntArray
    torn: tuple[tuple[int, str, str], ...]
    is_csv: bool

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        schema = self.data.schema_arrow if isinstance(self.data, pq.ParquetFile) else self.data.schema
        return [str(name) for name in schema.names]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column, shape (n,).

        Raises:
            InputError: Its part of the file is damaged.
        """
        if not isinstance(self.data, pq.ParquetFile):
            return self.data.column(name)
        with _reading(self.path):
            return self.data.read(columns=[name]).column(name)

    def table(self) -> pa.Table:
        """Return all columns.

        Raises:
            InputError: The file is damaged.
        """
        if not isinstance(self.data, pq.ParquetFile):
            return self.data
        with _reading(self.path):
            return self.data.read()

    def value(self, column: str, index: int) -> Any:
        """Return one cell as a plain Python value, a timestamp as text."""
        value = self.column(column)[index].as_py()
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def find_table(directory: Path, name: str) -> Path | None:
    """Return the file of a table, ``NAME.parquet`` or ``NAME.csv``, or None where there is neither.

    Raises:
        InputError: Both are there.
    """
    found = [path for path in (directory / f"{name}.parquet", directory / f"{name}.csv") if path.is_file()]
    if len(found) > 1:
        raise InputError(
            f"the table {name} is here twice",
            where=directory,
            got=[path.name for path in found],
            expected="one of them",
            remedy="remove the other",
        )
    return found[0] if found else None


def read_table(path: Path) -> RawTable:
    """Read a Parquet or CSV file.

    Raises:
        InputError: The file is empty, damaged, not of its format, has two columns of one name, or has no row.
    """
    with _reading(path):
        _refuse_empty(path)
        if path.suffix == ".csv":
            with path.open("rb") as text:
                raw = join(list(read_csv(text, path, block_bytes=1 << 24)))
        else:
            # pq.read_table would take key=value folder names of the path for columns.
            file = pq.ParquetFile(path)
            raw = RawTable(path, file, np.arange(file.metadata.num_rows, dtype=np.int64), (), False)
    check_names(raw)
    if raw.rows.size == 0 and not raw.torn:
        raise _no_rows(path)
    return raw


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise InputError("the file is empty (0 bytes)", where=path, remedy="write it anew")


def _no_rows(path: Path) -> InputError:
    return InputError("the table has no rows", where=path, expected="at least one row")


def read_pieces(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[RawTable]:
    """Yield a Parquet file in order, some rows at a time, in memory bounded by them; a CSV file comes as one piece.

    Args:
        path: The file.
        rows: Rows of a piece; row groups of the file may be smaller or larger.
        columns: The columns to read; all unless told.

    Raises:
        InputError: As ``read_table``.
    """
    if path.suffix == ".csv":
        yield read_table(path)
        return
    start, n = 0, 0
    waiting: list[pa.RecordBatch] = []
    with _reading(path):
        _refuse_empty(path)
        file = pq.ParquetFile(path)
        check_names(RawTable(path, file, np.empty(0, np.int64), (), False))
        if not file.metadata.num_rows:
            raise _no_rows(path)
        for batch in file.iter_batches(rows, columns=columns):
            waiting.append(batch)
            n += batch.num_rows
            while n >= rows:  # small row groups come together: a piece costs time of its own
                whole = pa.Table.from_batches(waiting)
                yield RawTable(path, whole[:rows], np.arange(start, start + rows), (), False)
                waiting, start, n = whole[rows:].to_batches(), start + rows, n - rows
        if n:
            yield RawTable(path, pa.Table.from_batches(waiting), np.arange(start, start + n), (), False)


def read_csv(file: BinaryIO, path: Path, *, block_bytes: int) -> Iterator[RawTable]:
    """Yield a CSV file block by block, every column as text, in memory bounded by ``block_bytes``.

    Args:
        file: The open file, uncompressed; it is closed at the end.
        path: Its name, for messages.
        block_bytes: Bytes of text per block; a header and each row must fit into one block.

    Raises:
        InputError: The text is not UTF-8 or not CSV.
    """
    torn: list[tuple[int, str, str]] = []

    def skip(row: Any) -> str:
        torn.append((row.number - 1, row.text, f"{row.actual_columns} cells, expected {row.expected_columns}"))
        return "skip"

    with _reading(path), io.BufferedReader(cast("io.RawIOBase", file), 1 << 16) as buffered:
        header = b"\n"
        while header and not header.strip():
            header = buffered.readline()
        if not header:
            raise InputError("the file has no header", where=path, expected="the names of the columns in its first row")
        names = next(csv.reader([header.decode("utf-8-sig")]))
        if not buffered.peek(1):
            empty = pa.schema([(name, pa.string()) for name in names]).empty_table()
            yield RawTable(path, empty, np.empty(0, np.int64), (), True)
            return
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(buffered, mode="r"),
            # Rows are numbered only when one thread reads.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=block_bytes, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
        following, told = 0, 0
        for batch in reader:
            rows, missing = batch.num_rows, {row for row, _, _ in torn if row >= following}
            numbers = np.setdiff1d(
                np.arange(following, following + rows + len(missing)), np.fromiter(missing, int, len(missing))
            )[:rows].astype(np.int64)
            following = int(numbers[-1]) + 1 if rows else following
            yield RawTable(path, pa.Table.from_batches([batch]), numbers, tuple(torn[told:]), True)
            told = len(torn)
        if told < len(torn):
            yield RawTable(path, reader.schema.empty_table(), np.empty(0, np.int64), tuple(torn[told:]), True)


def join(blocks: list[RawTable]) -> RawTable:
    """Return the blocks of one CSV file as one table."""
    first = blocks[0]
    return RawTable(
        first.path,
        pa.concat_tables([block.data for block in blocks]),
        np.concatenate([block.rows for block in blocks]),
        tuple(torn for block in blocks for torn in block.torn),
        True,
    )


@contextlib.contextmanager
def open_compressed(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, uncompressed if its name ends in ``.xz``, ``.gz``, ``.bz2`` or ``.zst``.

    Raises:
        InputError: The file cannot be read or its compressed data are damaged.
    """
    with _reading(path):
        if path.suffix == ".xz":
            with lzma.open(path) as file:
                yield cast("BinaryIO", file)
        else:
            with pa.input_stream(str(path), compression="detect") as stream:
                yield cast("BinaryIO", stream)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what arrow, lzma and the file system say of an unreadable file into one line."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (pa.ArrowException, lzma.LZMAError, EOFError, OSError, UnicodeDecodeError, csv.Error) as error:
        kind = "CSV" if ".csv" in path.suffixes else path.suffix.removeprefix(".")
        text = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise InputError(
            f"the file cannot be read ({text})",
            where=path,
            expected=f"a whole {kind.capitalize() if kind == 'parquet' else kind} file",
            remedy="write or fetch it anew",
        ) from None


def check_names(raw: RawTable) -> None:
    """Refuse a table in which two columns have one name.

    Raises:
        InputError: It does.
    """
    twice = [name for name, times in Counter(raw.names).items() if times > 1]
    if twice:
        raise InputError("two columns have one name", where=raw.path, got=twice[0], remedy="rename or drop one")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as Parquet, without its index."""
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, compression="zstd")


class Quarantine:
    """The file that bad rows go to: file, row (from 0), reason, and the row as it stood, as text.

    It is a context manager and writes no file when no row came.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / QUARANTINE
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, raw: RawTable, reasons: dict[int, str]) -> None:
        """Add the torn rows of a table, and the rows of its data at ``reasons``'s keys."""
        self.add_text(raw.path.name, [(row, reason, text) for row, text, reason in raw.torn])
        if not reasons:
            return
        indices, data = sorted(reasons), raw.table()
        for start in range(0, len(indices), _QUARANTINE_BATCH):
            some = indices[start : start + _QUARANTINE_BATCH]
            texts = [_text(record, raw.is_csv) for record in data.take(some).to_pylist()]
            self.add_text(
                raw.path.name,
                [(int(raw.rows[i]), reasons[i], text) for i, text in zip(some, texts, strict=True)],
            )

    def add_text(self, file: str, rows: list[tuple[int, str, str]]) -> None:
        """Add rows as (row, reason, text)."""
        if rows:
            numbers, reasons, texts = zip(*rows, strict=True)
            self.add_table(
                pa.table([[file] * len(rows), list(numbers), list(reasons), list(texts)], schema=_QUARANTINE_SCHEMA)
            )

    def add_table(self, table: pa.Table) -> None:
        """Add rows in the quarantine's own columns.

        Raises:
            InputError: The table has other columns.
        """
        if table.column_names != _QUARANTINE_SCHEMA.names:
            raise InputError(
                "not the columns of a quarantine file",
                where=QUARANTINE,
                got=table.column_names,
                expected=", ".join(_QUARANTINE_SCHEMA.names),
            )
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, _QUARANTINE_SCHEMA, compression="zstd")
        self._writer.write_table(table.cast(_QUARANTINE_SCHEMA))
        self.rows += table.num_rows


def _text(record: dict[str, Any], is_csv: bool) -> str:
    if not is_csv:
        return json.dumps(record, default=str)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(record.values())
    return line.getvalue()
