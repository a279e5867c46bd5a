"""A shop's logs: a directory of tables, read whole, in one form, or not at all.

``impressions`` (with ``items``), ``events``, ``shoppers`` and ``pages`` stand as ``NAME.parquet`` or ``NAME.csv``; the
columns are those of ``hawker.shop.contract``. Logs that record no exposure have ``events`` and no ``impressions``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hawker.shop.artefacts import CHECKSUMS, find_directory, read_json, sha256, verify_directory
from hawker.shop.contract import Fault, affinities, broken_rules, features, final, typed
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.tables import RawTable, find_table, read_table

TABLES = ("items", "shoppers", "impressions", "pages", "events")  # items first: the others name them


@dataclass(frozen=True, eq=False)
class Logs:
    """The tables of a logs directory; every row keeps the contract. A table that is not there is None.

    Attributes:
        path: The directory.
        impressions: One row per item shown, sorted by (timestamp, visit_id, page, position). ``timestamp`` is UTC;
            ``page`` and ``position`` count from 0; ``clicked`` is 0 or 1; ``converted``, ``revenue`` (currency),
            ``propensity``, ``price_shown`` and ``ad_bid`` are NaN where not known, and absent where never recorded;
            text features are categories, ids ``str``. Features of the table shoppers that it lacks are joined to it.
        items: The catalogue, one row per ``item_id``, in file order.
        shoppers: One row per ``shopper_id`` and features.
        events: What shoppers did where no exposure is recorded, sorted by (timestamp, shopper_id).
        pages: One row per page: the log-probabilities of its parts and the candidates, where known.
        digest: SHA-256 over the table files, 64 hex digits: the same data, the same digest.
    """

    path: Path
    impressions: pd.DataFrame | None
    items: pd.DataFrame | None
    shoppers: pd.DataFrame | None
    events: pd.DataFrame | None
    pages: pd.DataFrame | None
    digest: str


@dataclass(frozen=True, eq=False)
class Inspected:
    """A table held against the contract.

    Attributes:
        name: The table's name.
        raw: What the file holds.
        frame: The same rows typed; a cell that could not be read is missing. Shape (n, columns).
        faults: The rules that rows of ``frame`` break.
        valid: The rows that break none, with their last types.
    """

    name: str
    raw: RawTable
    frame: pd.DataFrame
    faults: list[Fault]
    valid: pd.DataFrame


def inspect_logs(path: Path, now: pd.Timestamp | None = None) -> Iterator[Inspected]:
    """Yield the tables of a logs directory one by one, each held against the contract and the valid items.

    Args:
        path: The directory.
        now: As ``broken_rules`` takes it; simulated logs have days of their own, none of which is too late.

    Raises:
        InputError: The directory, a file or a column is not what it must be. Rows raise nothing here.
    """
    path = find_directory(Path(path))
    files = find_tables(path)
    if (path / CHECKSUMS).exists():
        verify_directory(path, "logs")
    simulated = is_simulated(path)
    items: frozenset[str] | None = None
    for name, file in files.items():
        table = inspect_table(name, read_table(file), items, now, simulated)
        if name == "items":
            items = frozenset(table.valid["item_id"])
        yield table


def inspect_table(
    name: str, raw: RawTable, items: frozenset[str] | None, now: pd.Timestamp | None, simulated: bool
) -> Inspected:
    """Hold one table, or a piece of one, against the contract; ``simulated``: no time is too late."""
    frame, unread = typed(name, raw)
    moment = frame["timestamp"].max() if simulated and "timestamp" in frame else now
    faults = broken_rules(name, frame, unread, items, moment)
    return Inspected(name, raw, frame, faults, final(name, frame, faults))


def read_logs(path: Path, now: pd.Timestamp | None = None) -> Logs:
    """Read and validate a logs directory.

    Args:
        path: The directory.
        now: As ``inspect_logs`` takes it.

    Raises:
        InputError: The directory, a file or a column is not what it must be, or a row breaks a rule; the message names
            the file, the row (from 0, the header not counted), the column, the value and the rule.
    """
    path = find_directory(Path(path))
    found: dict[str, pd.DataFrame] = {}
    for table in inspect_logs(path, now):
        refuse_faults(table, path)
        found[table.name] = table.valid
    match_visits(found)
    if "impressions" in found:
        refuse_strangers(found["impressions"].columns, found["items"], path)
        if "shoppers" in found:
            found["impressions"] = with_shoppers(found["impressions"], found["shoppers"], path)
        found["impressions"] = _sorted(found["impressions"], ["timestamp", "visit_id", "page", "position"])
    if "events" in found:
        found["events"] = _sorted(found["events"], ["timestamp", "shopper_id"])
    return Logs(
        path=path,
        impressions=found.get("impressions"),
        items=found.get("items"),
        shoppers=found.get("shoppers"),
        events=found.get("events"),
        pages=found.get("pages"),
        digest=digest(path),
    )


def digest(path: Path) -> str:
    """Return the SHA-256 over the names and bytes of a directory's table files, 64 hex digits."""
    whole = hashlib.sha256()
    for file in find_tables(path).values():
        whole.update(f"{file.name} {sha256(file)}\n".encode())
    return whole.hexdigest()


