"""The contract of a shop's logs: which columns a table has, how a cell is read, and which rule a value must keep.

Everything that reads, checks or imports logs goes through the three functions here, in this order: ``typed`` turns a
table's cells into numbers, texts and times, ``broken_rules`` lists the rows that break a rule (with pandera), ``final``
gives the rows that are left their last types.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pandera.pandas as pandera

from hawker.shop.cells import EXPECTED, Kind, read_cells
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.tables import IntArray, RawTable

AFFINITY = "affinity."
PLACEMENTS = ("organic", "ad")
IMPRESSION_KEY = ["visit_id", "page", "position"]
DAY = pd.Timedelta(days=1)
FUTURE, DUPLICATE = "future time", "duplicate row"

Ok = Callable[[pd.Series], "pd.Series[bool]"]
RowsOk = Callable[[pd.DataFrame], "pd.Series[bool]"]

_WHOLE_TEXT = r"0|-?[1-9]\d{0,17}"


class Fault(NamedTuple):
    """A rule and the rows of a table that break it.

    Attributes:
        column: The column at fault.
        rule: What its values must be, as the words after "expected".
        rows: Indices into the table, ascending, shape (k,), k > 0.
        what: What such a value is: "bad value", "missing value", "duplicate row".
    """

    column: str
    rule: str
    rows: IntArray
    what: str = "bad value"


def _rule(expected: str, ok: Ok) -> pandera.Check:
    # One failure case is enough: the rows are taken from the check's own output, which pandera keeps whole.
    return pandera.Check(ok, name=expected, description="bad value", n_failure_cases=1)


def _row_rule(column: str, expected: str, what: str, ok: RowsOk) -> pandera.Check:
    return pandera.Check(ok, name=expected, title=column, description=what, ignore_na=False, n_failure_cases=1)


_PRESENT = pandera.Check(
    lambda values: values.notna(), name="a value", description="missing value", ignore_na=False, n_failure_cases=1
)
_WHOLE = _rule("a whole number >= 0", lambda values: (values % 1 == 0) & values.between(0, 2**31 - 1))
_AMOUNT = _rule("a finite number >= 0", lambda values: (values >= 0) & np.isfinite(values))
_FLAG = _rule("0 or 1", lambda values: values.isin([0, 1]))
_FINITE = _rule("a finite number or none", lambda values: values.abs() < np.inf)
_PROPENSITY = _rule("0 < propensity <= 1", lambda values: (values > 0) & (values <= 1))
_LOG_PROBABILITY = _rule("a finite number <= 0", lambda values: (values <= 0) & np.isfinite(values))
_PLACEMENT = _rule(" or ".join(PLACEMENTS), lambda values: values.isin(PLACEMENTS))


@dataclass(frozen=True)
class Field:
    """A column of the contract.

    Attributes:
        kind: How its cells are read.
        needed: Whether the table must have it.
        nullable: Whether a cell may be missing.
        rule: What a value must be, if more than its kind says.
        final: The type of the column in a frame that broke no rule.
    """

    kind: Kind
    needed: bool = False
    nullable: bool = True
    rule: pandera.Check | None = None
    final: str | None = None

    def column(self) -> pandera.Column:
        """Return the column for pandera."""
        checks = [check for check in (None if self.nullable else _PRESENT, self.rule) if check is not None]
        return pandera.Column(None, checks, nullable=True, required=False)


_AMOUNT_FIELD = Field("number", rule=_AMOUNT, final="float64")
_LOG_FIELD = Field("number", rule=_LOG_PROBABILITY, final="float64")
_TEXT = Field("text")
_ID = Field("id", needed=True, nullable=False)
_KEY = Field("key", needed=True, nullable=False)
_TIME = Field("time", needed=True, nullable=False)
_INDEX = Field("number", needed=True, nullable=False, rule=_WHOLE, final="int32")

FIELDS: Mapping[str, Mapping[str, Field]] = {
    "items": {
        "item_id": _ID,
        "title": _TEXT,
        "category": _TEXT,
        "price": _AMOUNT_FIELD,
        "stock": Field("number", rule=_WHOLE, final="float64"),
        "provider": _TEXT,
        "description": _TEXT,
        "image_embedding": Field("list"),
    },
    "shoppers": {"shopper_id": _ID},
    "impressions": {
        "visit_id": _KEY,
        "page": _INDEX,
        "position": _INDEX,
        "shopper_id": Field("id", needed=True),
        "timestamp": _TIME,
        "item_id": _ID,
        "placement": Field("text", needed=True, nullable=False, rule=_PLACEMENT),
        "clicked": Field("number", needed=True, nullable=False, rule=_FLAG, final="int8"),
        "converted": Field("number", rule=_FLAG, final="float64"),
        "revenue": _AMOUNT_FIELD,
        "propensity": Field("number", rule=_PROPENSITY, final="float64"),
        "copy": _TEXT,
        "offer": Field("number", nullable=False, rule=_WHOLE, final="int32"),
        "query": _TEXT,
        "price_shown": _AMOUNT_FIELD,
        "ad_bid": _AMOUNT_FIELD,
    },
    "pages": {
        "visit_id": _KEY,
        "page": _INDEX,
        "log_prob_slate": _LOG_FIELD,
        "log_prob_ad": _LOG_FIELD,
        "log_prob_offer": _LOG_FIELD,
        "log_prob_copy": _LOG_FIELD,
        "candidates": Field("list"),
    },
    "events": {
        "shopper_id": _ID,
        "timestamp": _TIME,
        "kind": Field("text", needed=True, nullable=False),
        "item_id": Field("id"),
        "revenue": _AMOUNT_FIELD,
        "units": Field("number", rule=_WHOLE, final="float64"),
    },
}

ONCE: Mapping[str, list[str]] = {
    "items": ["item_id"],
    "shoppers": ["shopper_id"],
    "impressions": IMPRESSION_KEY,
    "pages": ["visit_id", "page"],
}


def field_of(table: str, column: str) -> Field:
    """Return the contract's field, or the field of a feature for a column that the contract does not name."""
    if column in FIELDS[table]:
        return FIELDS[table][column]
    return Field("affinity" if table == "impressions" and column.startswith(AFFINITY) else "feature", rule=_FINITE)


