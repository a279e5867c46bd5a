"""The quality of logs: which rows break the contract, and what the rest is worth.

The rules are those of ``hawker.shop.contract``, which reading applies too; here the first bad row does not end the
search. Figures are of the valid rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hawker.shop import quality
from hawker.shop.artefacts import read_json, write_directory, write_json
from hawker.shop.contract import DAY, reasons
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.logs import Inspected, digest, inspect_logs, match_visits, unknown_affinities
from hawker.shop.quality import Finding, Found, Level, count
from hawker.shop.tables import QUARANTINE, Quarantine, read_table, write_table

_LEVELS: tuple[Level, ...] = ("ok", "warn", "bad")
_LISTED = 5  # columns named in a text


@dataclass(frozen=True)
class LogReport:
    """What ``check_logs`` found.

    Attributes:
        path: The logs directory.
        digest: SHA-256 of its tables.
        findings: One line per thing looked at, the rows of a table for people.
        figures: The numbers behind them, by name.
    """

    path: Path
    digest: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, Figure]

    @property
    def level(self) -> Level:
        """The worst level among the findings."""
        return max((finding.level for finding in self.findings), key=_LEVELS.index)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "logs": str(self.path),
            "digest": self.digest,
            "level": self.level,
            "findings": [finding._asdict() for finding in self.findings],
            "figures": dict(self.figures),
        }


@dataclass(frozen=True)
class CleanReport:
    """What ``clean_logs`` did: rows kept by table, and rows moved to the quarantine file."""

    out: Path
    rows: Mapping[str, int]
    quarantined: int


def check_logs(path: Path) -> LogReport:
    """Look through a logs directory and report its quality.

    Raises:
        InputError: The directory, a file or a column is not what it must be; bad rows are findings, not errors.
    """
    tables = {table.name: table for table in inspect_logs(path)}
    valid = {name: table.valid for name, table in tables.items()}
    match_visits(valid)
    found: list[Finding | tuple[str, Figure]] = []
    for table in tables.values():
        found += _rules(table)
    for column in unknown_affinities(valid):
        found.append(Finding("bad", "impressions", f"the column {column} is of no item in the table items"))
    if "impressions" in valid and len(valid["impressions"]):
        shown, items = valid["impressions"], valid["items"]
        found += _extent("impressions", shown)
        found += quality.click_rate(shown)
        found += _missing("impressions", shown)
        found += _repeats("impressions", shown, ["timestamp", "shopper_id", "page", "position", "item_id"])
        found += quality.propensity(shown, quality.choices(shown, len(items), valid.get("pages")))
        found += quality.support(shown, items["item_id"])
        found += quality.drift(shown)
        found += quality.leakage(shown)
        found += quality.bots(shown)
    if "events" in valid and len(valid["events"]):
        found += _extent("events", valid["events"])
        found += _missing("events", valid["events"])
        found += _repeats("events", valid["events"], list(valid["events"].columns))
    return LogReport(
        Path(path),
        digest(path),
        tuple(entry for entry in found if isinstance(entry, Finding)),
        dict(entry for entry in found if not isinstance(entry, Finding)),
    )


def clean_logs(path: Path, out: Path) -> CleanReport:
    """Write the valid rows of a logs directory to ``out`` and the others to its ``quarantine.parquet``.

    The quarantine file has the columns file, row (from 0), reason and raw (the row as text). What ``path`` had in
    quarantine is carried over, and so is its ``meta.json``.

    Raises:
        InputError: As in ``check_logs``; or no row of a table is valid.
    """
    path = Path(path)
    with write_directory(out, "logs") as scratch, Quarantine(scratch) as quarantine:
        valid = {}
        for table in inspect_logs(path):
            if table.valid.empty:
                raise InputError("no row is valid", where=table.raw.path, expected="at least one valid row")
            quarantine.add(table.raw, reasons(table.faults))
            valid[table.name] = table.valid
        moved = quarantine.rows
        dropped = unknown_affinities(valid)
        for name, frame in valid.items():
            write_table(frame.drop(columns=dropped) if name == "impressions" else frame, scratch / f"{name}.parquet")
        if (path / QUARANTINE).is_file():
            quarantine.add_table(read_table(path / QUARANTINE).table())
        meta = read_json(path / "meta.json") if (path / "meta.json").is_file() else {}
        if not isinstance(meta, dict):
            raise InputError("not a mapping", where=path / "meta.json", remedy="remove the file")
        rows = {name: len(frame) for name, frame in valid.items()}
        notes = [*meta.get("notes", []), *(f"{column}: left out, no such item" for column in dropped)]
        write_json(scratch / "meta.json", {**meta, "rows": rows, "quarantined": quarantine.rows, "notes": notes})
    return CleanReport(Path(out), rows, moved)


def _rules(table: Inspected) -> Found:
    n = len(table.frame) + len(table.raw.torn)
    bad = n - len(table.valid)
    yield f"{table.name}.rows", count(n, n)
    yield f"{table.name}.bad_rows", count(bad, n)
    if not bad:
        yield Finding("ok", table.name, f"all {n:,} rows keep the contract")
    if table.raw.torn:
        row, _, reason = table.raw.torn[0]
        yield Finding(
            "bad", table.name, f"torn: {len(table.raw.torn):,} of {n:,} rows; the first is row {row} with {reason}"
        )
    for fault in table.faults:
        index = int(fault.rows[0])
        value = table.raw.value(fault.column, index)
        got = "nothing" if value is None else repr(value)
        yield Finding(
            "bad",
            f"{table.name}.{fault.column}",
            f"{fault.what}: {fault.rows.size:,} of {n:,} rows, expected {fault.rule}; "
            f"the first is row {table.raw.rows[index]} with {got}",
        )


def _extent(name: str, frame: pd.DataFrame) -> Found:
    n, start, end = len(frame), frame["timestamp"].min(), frame["timestamp"].max()
    shoppers = frame["shopper_id"].nunique()
    days = (end - start) / DAY
    yield f"{name}.days", figure(days, None, None, n, "days")
    yield f"{name}.shoppers", count(shoppers, n, "shoppers")
    who = f"{shoppers:,} shoppers" if shoppers else "shoppers unknown"
    if name == "impressions":
        visits = frame["visit_id"].nunique()
        yield f"{name}.visits", count(visits, n, "visits")
        who = f"{visits:,} visits, {who}"
    yield Finding("ok", f"{name}.extent", f"{n:,} rows, {who}, {start:%Y-%m-%d} to {end:%Y-%m-%d} ({days:.1f} days)")
    future = int((frame["timestamp"] > pd.Timestamp.now("UTC") + DAY).sum())
    if future:
        yield Finding("warn", f"{name}.timestamp", f"{future:,} rows lie in the future, the latest at {end}")


def _missing(name: str, frame: pd.DataFrame) -> Found:
    share = frame.isna().mean()
    share = share[share > 0].sort_values(ascending=False, kind="stable")
    for column, value in share.items():
        yield f"{name}.missing.{column}", figure(float(value), None, None, len(frame), "share")
    listed = ", ".join(f"{column} {value:.1%}" for column, value in share.head(_LISTED).items())
    more = f" and {len(share) - _LISTED} more columns" if len(share) > _LISTED else ""
    yield Finding("ok", f"{name}.missing", f"missing values: {listed}{more}" if listed else "no missing values")


def _repeats(name: str, frame: pd.DataFrame, columns: list[str]) -> Found:
    repeats = int(frame.duplicated(columns).sum())
    yield f"{name}.repeats", count(repeats, len(frame))
    if repeats:
        what = "in every column" if len(columns) == len(frame.columns) else f"in {', '.join(columns)}"
        yield Finding("warn", f"{name}.repeats", f"{repeats:,} rows equal an earlier one {what}")