def feature_columns(impressions: pd.DataFrame) -> list[str]:
    """Return the shopper and visit features of impressions: the columns outside the contract but the affinities."""
    return features("impressions", impressions.columns)


def affinity_columns(impressions: pd.DataFrame) -> dict[str, str]:
    """Return the columns that hold a row's shopper's affinity with an item, by item id."""
    return affinities(impressions.columns)


def unknown_affinities(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return the affinity columns of the table impressions whose item is not in the table items."""
    return _strangers(tables["impressions"].columns, tables["items"]) if "impressions" in tables else []


def _strangers(columns: Iterable[str], items: pd.DataFrame) -> list[str]:
    known = frozenset(items["item_id"])
    return [column for item, column in affinities(columns).items() if item not in known]


def refuse_strangers(columns: Iterable[str], items: pd.DataFrame, path: Path) -> None:
    """Refuse impressions with an affinity column of no known item.

    Raises:
        InputError: They have one.
    """
    if strangers := _strangers(columns, items):
        raise InputError(
            "an affinity with an item that the items table lacks",
            where=f"{path} impressions column {strangers[0]}",
            expected="affinity.ITEM_ID with a known item_id",
            remedy="add the item or drop the column",
        )


def find_tables(path: Path) -> dict[str, Path]:
    """Return the table files of a logs directory by name, items first.

    Raises:
        InputError: It is no such directory, or a table that must be there is not.
    """
    if not path.is_dir():
        what = "not a directory" if path.exists() else "no such directory"
        raise InputError(what, where=path, expected="a directory with impressions.parquet and items.parquet")
    files = {name: file for name in TABLES if (file := find_table(path, name))}
    if "impressions" not in files and "events" not in files:
        if any((path / name).is_dir() for name in ("random", "bts")):
            remedy = f"this looks like the Open Bandit Dataset: run `hawker logs import obd {path} OUT` first"
        else:
            stems = sorted(file.stem for file in path.iterdir() if file.suffix in (".parquet", ".csv"))
            remedy = did_you_mean("impressions", stems) if stems else ""
        raise InputError("no impressions and no events here", where=path, expected="impressions.parquet", remedy=remedy)
    if "impressions" in files and "items" not in files:
        raise InputError("the table items is missing", where=path, expected="items.parquet with every item_id shown")
    return files


def is_simulated(path: Path) -> bool:
    """Say whether the logs tell the seed that they were drawn with."""
    meta = read_json(path / "meta.json") if (path / "meta.json").is_file() else {}
    return isinstance(meta, dict) and "seed" in meta


def refuse_faults(table: Inspected, path: Path) -> None:
    """Refuse a table that has a fault, naming the first.

    Raises:
        InputError: It has one.
    """
    if table.raw.torn:
        row, text, reason = table.raw.torn[0]
        raise InputError(
            f"the row has {reason} (the first of {len(table.raw.torn)} such rows)",
            where=f"{table.raw.path} row {row}",
            got=text[:80],
            remedy=_cleaning(path),
        )
    if table.faults:
        fault = min(table.faults, key=lambda fault: int(fault.rows[0]))
        raise refusal(table.raw, fault, fault.rows.size, path)


def refusal(raw: RawTable, fault: Fault, times: int, path: Path) -> InputError:
    """Return the error that names the first row of a fault and how many such rows the table has."""
    index = int(fault.rows[0])
    value: Any = raw.value(fault.column, index)
    many = f" (the first of {times} such rows)" if times > 1 else ""
    return InputError(
        f"{fault.what}{many}",
        where=f"{raw.path} row {raw.rows[index]} column {fault.column}",
        got="nothing" if value is None else value[:80] if isinstance(value, str) else value,
        expected=fault.rule,
        remedy=_cleaning(path),
    )


def _cleaning(path: Path) -> str:
    return f"run `hawker logs check {path} --clean OUT` to move bad rows to a quarantine file"


def match_visits(found: dict[str, pd.DataFrame]) -> None:
    """Make ``visit_id`` one type in impressions and pages, so that they join."""
    kinds = {found[name]["visit_id"].dtype for name in ("impressions", "pages") if name in found}
    if len(kinds) > 1:
        for name in ("impressions", "pages"):
            found[name]["visit_id"] = found[name]["visit_id"].astype("str")


def with_shoppers(impressions: pd.DataFrame, shoppers: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return impressions with the shoppers' features that they lack, missing where the shopper is not known.

    Raises:
        InputError: A feature has the name of a column that impressions keep for something else.
    """
    names = [name for name in shoppers.columns if name != "shopper_id"]
    if taken := sorted(set(names) - set(features("impressions", names))):
        raise InputError(
            "the name is taken by a column of impressions",
            where=f"{path} shoppers column {taken[0]}",
            remedy="rename it",
        )
    names = [name for name in names if name not in impressions]
    row = pd.Index(shoppers["shopper_id"]).get_indexer(impressions["shopper_id"])
    joined = {name: shoppers[name].reindex(row).set_axis(impressions.index) for name in names}
    return impressions.assign(**joined) if joined else impressions


def _sorted(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the rows in order; a log that is in order already, as most are, costs no copy."""
    order = pd.MultiIndex.from_frame(frame[by])
    return frame if order.is_monotonic_increasing else frame.sort_values(by, kind="stable", ignore_index=True)
