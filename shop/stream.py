"""A shop's logs read some rows at a time, so that they may be larger than memory: the same rules, the same messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.artefacts import CHECKSUMS, find_directory, verify_directory
from hawker.shop.contract import (
    DUPLICATE,
    FUTURE,
    ONCE,
    Fault,
    are_whole,
    check_columns,
    each_once,
    typed,
    up_to_tomorrow,
)
from hawker.shop.errors import InputError
from hawker.shop.logs import (
    Inspected,
    digest,
    find_tables,
    inspect_table,
    is_simulated,
    refusal,
    refuse_faults,
    refuse_strangers,
    with_shoppers,
)
from hawker.shop.tables import RawTable, read_pieces, read_table

ROWS = 1 << 17
"""Rows held at once; of pages, whose lists of candidates are long, an eighth of them."""

KEY_FILES = 16
"""Files that a table's keys are dealt out to; a sixteenth of them is compared at once."""

_WHO = ["visit_id", "shopper_id", "timestamp"]
_KEY = np.dtype([("visit", np.int64), ("page", np.int32), ("position", np.int32)])


@dataclass(frozen=True, eq=False)
class LogStream:
    """A logs directory with impressions. Items, shoppers and events are held, impressions and pages are streamed.

    Attributes:
        path: The directory.
        files: Its table files by name.
        items: The catalogue, as ``hawker.shop.logs.Logs`` has it.
        shoppers: One row per ``shopper_id`` and features, where there are any.
        events: What shoppers did where no exposure is recorded, in file order.
        columns: Names of the columns of impressions, the shoppers' features included.
        now: As ``hawker.shop.logs.inspect_logs`` takes it.
        digest: SHA-256 over the table files.
    """

    path: Path
    files: dict[str, Path]
    items: pd.DataFrame
    shoppers: pd.DataFrame | None
    events: pd.DataFrame | None
    columns: tuple[str, ...]
    now: pd.Timestamp | None
    digest: str

    def who(self) -> Iterator[pd.DataFrame]:
        """Yield ``visit_id``, ``shopper_id`` and ``timestamp`` of all impressions in file order, not yet checked.

        Visits are numbers (int64) or, in all rows, texts; see ``visits_are_numbers``.
        """
        for raw in read_pieces(self.files["impressions"], ROWS, _WHO):
            yield self._same_visits(typed("impressions", raw, columns=_WHO)[0])

    def impressions(self, scratch: Path) -> Iterator[pd.DataFrame]:
        """Yield all impressions in file order, as ``Logs`` has them but for their order, index from 0 each time.

        Args:
            scratch: A directory for what is compared across pieces: 16 bytes a row.

        Raises:
            InputError: A row breaks a rule. Rules that take the whole table are known to hold at the end.
        """
        for frame in self._checked("impressions", scratch):
            yield frame if self.shoppers is None else with_shoppers(frame, self.shoppers, self.path)

    def pages(self, scratch: Path) -> Iterator[pd.DataFrame]:
        """Yield the table pages likewise; nothing where there is none."""
        if "pages" in self.files:
            yield from self._checked("pages", scratch)

    @cached_property
    def visits_are_numbers(self) -> bool:
        """Whether every ``visit_id`` of impressions is a whole number."""
        for raw in read_pieces(self.files["impressions"], ROWS, ["visit_id"]):
            visit = typed("impressions", raw, columns=["visit_id"])[0]["visit_id"]
            if visit.dtype == "str" and not are_whole(visit.dropna()):
                return False
        return True

    def _same_visits(self, frame: pd.DataFrame) -> pd.DataFrame:
        whole = frame["visit_id"].dtype == "int64"
        if self.visits_are_numbers and not whole and frame["visit_id"].notna().all():
            return frame.assign(visit_id=frame["visit_id"].astype("int64"))
        return frame if not whole or self.visits_are_numbers else frame.assign(visit_id=frame["visit_id"].astype("str"))

    def _checked(self, name: str, scratch: Path) -> Iterator[pd.DataFrame]:
        items, rows = frozenset(self.items["item_id"]), ROWS if name == "impressions" else max(ROWS // 8, 1)
        pieces = read_pieces(self.files[name], rows)
        once = _Once(ONCE[name], self.visits_are_numbers, scratch)
        limit, rule = up_to_tomorrow(pd.Timestamp.now("UTC") if self.now is None else self.now)
        n, ahead, stray = 0, 0, None
        for raw in pieces:
            # Whether a time lies too far ahead depends on all the others.
            table = inspect_table(name, raw, items, None, simulated=True)
            if table.faults or raw.torn:
                raise self._refusal(table, pieces, items, once)
            frame = self._same_visits(table.valid)
            if "timestamp" in frame and len(late := np.flatnonzero(frame["timestamp"] > limit)):
                stray = stray or (raw, Fault("timestamp", rule, late, FUTURE))
                ahead += len(late)
            n += len(frame)
            once.add(frame)
            yield frame
        if stray is not None and 2 * ahead <= n and not is_simulated(self.path):
            raise refusal(*stray, ahead, self.path)
        if repeats := once.repeats():
            raw, row = once.find(read_pieces(self.files[name], ROWS, ONCE[name]), name)
            raise refusal(raw, Fault(ONCE[name][0], each_once(ONCE[name]), row, DUPLICATE), repeats, self.path)

    def _refusal(self, table: Inspected, rest: Iterator[RawTable], items: frozenset[str], once: _Once) -> InputError:
        """Return the error for the first fault of a piece, with the number of such rows in the whole table."""
        if table.raw.is_csv:
            refuse_faults(table, self.path)
        fault = min(table.faults, key=lambda fault: int(fault.rows[0]))
        times = fault.rows.size
        once.add(table.frame)
        for raw in rest:
            more = inspect_table(table.name, raw, items, None, simulated=True)
            times += sum(other.rows.size for other in more.faults if _same(other, fault))
            once.add(more.frame)
        return refusal(table.raw, fault, once.repeats() if fault.what == DUPLICATE else times, self.path)


def open_stream(path: Path, now: pd.Timestamp | None = None) -> LogStream:
    """Open a logs directory for streaming.

    Args:
        path: The directory.
        now: As ``hawker.shop.logs.inspect_logs`` takes it.

    Raises:
        InputError: The directory, a file or a column is not what it must be, there are no impressions, or a row of a
            table that is held breaks a rule.
    """
    path = find_directory(Path(path))
    files = find_tables(path)
    if "impressions" not in files:
        raise InputError(
            "the log has no impressions", where=path, remedy="click models learn from the table impressions"
        )
    if (path / CHECKSUMS).exists():
        verify_directory(path, "logs")
    held: dict[str, pd.DataFrame] = {}
    columns: list[str] = []
    for name, file in files.items():
        if name in ("impressions", "pages"):
            head = next(read_pieces(file, 1))
            check_columns(name, head)
            columns = head.names if name == "impressions" else columns
        else:
            items = frozenset(held["items"]["item_id"]) if "items" in held else None
            table = inspect_table(name, read_table(file), items, now, is_simulated(path))
            refuse_faults(table, path)
            held[name] = table.valid
    refuse_strangers(columns, held["items"], path)
    shoppers = held.get("shoppers")
    if shoppers is not None:
        columns = with_shoppers(pd.DataFrame(columns=columns), shoppers, path).columns.tolist()
    return LogStream(path, files, held["items"], shoppers, held.get("events"), tuple(columns), now, digest(path))


def visit_keys(visits: pd.Series) -> npt.NDArray[np.int64]:
    """Return a number for each visit: itself, or a hash (64 bits) of its text, shape (n,)."""
    if visits.dtype == "int64":
        return visits.to_numpy()
    return pd.util.hash_array(visits.to_numpy(object)).view(np.int64)


def _same(one: Fault, other: Fault) -> bool:
    return (one.column, one.rule, one.what) == (other.column, other.rule, other.what)


class _Once:
    """The rule that no two rows of a table have one key, for a table that is not held.

    Keys are dealt out to files by their visit, so that equal ones meet in one of them.
    """

    def __init__(self, key: list[str], numbers: bool, scratch: Path) -> None:
        self._key, self._numbers = key, numbers
        self._files = [scratch / f"keys-{'-'.join(key)}-{i}" for i in range(KEY_FILES)]
        for file in self._files:
            file.write_bytes(b"")

    def add(self, frame: pd.DataFrame) -> None:
        """Add the rows of a frame; those without a key count for nothing."""
        keys = self._keys(frame[frame[self._key].notna().all(axis=1)])
        number = keys["visit"].view(np.uint64) % np.uint64(KEY_FILES)
        for i, path in enumerate(self._files):
            with path.open("ab") as file:
                keys[number == i].tofile(file)

    def repeats(self) -> int:
        """Return how many rows have the key of another one."""
        return sum(len(again) for again in self._repeated())

    def find(self, pieces: Iterator[RawTable], table: str) -> tuple[RawTable, npt.NDArray[np.int64]]:
        """Return the first row that has the key of one before it: its piece, and its index there, shape (1,)."""
        again = {key for some in self._repeated() for key in some.tolist()}
        seen = set()
        for raw in pieces:
            for i, key in enumerate(self._keys(typed(table, raw, columns=self._key)[0]).tolist()):
                if key in seen:
                    return raw, np.array([i])
                if key in again:
                    seen.add(key)
        raise AssertionError("the file has changed meanwhile")

    def _keys(self, frame: pd.DataFrame) -> npt.NDArray[np.void]:
        keys = np.zeros(len(frame), _KEY)
        visits = frame["visit_id"].astype("int64" if self._numbers else "str")
        number, distinct = pd.factorize(visits)
        keys["visit"] = visit_keys(pd.Series(distinct))[number]
        for name in self._key[1:]:
            keys[name] = frame[name].to_numpy(np.float64).clip(-1, 2**31 - 1)
        return keys

    def _repeated(self) -> Iterator[npt.NDArray[np.void]]:
        """Yield of each file the keys that it holds once more."""
        for path in self._files:
            keys = np.fromfile(path, _KEY)
            keys = keys[np.lexsort((keys["position"], keys["page"], keys["visit"]))]
            yield keys[1:][keys[1:] == keys[:-1]]
