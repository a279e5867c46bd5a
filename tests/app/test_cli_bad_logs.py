"""Bad logs, one case a row: `hawker fit` says one line, and shoppers that are already there stay as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hawker.shop.artefacts import CHECKSUMS

Frames = tuple[pd.DataFrame, pd.DataFrame]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cell(column: str, value: Any, rows: int | list[int] = 7) -> Callable[[Frames], Frames]:
    """Put a value into some rows of a column of impressions."""

    def change(frames: Frames) -> Frames:
        values = frames[0][column].to_numpy(copy=True)
        values = values.astype(object) if isinstance(value, (str, type(None))) else values.astype(float)
        values[rows] = value
        return frames[0].assign(**{column: values}), frames[1]

    return change


def impressions(function: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Frames], Frames]:
    return lambda frames: (function(frames[0]), frames[1])


SHOWN = "HOME/bad/impressions.parquet"
CLEAN = "; run `hawker logs check HOME/bad --clean OUT` to move bad rows to a quarantine file"

TABLES: dict[str, tuple[Callable[[Frames], Frames], str]] = {
    "a column is missing": (
        impressions(lambda f: f.drop(columns="clicked")),
        f"{SHOWN}: the column clicked is missing; expected the columns visit_id, page, position, shopper_id, "
        "timestamp, item_id, placement, clicked; known: affinity.item-0, age, segment",
    ),
    "a column is misspelt": (
        impressions(lambda f: f.rename(columns={"clicked": "clickd"})),
        f"{SHOWN}: the column clicked is missing; expected the columns visit_id, page, position, shopper_id, "
        "timestamp, item_id, placement, clicked; did you mean 'clickd'?",
    ),
    "a wrong type": (
        impressions(lambda f: f.assign(timestamp=np.arange(len(f)))),
        f"{SHOWN} column timestamp: the column has a wrong type; got 'int64', expected timestamps in UTC; "
        "write the column anew with that type",
    ),
    "a word for a number": (
        impressions(lambda f: f.assign(position=["top" if i == 7 else str(p) for i, p in enumerate(f["position"])])),
        f"{SHOWN} row 7 column position: bad value; got 'top', expected a number{CLEAN}",
    ),
    "clicked is 2": (
        cell("clicked", 2),
        f"{SHOWN} row 7 column clicked: bad value; got 2.0, expected 0 or 1{CLEAN}",
    ),
    "clicked is NaN": (
        cell("clicked", np.nan),
        f"{SHOWN} row 7 column clicked: missing value; got 'nothing', expected a value{CLEAN}",
    ),
    "a propensity of 0": (
        cell("propensity", 0.0),
        f"{SHOWN} row 7 column propensity: bad value; got 0.0, expected 0 < propensity <= 1{CLEAN}",
    ),
    "propensities over 1": (
        cell("propensity", 1.5, [7, 9]),
        f"{SHOWN} row 7 column propensity: bad value (the first of 2 such rows); got 1.5, "
        f"expected 0 < propensity <= 1{CLEAN}",
    ),
    "an infinite feature": (
        cell("age", np.inf),
        f"{SHOWN} row 7 column age: bad value; got inf, expected a finite number or none{CLEAN}",
    ),
    "an unknown item": (
        cell("item_id", "item-99"),
        f"{SHOWN} row 7 column item_id: unknown item; got 'item-99', expected an item_id of the items table{CLEAN}",
    ),
    "an affinity with an unknown item": (
        impressions(lambda f: f.rename(columns={"affinity.item-0": "affinity.item-99"})),
        "HOME/bad impressions column affinity.item-99: an affinity with an item that the items table lacks; expected "
        "affinity.ITEM_ID with a known item_id; add the item or drop the column",
    ),
    "duplicate rows": (
        impressions(lambda f: pd.concat([f, f.iloc[[7]]])),
        f"{SHOWN} row 1500 column visit_id: duplicate row; got 7, expected each (visit_id, page, position) once{CLEAN}",
    ),
    "a timestamp that is none": (
        impressions(lambda f: f.assign(timestamp=["soon", *f["timestamp"].astype(str).iloc[1:]])),
        f"{SHOWN} row 0 column timestamp: bad value; got 'soon', expected a time with its zone, such as "
        f"2026-11-22T10:00:00Z{CLEAN}",
    ),
    "timestamps without a zone": (
        impressions(lambda f: f.assign(timestamp=f["timestamp"].dt.tz_localize(None))),
        f"{SHOWN} row 0 column timestamp: bad value (the first of 1500 such rows); got '2026-01-01 00:00:00', "
        f"expected a time with its zone, such as 2026-11-22T10:00:00Z{CLEAN}",
    ),
    "no rows": (
        impressions(lambda f: f.head(0)),
        f"{SHOWN}: the table has no rows; expected at least one row",
    ),
    "too few rows for three parts": (
        impressions(lambda f: f.head(2)),
        "impressions: too few visits to split in three; got 2",
    ),
    "an item twice": (
        lambda frames: (frames[0], pd.concat([frames[1], frames[1].tail(1)])),
        "HOME/bad/items.parquet row 20 column item_id: duplicate row; got 'item-19', expected each item_id "
        f"once{CLEAN}",
    ),
    "a feature named as the hour": (
        impressions(lambda f: f.rename(columns={"age": "hour_sin"})),
        "impressions column hour_sin: the name is taken by a time feature; rename it",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_tables(case: str, home: Path, tables: Frames, write_tables: Any, refused: Any):
    change, message = TABLES[case]
    shown, items = change(tables)
    write_tables(home / "bad", impressions=shown, items=items)
    words = ["fit", home / "bad", "--out", home / "run" / "shoppers", "--config", home / "fit.yaml"]
    assert refused(words) == message


@pytest.mark.parametrize("case", [case for case, (_, message) in TABLES.items() if message.endswith(CLEAN)])
def test_bad_rows_end_a_check_too(case: str, home: Path, tables: Frames, write_tables: Any, refused: Any):
    shown, items = TABLES[case][0](tables)
    write_tables(home / "bad", impressions=shown, items=items)
    line = refused(["logs", "check", home / "bad"])
    assert line.startswith("HOME/bad i")
    assert line.endswith("; --clean OUT moves bad rows to a quarantine file")


# Files of logs


def no_file(name: str) -> Callable[[Path], None]:
    return lambda bad: (bad / name).unlink()


def as_csv(bad: Path) -> pd.DataFrame:
    frame = pd.read_parquet(bad / "impressions.parquet")
    (bad / "impressions.parquet").unlink()
    return frame


def torn_csv(bad: Path) -> None:
    lines = as_csv(bad).to_csv(index=False).splitlines()
    lines[3] += ",more"
    (bad / "impressions.csv").write_text("\n".join(lines) + "\n")


def bad_csv(bad: Path) -> None:
    frame = as_csv(bad).astype({"timestamp": "str"})
    frame.loc[4, "timestamp"] = "2026-13-45T10:00:00Z"
    frame.to_csv(bad / "impressions.csv", index=False)


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no impressions": (
        no_file("impressions.parquet"),
        "HOME/bad: no impressions and no events here; expected impressions.parquet; known: items",
    ),
    "no items": (
        no_file("items.parquet"),
        "HOME/bad: the table items is missing; expected items.parquet with every item_id shown",
    ),
    "an empty file": (
        lambda bad: (bad / "impressions.parquet").write_bytes(b""),
        f"{SHOWN}: the file is empty (0 bytes); write it anew",
    ),
    "truncated Parquet": (lambda bad: truncate(bad / "impressions.parquet"), f"{SHOWN}: the file cannot be read ("),
    "no Parquet at all": (
        lambda bad: (bad / "items.parquet").write_text("item_id\nitem-0\n" * 9),
        "HOME/bad/items.parquet: the file cannot be read (",
    ),
    "a table twice": (
        lambda bad: (bad / "items.csv").write_text("item_id\n"),
        "HOME/bad: the table items is here twice; got ['items.parquet', 'items.csv'], expected one of them; "
        "remove the other",
    ),
    "a torn row of CSV": (
        torn_csv,
        "HOME/bad/impressions.csv row 2: the row has 13 cells, expected 12 (the first of 1 such rows); got '2,0,",
    ),
    "a thirteenth month in CSV": (
        bad_csv,
        "HOME/bad/impressions.csv row 4 column timestamp: bad value; got '2026-13-45T10:00:00Z', expected a time",
    ),
    "a byte of a log with checksums": (
        lambda bad: (bad / CHECKSUMS).write_text(json.dumps({"kind": "logs", "files": {"items.parquet": "0" * 64}})),
        "HOME/bad/items.parquet: the file was changed after it was written; got '",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files(case: str, home: Path, tables: Frames, write_tables: Any, refused: Any):
    change, message = FILES[case]
    change(write_tables(home / "bad", impressions=tables[0], items=tables[1]))
    words = ["fit", home / "bad", "--out", home / "run" / "shoppers", "--config", home / "fit.yaml"]
    assert refused(words).startswith(message)
