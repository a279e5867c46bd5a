"""Encoded logs on disk: written piece by piece, and read through the system's page cache as if they were in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hawker.simulators.rows import EncodedLog, Rows, Timeline

BLOCK = 200_000
"""Rows of whole shoppers that ``blocks`` yields at once, about."""

_ROWS = {
    "page": torch.int32,
    "item": torch.int32,
    "position": torch.int16,
    "affinity": torch.float32,
    "clicked": torch.uint8,
    "converted": torch.float16,  # 0, 1 or NaN
    "revenue": torch.float32,
    "line": torch.int32,
    "offer": torch.uint8,
    "ad": torch.uint8,
}
_ABSENT = {"converted": torch.nan, "revenue": torch.nan, "line": -1, "offer": 0, "ad": 0}
"""What stands in a piece without one of these columns: another piece may have it."""

_PAGES = {
    "shopper": torch.float32,
    "stamp": torch.float64,
    **dict.fromkeys(("gap", "number", "closes", "wait", "returned"), torch.float32),
}


@dataclass(frozen=True)
class StoredLog(EncodedLog):
    """A log on disk. Its tensors are files mapped into memory, not to be changed; processes share them by their path.

    Attributes:
        path: The directory.
        shape: What ``open_log`` needs to know of it.
    """

    path: Path
    shape: dict[str, int]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_log, (self.path, self.shape)


class LogWriter:
    """Writes a log that comes in pieces of whole shoppers, in their order, as ``encode_piece`` gives them."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path, self._present = path, set(_ROWS) - set(_ABSENT)
        self._counts = dict.fromkeys(("rows", "pages", "units", "owners", "width"), 0)

    def add(self, log: EncodedLog) -> None:
        """Append a piece."""
        rows, time, n = log.rows, log.rows.time, self._counts
        assert time is not None
        for name, kind in _ROWS.items():
            values = getattr(rows, name)
            if values is None:
                values = torch.full((len(rows),), _ABSENT[name])
            else:
                self._present.add(name)
            self._append(name, values + n["pages"] if name == "page" else values, kind)
        pages = {"shopper": rows.shopper, "stamp": log.stamp}
        for name, kind in _PAGES.items():
            self._append(name, pages[name] if name in pages else getattr(time, name), kind)
        self._append("first", time.first[:-1] + n["pages"], torch.int64)
        self._append("owner", torch.from_numpy(log.shopper) + n["owners"], torch.int64)
        n["rows"] += len(rows)
        n["pages"] += len(rows.shopper)
        n["units"] += len(time)
        n["owners"] += int(log.shopper.max()) + 1
        n["width"] = rows.shopper.shape[1]

    def close(self) -> StoredLog:
        """Return the log. Where nobody has more than one page it has no timeline."""
        self._append("first", torch.tensor([self._counts["pages"]]), torch.int64)
        absent = {name: 0 for name in _ABSENT if name not in self._present}
        return open_log(self._path, self._counts | absent)

    def _append(self, name: str, values: Tensor, kind: torch.dtype) -> None:
        with (self._path / name).open("ab") as file:
            values.to(kind).contiguous().numpy().tofile(file)


def open_log(path: Path, shape: dict[str, int]) -> StoredLog:
    """Open a log that ``LogWriter`` wrote."""

    def mapped(name: str, kind: torch.dtype, *size: int) -> Tensor:
        count = int(np.prod(size))
        return torch.from_file(str(path / name), shared=True, size=count, dtype=kind).view(size)

    n, n_pages, units = shape["rows"], shape["pages"], shape["units"]
    columns = {name: mapped(name, kind, n) for name, kind in _ROWS.items() if name not in shape}
    if (path / "believed").exists():
        columns["believed"] = mapped("believed", torch.float32, n, 2)
    time = None
    if shape["owners"] < n_pages:
        rest = (mapped(name, torch.float32, n_pages) for name in _PAGES if name not in ("shopper", "stamp"))
        time = Timeline(mapped("first", torch.int64, units + 1), *rest)
    rows = Rows(shopper=mapped("shopper", torch.float32, n_pages, shape["width"]), time=time, **columns)
    owner = mapped("owner", torch.int64, units).numpy()
    return StoredLog(rows, np.zeros(0, np.int64), owner, mapped("stamp", torch.float64, n_pages), path, shape)


def blocks(log: EncodedLog, size: int = BLOCK) -> Iterator[Rows]:
    """Yield a log in order, some whole shoppers at a time, as numbers to compute with."""
    rows, time = log.rows, log.rows.time
    ends = rows.start[1:] if time is None else rows.start[time.first[1:]]
    start, n = 0, len(ends)
    while start < n:
        before = 0 if start == 0 else int(ends[start - 1])
        stop = max(start + 1, int(torch.searchsorted(ends, before + size, right=True)))
        units = torch.arange(start, stop)
        yield rows.take(units) if time is None else rows.take(time.pages(units), time.take(units))
        start = stop


def with_beliefs(log: EncodedLog, believing: Callable[[Rows, npt.NDArray[np.int64]], Rows]) -> EncodedLog:
    """Return the log with the column ``believed``, which ``believing`` adds to rows of whole shoppers.

    It is given their entries in ``log.shopper``, too.
    """
    if not isinstance(log, StoredLog):
        return replace(log, rows=believing(log.rows, log.shopper))
    done = 0
    with (log.path / "believed").open("wb") as file:
        for rows in blocks(log):
            assert rows.time is not None
            told = believing(rows, log.shopper[done : done + len(rows.time)]).believed
            done += len(rows.time)
            assert told is not None
            told.float().cpu().contiguous().numpy().tofile(file)
    return open_log(log.path, log.shape)


def some_units(log: EncodedLog, most: int, seed: int) -> EncodedLog:
    """Return a log or, of a longer one, whole shoppers drawn at random, about ``most`` rows, to compute with."""
    rows, units = log.rows, torch.arange(len(log.shopper))
    if len(rows) > most:
        order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))
        units = order[: max(1, len(units) * most // len(rows))].sort().values
    pages = units if rows.time is None else rows.time.pages(units)
    taken = rows.take(pages, None if rows.time is None else rows.time.take(units))
    return EncodedLog(taken, np.zeros(0, np.int64), log.shopper[units.numpy()], log.stamp[pages])
