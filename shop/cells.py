"""How the cells of a column are read as what they are meant to be: ids, texts, numbers, times, lists, features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["key", "id", "text", "number", "time", "list", "feature", "affinity"]

_A_TIME = "a time with its zone, such as 2026-11-22T10:00:00Z"
_ZONE = r"[T ]\d{2}.*(?:[zZ]|[+-]\d{2}(?::?\d{2})?)$"
_FLOAT_ID = r"-?\d+\.0"
_NULL_WORDS = ("nan", "na", "null", "none")

_Read = tuple[pd.Series, dict[str, npt.NDArray[np.bool_]]] | None


def read_cells(column: pa.ChunkedArray, kind: Kind, is_csv: bool) -> _Read:
    """Read a column.

    Args:
        column: Its cells, shape (n,).
        kind: What they are meant to be.
        is_csv: Whether the column is text only because its file knows nothing else.

    Returns:
        The values, missing where a cell is empty or could not be read, and the cells that could not be read, as a mask
        of shape (n,) per rule they break; None if the whole column has a type that cannot be meant.
    """
    try:
        return _READERS[kind](_plain(column), is_csv)
    except pa.ArrowException:  # a number that does not fit
        return None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with dictionaries decoded and every text a large string, empty ones missing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    if pa.types.is_large_string(column.type):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _read_text(column: pa.ChunkedArray, _: bool) -> _Read:
    if pa.types.is_floating(column.type):  # what pandas makes of whole numbers when one is missing
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column).cast(pa.int64())
    if not (_is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        return None
    return column.cast(pa.large_string()).to_pandas().astype("str"), {}


def _read_id(column: pa.ChunkedArray, is_csv: bool) -> _Read:
    read = _read_text(column, is_csv)
    if read is not None and is_csv and read[0].dropna().str.fullmatch(_FLOAT_ID).all():  # floats of pandas, once more
        return read[0].str.removesuffix(".0"), {}
    return read


def _read_key(column: pa.ChunkedArray, is_csv: bool) -> _Read:
    if pa.types.is_integer(column.type) and column.null_count == 0:
        with contextlib.suppress(pa.ArrowInvalid):  # an unsigned number may be too large: then it is a text
            return column.cast(pa.int64()).to_pandas(), {}
    return _read_id(column, is_csv)


def _read_number(column: pa.ChunkedArray, _: bool) -> _Read:
    if _is_text(column.type):
        try:
            return pc.utf8_trim_whitespace(column).cast(pa.float64()).to_pandas(), {}
        except pa.ArrowInvalid:
            text = column.to_pandas().astype("str")
            values = pd.to_numeric(text, errors="coerce").astype("float64")
            bad = values.isna() & text.notna() & ~text.str.strip().str.lower().isin(_NULL_WORDS)
            return values, {"a number": bad.to_numpy(bool)}
    if not (_is_number(column.type) or pa.types.is_null(column.type)):
        return None
    return column.cast(pa.float64(), safe=False).to_pandas(), {}


def _read_affinity(column: pa.ChunkedArray, is_csv: bool) -> _Read:
    read = _read_number(column, is_csv)
    if read is None:
        return None
    with np.errstate(over="ignore"):  # becomes infinite, which a rule forbids
        return read[0].astype("float32"), read[1]


def _read_time(column: pa.ChunkedArray, _: bool) -> _Read:
    if _is_text(column.type):
        try:
            return pc.utf8_trim_whitespace(column).cast(pa.timestamp("us", "UTC")).to_pandas(), {}
        except pa.ArrowInvalid:
            text = column.to_pandas().astype("str").str.strip()
            values = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
            zoned = text.str.contains(_ZONE, regex=True, na=False)
            return values, {_A_TIME: (text.notna() & (values.isna() | ~zoned)).to_numpy(bool)}
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        return None
    zoned = pa.types.is_timestamp(column.type) and column.type.tz is not None
    values = column.cast(pa.timestamp("us", column.type.tz if zoned else None), safe=False)
    times = (values.cast(pa.timestamp("us", "UTC")) if zoned else pc.assume_timezone(values, "UTC")).to_pandas()
    return times, {} if zoned else {_A_TIME: times.notna().to_numpy(bool)}


def _read_list(column: pa.ChunkedArray, _: bool) -> _Read:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return None
    return pd.Series(column.to_pylist(), dtype="object"), {}


def _read_feature(column: pa.ChunkedArray, is_csv: bool) -> _Read:
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_decimal(kind) or pa.types.is_null(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    elif _is_text(kind):
        if is_csv:  # a column of numbers, if every cell is one
            read = _read_number(column, is_csv)
            if read is not None and not read[1]:
                return read
        values = column.dictionary_encode().to_pandas()
        return values.cat.set_categories(pd.Index(sorted(values.cat.categories), dtype="str")), {}
    elif not _is_number(kind):
        return None
    return column.to_pandas(), {}


_READERS: Mapping[Kind, Callable[[pa.ChunkedArray, bool], _Read]] = {
    "key": _read_key,
    "id": _read_id,
    "text": _read_text,
    "number": _read_number,
    "time": _read_time,
    "list": _read_list,
    "feature": _read_feature,
    "affinity": _read_affinity,
}
EXPECTED: Mapping[Kind, str] = {
    "key": "text or whole numbers, none missing",
    "id": "text or whole numbers",
    "text": "text",
    "number": "numbers",
    "time": "timestamps in UTC",
    "list": "lists (in a Parquet file)",
    "feature": "numbers or text",
    "affinity": "numbers",
}