def features(table: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that are features: those outside the contract, affinities left out."""
    return [column for column in columns if field_of(table, column).kind == "feature"]


def affinities(columns: Iterable[str]) -> dict[str, str]:
    """Return the affinity columns of impressions by item id."""
    return {column.removeprefix(AFFINITY): column for column in columns if column.startswith(AFFINITY)}


def typed(
    table: str, raw: RawTable, kinds: Mapping[str, Kind] | None = None, columns: Collection[str] | None = None
) -> tuple[pd.DataFrame, list[Fault]]:
    """Read a table's cells as what the contract says they are.

    Numbers become float64 (features keep their width), ids and texts ``str`` with an empty one missing, text
    features categories in alphabetical order, times UTC with microseconds.

    Args:
        table: The table's name.
        raw: The table.
        kinds: How to read features whose kind is known beforehand.
        columns: The columns to read; all, which must be whole, unless told.

    Returns:
        The frame, with a missing value where a cell could not be read, and the faults that name those cells.

    Raises:
        InputError: A column is missing, or a whole column has a type that cannot be meant.
    """
    if columns is None:
        check_columns(table, raw)
    found, faults = {}, []
    for name in raw.names if columns is None else columns:
        column, kind = raw.column(name), (kinds or {}).get(name, field_of(table, name).kind)
        read = read_cells(column, kind, raw.is_csv)
        if read is None:
            raise InputError(
                "the column has a wrong type",
                where=f"{raw.path} column {name}",
                got=str(column.type),
                expected=EXPECTED[kind],
                remedy="write the column anew with that type",
            )
        found[name], bad = read
        faults += [Fault(name, rule, rows) for rule, mask in bad.items() if (rows := np.flatnonzero(mask)).size]
    return pd.DataFrame(found, copy=False), faults


def broken_rules(
    table: str,
    frame: pd.DataFrame,
    unread: list[Fault],
    items: Collection[str] | None = None,
    now: pd.Timestamp | None = None,
) -> list[Fault]:
    """Return the faults of a typed frame, those of ``unread`` cells first.

    Args:
        table: The table's name.
        frame: What ``typed`` returned, shape (n, columns).
        unread: The faults that ``typed`` returned; a cell named there is not reported as missing as well.
        items: The ids of the catalogue; None where there is no items table.
        now: The moment, in UTC, that no row may lie more than a day after, unless most rows do: such a table keeps a
            clock of its own. The computer's clock unless told.
    """
    now = pd.Timestamp.now("UTC") if now is None else now
    schema = pandera.DataFrameSchema(
        {
            name: field_of(table, name).column()
            for name in frame.columns
            if name in FIELDS[table] or pd.api.types.is_float_dtype(frame[name].dtype)
        },
        checks=_row_rules(table, set(frame.columns), items, now),
    )
    faults = list(unread)
    try:
        schema.validate(frame, lazy=True, inplace=True)
    except pandera.errors.SchemaErrors as errors:
        for error in errors.schema_errors:
            if not isinstance(error.check_output, pd.Series):
                raise  # the rule itself failed: a defect of Hawker's, not of the logs
            column = str(error.check.title or error.schema.name)
            rows = error.check_output.index[~error.check_output.to_numpy(bool)].to_numpy(np.int64)
            for seen in unread:
                rows = np.setdiff1d(rows, seen.rows) if seen.column == column else rows
            if rows.size:
                faults.append(Fault(column, str(error.check.name), rows, str(error.check.description)))
    return faults


def final(table: str, frame: pd.DataFrame, faults: list[Fault]) -> pd.DataFrame:
    """Return the rows that break no rule, index reset, with their last types.

    Counts are int32, ``clicked`` int8, amounts and ``converted`` float64 with NaN for "not known", affinities float32,
    ``visit_id`` int64 if every one is a whole number, else ``str``.
    """
    if faults:
        keep = np.ones(len(frame), bool)
        for fault in faults:
            keep[fault.rows] = False
        frame = frame[keep].reset_index(drop=True)
        for name in frame.columns[frame.dtypes == "category"]:
            frame[name] = frame[name].cat.remove_unused_categories()
    for name in (name for name, field in FIELDS[table].items() if field.kind == "key"):
        if frame[name].dtype == "str" and are_whole(frame[name]):
            frame[name] = frame[name].astype("int64")
    types = {name: field.final for name, field in FIELDS[table].items() if field.final and name in frame.columns}
    return frame.astype(types)


def are_whole(texts: pd.Series) -> bool:
    """Say whether every text is a whole number as a number would be written."""
    return bool(texts.str.fullmatch(_WHOLE_TEXT).all())


def each_once(key: list[str]) -> str:
    """Return in words the rule that no two rows have one key."""
    return f"each ({', '.join(key)}) once" if len(key) > 1 else f"each {key[0]} once"


def up_to_tomorrow(now: pd.Timestamp) -> tuple[pd.Timestamp, str]:
    """Return the latest time that a row may have unless most rows lie ahead, and the rule in words."""
    tomorrow = now + DAY
    return tomorrow, f"a time up to tomorrow, {tomorrow.isoformat(timespec='minutes')}"


def reasons(faults: list[Fault]) -> dict[int, str]:
    """Return, for each row at fault, every rule it breaks in one line."""
    found: dict[int, list[str]] = {}
    for fault in faults:
        text = f"{fault.column}: {fault.what}, expected {fault.rule}"
        for row in fault.rows.tolist():
            found.setdefault(row, []).append(text)
    return {row: "; ".join(texts) for row, texts in found.items()}


def _row_rules(table: str, present: set[str], items: Collection[str] | None, now: pd.Timestamp) -> list[pandera.Check]:
    """Return the rules that take more than one row, column or table, or the time."""
    rules = []
    if key := ONCE.get(table):
        once = each_once(key)
        rules.append(_row_rule(key[0], once, DUPLICATE, lambda f: ~f.duplicated(key) | f[key].isna().any(axis=1)))
    if items is not None and "item_id" in present and table in ("impressions", "events"):
        known = "an item_id of the items table"
        rules.append(_row_rule("item_id", known, "unknown item", lambda f: f.item_id.isin(items) | f.item_id.isna()))
    if items is not None and "candidates" in present:
        known = "item_ids of the items table"
        rules.append(_row_rule("candidates", known, "unknown item", lambda f: _all_known(f.candidates, items)))
    if "timestamp" in FIELDS[table].keys() & present:
        tomorrow, past = up_to_tomorrow(now)
        rules.append(_row_rule("timestamp", past, FUTURE, lambda f: ~_strays(f.timestamp, tomorrow)))
    if table == "impressions":
        for result, cause in (("converted", "clicked"), ("revenue", "converted")):
            if {result, cause} <= present:
                rules.append(_needs(result, cause))
    return rules


def _needs(result: str, cause: str) -> pandera.Check:
    return _row_rule(
        result, f"0 where {cause} is 0", "impossible value", lambda f: ~((f[result] > 0) & (f[cause] == 0))
    )


def _strays(times: pd.Series, limit: pd.Timestamp) -> pd.Series[bool]:
    """Mark times after the limit, shape (n,); none if most are.

    One row of 2099 makes every shopper of the log one who has not come back for decades. Where most rows lie ahead, the
    log was simulated, or its dates were moved, and the times between its rows are right.
    """
    ahead = times > limit
    return ahead & (2 * int(ahead.sum()) <= len(ahead))


def _all_known(candidates: pd.Series, items: Collection[str]) -> pd.Series[bool]:
    single = candidates.explode()
    return (single.isin(items) | single.isna()).groupby(level=0).all()


def check_columns(table: str, raw: RawTable) -> None:
    """Refuse a table without a column that it must have.

    Raises:
        InputError: It lacks one.
    """
    names = raw.names
    for name, field in FIELDS[table].items():
        if field.needed and name not in names:
            spare = [column for column in names if column not in FIELDS[table]] or names
            raise InputError(
                f"the column {name} is missing",
                where=raw.path,
                expected=f"the columns {', '.join(n for n, f in FIELDS[table].items() if f.needed)}",
                remedy=did_you_mean(name, spare) if len(spare) < 30 else "",
            )
