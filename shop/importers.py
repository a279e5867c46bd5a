"""Other formats brought into Hawker's: the Open Bandit Dataset and the CDNOW purchase histories.

Both ship with the package (``shipped``). A row that breaks the contract goes to ``quarantine.parquet`` with its reason;
nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hawker.shop.artefacts import write_directory, write_json
from hawker.shop.contract import AFFINITY, Fault, broken_rules, final, reasons, typed
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.tables import Quarantine, RawTable, check_names, join, open_compressed, read_csv, write_table

Strategy = Literal["random", "bts"]
Campaign = Literal["all", "men", "women"]

_BLOCK_BYTES = 1 << 24  # of text held at a time; about 33,000 rows of the Open Bandit Dataset's widest log
_SUFFIXES = ("", ".xz", ".gz", ".zst", ".bz2")

_OBD_NAMES = {
    "timestamp": "timestamp",
    "item_id": "item_id",
    "position": "position",
    "click": "clicked",
    "propensity_score": "propensity",
}
_OBD_AFFINITY = "user-item_affinity_"
_OBD_SOURCE = {
    "data_set": "Open Bandit Dataset",
    "licence": "CC BY 4.0, ZOZO, Inc.",
    "citation": "Saito, Aihara, Matsutani, Narita: Open Bandit Dataset and Pipeline, NeurIPS 2021, arXiv:2008.07146",
}
_OBD_NOTES = [
    "rows stand alone: every row is a visit of one page and one position; visit_id is its row in the source, from 0",
    "position: from 0; the source counts from 1",
    "shopper_id: unknown",
    "propensity: P(item | position)",
    "converted and revenue: not recorded",
    "item ids are the campaign's own, so logs of several campaigns must not be mixed without the campaign in the id",
    "item features are hashed anew in each log: join logs on item_id, not on features",
]
_CDNOW_SOURCE = {
    "data_set": "CDNOW purchase histories, January 1997 to June 1998",
    "licence": "distributed by Bruce Hardie for research and teaching",
    "citation": "Fader, Hardie: Forecasting Repeat Sales at CDNOW: A Case Study, Interfaces 31 (3), 2001",
}
_CDNOW_NOTES = [
    "purchases only: what was shown or clicked is not recorded",
    "shopper_id: the customer's id in the master file, in the sample too, so that the two join",
    "timestamp: the source has dates; the time of day is set to 00:00 UTC",
    "revenue: US dollars; 0 is a free order",
    "units: CDs",
    "the master file contains the 1/10 sample: fit the sample's first 39 weeks only where the rest is held out",
]


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        format: The format's name.
        out: The logs directory that was written.
        rows: Rows written to its main table.
        quarantined: Rows that went to ``quarantine.parquet`` instead.
        tables: Rows written, by table.
        notes: What to know of these logs.
    """

    format: str
    out: Path
    rows: int
    quarantined: int
    tables: Mapping[str, int]
    notes: tuple[str, ...]


