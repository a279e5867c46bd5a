"""Purchases over time as arrays: what return models learn from where no exposure was recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.errors import InputError, did_you_mean

SECONDS_OF_DAY = 86_400.0
MOST_CELLS = 400_000_000
"""Shoppers times periods that are held in memory (two float32 tables, 3.2 GB)."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Events of n shoppers in T periods of equal length; a shopper appears with her first event.

    Attributes:
        shoppers: Shopper ids in order, (n,).
        count: Days with an event in each period, (n, T) float32: several events of a day count as one.
        value: Log of 1 + the mean revenue (currency) of a period's days with events, (n, T) float32; NaN without events
            or where no revenue was recorded.
        birth: Period of the first event, (n,) int64, 0 .. T - 1.
        period_days: Days of a period.
        end: The moment at which the record ends; the last period is whole.
        unknown: Events left out because they name no shopper.
    """

    shoppers: npt.NDArray[Any]
    count: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]
    birth: npt.NDArray[np.int64]
    period_days: int
    end: pd.Timestamp
    unknown: int = 0

    @classmethod
    def from_events(
        cls,
        events: pd.DataFrame,
        *,
        kind: str = "purchase",
        start: pd.Timestamp | None = None,
        end: pd.Timestamp | None = None,
        period_days: int = 7,
    ) -> Histories:
        """Gather the events of one kind.

        Args:
            events: The table ``events`` of a log: ``shopper_id``, ``timestamp`` (UTC), ``kind``, perhaps ``revenue``.
            kind: What to count: "purchase", "view", ...
            start: Events before it are left out; the first event's day unless told. What came before is unknown: the
                first event after ``start`` is taken for the shopper's first.
            end: The moment the record ends; events from it on lie in the future and are left out. The end of the last
                event's day, whatever its kind, unless told.
            period_days: Days of a period, 1 or more. Periods are counted back from ``end``, so that only the first,
                which holds no more than first events, may be cut short.

        Raises:
            InputError: A column is missing, a timestamp is, the end is not after the start, no event of the kind has a
                shopper, or there are too many periods.
        """
        for name in ("shopper_id", "timestamp", "kind"):
            if name not in events:
                raise InputError(
                    f"the column {name} is missing", where="events", remedy=did_you_mean(name, map(str, events))
                )
        if isinstance(period_days, bool) or not isinstance(period_days, int) or period_days < 1:
            raise InputError("not a number of days", where="period_days", got=period_days, expected="1 or more")
        rows = events[(events["kind"] == kind).to_numpy()]
        if rows.empty:
            known = sorted(str(name) for name in events["kind"].dropna().unique())
            remedy = f"kinds there: {', '.join(known) or 'none'}"
            raise InputError(f"no event is a {kind}", where="events", remedy=remedy)
        time = _utc(events["timestamp"])
        if time.isna().any():
            raise InputError("timestamp is missing", where=f"events row {int(time.isna().to_numpy().argmax())}")
        start = time[rows.index].min().floor("D") if start is None else _moment(start, "start")
        end = time.max().floor("D") + pd.Timedelta(days=1) if end is None else _moment(end, "end")
        if end <= start:
            raise InputError("the end is not after the start", where="end", got=str(end), expected=f"after {start}")
        time = time[rows.index]
        named = rows["shopper_id"].notna().to_numpy()
        within = ((time >= start) & (time < end)).to_numpy()
        if not (named & within).any():
            raise InputError(
                f"no {kind} of a known shopper between start and end",
                where="events",
                got=f"{int(named.sum())} of known shoppers, {int(within.sum())} between {start} and {end}",
            )
        left = (end - time[named & within]).dt.total_seconds().to_numpy(np.float64)
        days = np.ceil(left / SECONDS_OF_DAY).astype(np.int64) - 1  # from the day to the end of the record
        revenue = pd.to_numeric(rows["revenue"]) if "revenue" in rows else pd.Series(np.nan, rows.index)
        codes, shoppers = pd.factorize(rows.loc[named & within, "shopper_id"], sort=True)
        periods = -(-int(np.ceil((end - start) / pd.Timedelta(days=1))) // period_days)
        if len(shoppers) * periods > MOST_CELLS:
            raise InputError(
                "too many shoppers and periods to hold in memory",
                where="period_days",
                got=f"{len(shoppers):,} shoppers, {periods:,} periods of {period_days} days",
                remedy="choose longer periods, a later start, or fewer shoppers",
            )
        each = pd.DataFrame({"shopper": codes, "day": days, "revenue": revenue[named & within].to_numpy(float)})
        daily = each.groupby(["shopper", "day"])["revenue"].sum(min_count=1).reset_index()
        cell = (daily["shopper"].to_numpy(), periods - 1 - daily["day"].to_numpy() // period_days)
        count, spent, priced = (np.zeros((len(shoppers), periods), np.float32) for _ in range(3))
        known_revenue = daily["revenue"].notna().to_numpy()
        np.add.at(count, cell, 1)
        np.add.at(spent, cell, np.where(known_revenue, daily["revenue"], 0).clip(min=0))
        np.add.at(priced, cell, known_revenue)
        value = np.full_like(count, np.nan)
        np.divide(spent, priced, out=value, where=priced > 0)
        birth = (count > 0).argmax(1)
        ids = np.asarray(shoppers)
        return cls(ids, count, np.log1p(value), birth, period_days, end, int((~named & within).sum()))

    @property
    def periods(self) -> int:
        """Number of periods, T."""
        return int(self.count.shape[1])

    def __len__(self) -> int:
        """Return the number of shoppers, n."""
        return len(self.shoppers)

    def until(self, period: int) -> Histories:
        """Return what was known at the end of ``period`` periods, of the shoppers who had appeared by then.

        Raises:
            InputError: ``period`` is not within 1 .. T, or nobody had appeared.
        """
        if not 1 <= period <= self.periods:
            raise InputError("no such period", where="period", got=period, expected=f"1 to {self.periods}")
        known = self.birth < period
        if not known.any():
            raise InputError("nobody had appeared by then", where="period", got=period)
        return replace(
            self,
            shoppers=self.shoppers[known],
            count=self.count[known, :period],
            value=self.value[known, :period],
            birth=self.birth[known],
            end=self.end - pd.Timedelta(days=self.period_days) * (self.periods - period),
        )


def _utc(times: pd.Series[Any]) -> pd.Series[Any]:
    """Return timestamps in UTC; those without a zone are taken for UTC."""
    if not pd.api.types.is_datetime64_any_dtype(times):
        raise InputError("timestamp holds no times", where="events", got=str(times.dtype), expected="UTC timestamps")
    return pd.Series(pd.to_datetime(times, utc=True))


def _moment(moment: pd.Timestamp, name: str) -> pd.Timestamp:
    moment = pd.Timestamp(moment)
    if pd.isna(moment):
        raise InputError("not a time", where=name, got=str(moment))
    return moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