def shipped(name: str) -> Path:
    """Return the directory of logs that ship with the package: ``obd`` or ``cdnow``, in their own formats.

    Raises:
        InputError: There are none of that name.
    """
    data = Path(__file__).parent / "data"
    known = sorted(path.name for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    if name not in known:
        raise InputError("no such logs ship with Hawker", got=name, remedy=did_you_mean(name, known))
    return data / name


def import_obd(source: Path, out: Path, *, strategy: Strategy = "random", campaign: Campaign = "all") -> ImportReport:
    """Import one log of the Open Bandit Dataset, sample or whole, without holding it in memory.

    Args:
        source: The data set's folder: it has ``STRATEGY/CAMPAIGN/CAMPAIGN.csv`` and ``item_context.csv`` beside it,
            either of them compressed (``.xz``, ``.gz``, ``.zst``, ``.bz2``) or not.
        out: The logs directory to write.
        strategy: The logging strategy: uniformly random, or Bernoulli Thompson sampling.
        campaign: The campaign.

    Raises:
        InputError: A file or column is missing or damaged, or no row is valid.
    """
    folder = Path(source) / strategy / campaign
    log = _find(folder, f"{campaign}.csv", "the Open Bandit Dataset's folder, with random/all/all.csv in it")
    catalogue = _find(folder, "item_context.csv", "the file of the campaign's items")
    with write_directory(out, "logs") as scratch, Quarantine(scratch) as quarantine:
        items = _obd_items(catalogue, quarantine)
        write_table(items, scratch / "items.parquet")
        rows, left_out = _obd_impressions(log, scratch / "impressions.parquet", frozenset(items["item_id"]), quarantine)
        notes = _OBD_NOTES + ([f"columns left out: {', '.join(left_out)}"] if left_out else [])
        report = ImportReport(
            "obd", Path(out), rows, quarantine.rows, {"impressions": rows, "items": len(items)}, tuple(notes)
        )
        source_meta = {**_OBD_SOURCE, "strategy": strategy, "campaign": campaign, "file": log.name}
        _write_meta(scratch, report, source_meta)
    return report


def import_cdnow(source: Path, out: Path, *, sample: bool = False) -> ImportReport:
    """Import the CDNOW purchase histories as events; shoppers are named by their master id.

    Args:
        source: The folder with ``CDNOW_master.txt`` and ``CDNOW_sample.txt``, compressed or not.
        out: The logs directory to write.
        sample: Whether to take the 1/10 sample (2,357 customers) instead of all 23,570.

    Raises:
        InputError: The file is missing or damaged, or no row is valid.
    """
    path = _find(Path(source), "CDNOW_sample.txt" if sample else "CDNOW_master.txt", "the CDNOW files")
    raw, unread = _cdnow_lines(path, ["master_id", *(["sample_id"] if sample else []), "date", "units", "revenue"])
    with write_directory(out, "logs") as scratch, Quarantine(scratch) as quarantine:
        frame, faults = typed("events", raw)
        faults = broken_rules("events", frame, unread + faults)
        quarantine.add(raw, reasons(faults))
        events = final("events", frame, faults)
        _refuse_none(len(events), path, faults)
        columns = ["shopper_id", "timestamp", "kind", "item_id", "revenue", "units"]
        write_table(events[columns], scratch / "events.parquet")
        report = ImportReport(
            "cdnow", Path(out), len(events), quarantine.rows, {"events": len(events)}, tuple(_CDNOW_NOTES)
        )
        _write_meta(scratch, report, {**_CDNOW_SOURCE, "sample": sample, "file": path.name})
    return report


FORMATS: Mapping[str, Callable[..., ImportReport]] = {"obd": import_obd, "cdnow": import_cdnow}


def _find(folder: Path, name: str, expected: str) -> Path:
    for suffix in _SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise InputError("no such file", where=folder / name, expected=expected)


def _write_meta(scratch: Path, report: ImportReport, source: Mapping[str, Any]) -> None:
    write_json(
        scratch / "meta.json",
        {
            "format": report.format,
            "source": dict(source),
            "rows": dict(report.tables),
            "quarantined": report.quarantined,
            "notes": list(report.notes),
        },
    )


def _refuse_none(rows: int, path: Path, faults: list[Fault]) -> None:
    if rows == 0:
        why = f" ({faults[0].column}: {faults[0].what}, expected {faults[0].rule})" if faults else ""
        raise InputError(f"no row is valid{why}", where=path, expected="at least one valid row")


def _obd_items(path: Path, quarantine: Quarantine) -> pd.DataFrame:
    """Read ``item_context.csv``: item_id, item_feature_0 (a number), item_feature_1..3 (hashes)."""
    with open_compressed(path) as file:
        raw = _renamed(join(list(read_csv(file, path, block_bytes=_BLOCK_BYTES))), {"item_id": "item_id"})
    frame, unread = typed("items", raw, {"item_feature_0": "number"})
    faults = broken_rules("items", frame, unread)
    quarantine.add(raw, reasons(faults))
    items = final("items", frame, faults)
    _refuse_none(len(items), path, faults)
    return items


def _obd_impressions(
    log: Path, destination: Path, items: frozenset[str], quarantine: Quarantine
) -> tuple[int, list[str]]:
    """Stream the log into a Parquet file; return the rows written and the source's columns left out."""
    writer: pq.ParquetWriter | None = None
    rows, left_out = 0, list[str]()
    faults: list[Fault] = []
    with open_compressed(log) as file:
        try:
            for block in read_csv(file, log, block_bytes=_BLOCK_BYTES):
                raw = _renamed(block, _OBD_NAMES)
                left_out = [name for name in block.names if name and not _obd_name(name)]
                frame, faults = _obd_block(raw, items)
                quarantine.add(block, reasons(faults))
                valid = final("impressions", frame, faults)
                if writer is None:
                    writer = pq.ParquetWriter(destination, _schema(valid), compression="zstd")
                writer.write_table(pa.Table.from_pandas(valid, schema=writer.schema, preserve_index=False))
                rows += len(valid)
        finally:
            if writer is not None:
                writer.close()
    _refuse_none(rows, log, faults)
    return rows, [name for name in left_out if not name.startswith("Unnamed")]


def _obd_block(raw: RawTable, items: frozenset[str]) -> tuple[pd.DataFrame, list[Fault]]:
    """Type a block of the log and hold it against the contract, positions moved to count from 0."""
    n = raw.data.num_rows
    data = raw.data
    for name, values in (
        ("visit_id", pa.array(raw.rows)),
        ("page", pa.array(np.zeros(n, np.int64))),
        ("shopper_id", pa.nulls(n, pa.string())),
        ("placement", pa.array(["organic"]).take(pa.array(np.zeros(n, np.int64)))),
    ):
        data = data.append_column(name, values)
    first = ["visit_id", "page", "position", "shopper_id", "timestamp", "item_id", "placement", "clicked", "propensity"]
    data = data.select([*first, *(name for name in data.column_names if name not in first)])
    frame, unread = typed("impressions", RawTable(raw.path, data, raw.rows, raw.torn, False))
    frame["position"] -= 1
    return frame, broken_rules("impressions", frame, unread, items)


def _obd_name(name: str) -> str:
    """Return our name of a column of the data set, or nothing for a column that is none of its own."""
    if name.startswith(_OBD_AFFINITY):
        return AFFINITY + name.removeprefix(_OBD_AFFINITY)
    if name.startswith(("user_feature_", "item_feature_")):
        return name
    return _OBD_NAMES.get(name, "")


def _renamed(block: RawTable, needed: Mapping[str, str]) -> RawTable:
    """Return a block with our names; the unnamed index column that some copies of the data set have is left out."""
    check_names(block)
    for name in needed:
        if name not in block.names:
            raise InputError(
                f"the column {name} is missing",
                where=block.path,
                expected=f"the columns {', '.join(needed)}",
                remedy=did_you_mean(name, block.names) if len(block.names) < 30 else "",
            )
    kept = [name for name in block.names if _obd_name(name)]
    data = block.data.select(kept).rename_columns([_obd_name(name) for name in kept])
    return RawTable(block.path, data, block.rows, block.torn, False)  # hashes stay text, though one may look a number


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """Return the schema for every block of a frame like this one; categories differ between blocks."""
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    for index, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(index, field.with_type(pa.dictionary(pa.int32(), pa.large_string())))
    return schema.remove_metadata()


def _cdnow_lines(path: Path, names: list[str]) -> tuple[RawTable, list[Fault]]:
    """Read lines of cells parted by spaces; return them as events, and the faults of the dates."""
    with open_compressed(path) as file:
        try:
            text = file.read().decode("ascii")
        except UnicodeDecodeError:
            raise InputError("the file is not plain text", where=path, expected="lines of numbers") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = lines[1:] if lines and lines[0].startswith("customer_id") else lines
    cells = [line.split() for line in lines]
    torn = tuple(
        (row, line, f"{len(cell)} cells, expected {len(names)}")
        for row, (line, cell) in enumerate(zip(lines, cells, strict=True))
        if len(cell) != len(names)
    )
    whole = [row for row, cell in enumerate(cells) if len(cell) == len(names)]
    if not whole:
        raise InputError("no row is valid", where=path, expected=f"lines with the cells {', '.join(names)}")
    columns = dict(zip(names, zip(*(cells[row] for row in whole), strict=True), strict=True))
    dates = pd.to_datetime(pd.Series(columns["date"], dtype="str"), format="%Y%m%d", errors="coerce")
    bad = np.flatnonzero(dates.isna())
    data = pa.table(
        {
            "shopper_id": pa.array(columns["master_id"]),
            "timestamp": pa.array(dates.dt.tz_localize("UTC").dt.as_unit("us")),
            "kind": pa.array(["purchase"] * len(whole)),
            "item_id": pa.nulls(len(whole), pa.string()),
            "revenue": pa.array(columns["revenue"]),
            "units": pa.array(columns["units"]),
        }
    )
    raw = RawTable(path, data, np.array(whole, np.int64), torn, False)
    return raw, [Fault("timestamp", "a date such as 19970131", bad)] if bad.size else []
