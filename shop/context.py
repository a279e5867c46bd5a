"""What a strategy may know at a page, made by one builder for logs, worlds and serving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.catalog import Catalog
from hawker.shop.contract import features
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.features import LARGEST, FeatureSchema, FeatureTally
from hawker.shop.language import Encoder
from hawker.shop.logs import affinity_columns, feature_columns
from hawker.shop.search import COLUMNS as QUERY
from hawker.shop.search import Search, with_query

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Context(Generic[A]):
    """A batch of B pages before their decision. ``A`` is a NumPy array in serving and a torch tensor in training.

    Attributes:
        shopper: Encoded shopper features and time of day, shape (B, D), in the units of the logs.
        candidates: Catalog indices of the items that may be shown, shape (B, C).
        mask: True where a candidate is eligible, shape (B, C).
        affinity: The shopper's affinity with each candidate, shape (B, C); zero where the shop records none.
    """

    shopper: A
    candidates: A
    mask: A
    affinity: A

    def map(self, function: Callable[[A], B]) -> Context[B]:
        """Apply a function to every array: to index a batch, or to move it to another library or device."""
        return Context(*(function(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class ContextBuilder:
    """Turns log rows and serving requests into contexts.

    Attributes:
        shopper: Schema of the shopper features.
        catalog: The items.
        search: What queries have to do with items, in shops with a search box: then the schema has its columns, and a
            query's match with an item is part of their affinity. ``to_dict`` leaves it out: it is stored apart.
    """

    shopper: FeatureSchema
    catalog: Catalog
    search: Search | None = None

    @classmethod
    def fit(cls, impressions: pd.DataFrame, items: pd.DataFrame, encoder: Encoder | None = None) -> ContextBuilder:
        """Learn the schemas from the impressions and the items of a log.

        Raises:
            InputError: A feature has the name of a time feature.
        """
        tally = cls.tally(impressions.columns)
        tally.add(with_time(impressions))
        return cls(tally.schema(), Catalog.from_items(items, encoder))

    @staticmethod
    def tally(columns: Iterable[str]) -> FeatureTally:
        """Return an empty tally of the shopper features of impressions with these columns, and of the time of day.

        Raises:
            InputError: A feature has the name of a time feature.
        """
        found = features("impressions", columns)
        if taken := sorted(set(TIME) & set(found)):
            raise InputError(
                "the name is taken by a time feature", where=f"impressions column {taken[0]}", remedy="rename it"
            )
        return FeatureTally([*TIME, *found])

    def searching(self, search: Search) -> ContextBuilder:
        """Return the builder of the same shop with a search box."""
        return ContextBuilder(with_query(self.shopper), self.catalog, search)

    def from_impressions(self, impressions: pd.DataFrame) -> Context[npt.NDArray[Any]]:
        """Return the context of every row, with the whole catalog as candidates."""
        n, n_items = len(impressions), len(self.catalog)
        columns = affinity_columns(impressions)
        affinity = np.zeros((n, n_items), np.float32)
        for item, column in zip(self.catalog.index(columns, "affinity columns"), columns.values(), strict=True):
            affinity[:, item] = np.nan_to_num(impressions[column].to_numpy(np.float32))
        return Context(
            self.encode_shoppers(impressions),
            np.broadcast_to(np.arange(n_items), (n, n_items)),
            np.ones((n, n_items), bool),
            affinity,
        )

    def encode_shoppers(self, impressions: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Return each row's shopper features, time of day and query, shape (n, D)."""
        return self.shopper.encode(self._with_query(with_time(impressions), impressions))

    def _with_query(self, known: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
        """Add the columns of the queries of rows, if there is a search box."""
        if self.search is None or "query" not in rows:
            return known
        code, queries = pd.factorize(rows["query"])
        columns = self.search.columns([*queries, None])[code]
        return known.assign(**dict(zip(QUERY, columns.T, strict=True)))

    def own_affinity(self, impressions: pd.DataFrame, item: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return each row's affinity with the item it shows, catalog index ``item`` (n,); 0 where none is recorded.

        The match of the row's query counts, see ``search``.
        """
        affinity = np.zeros(len(impressions), np.float32)
        columns = affinity_columns(impressions)
        for own, column in zip(self.catalog.index(columns, "affinity columns"), columns.values(), strict=True):
            rows = np.flatnonzero(item == own)
            affinity[rows] = np.nan_to_num(impressions[column].to_numpy(np.float32)[rows])
        if self.search is not None and "query" in impressions:
            code, queries = pd.factorize(impressions["query"])
            for start in range(0, len(queries), 256):  # queries whose matches with all items are held at once
                here = np.flatnonzero((code >= start) & (code < start + 256))
                match = self.search.match(list(queries[start : start + 256]))
                affinity[here] += match[code[here] - start, item[here]]
        return affinity

    def from_request(self, request: Any, where: object) -> Context[npt.NDArray[Any]]:
        """Return the context of one serving request, as a batch of one page.

        Args:
            request: ``{"timestamp": ISO 8601 with zone, "shopper": {feature: value}, "affinity": {item_id: value},
                "candidates": [item_id], "query": text}``. Only the timestamp is required: a feature left out counts as
                unknown, and without candidates the whole catalog is eligible. A query that says nothing is none, and
                so is every query in a shop without a search box.
            where: The file the request came from, for the messages.

        Raises:
            InputError: An unknown key, feature or item, a value of the wrong type, no candidate.
        """
        _check_keys(request, ("timestamp", "shopper", "affinity", "candidates", "query"), where)
        query = query_of(request, where)
        shopper, affinity_by_id = request.get("shopper", {}), request.get("affinity", {})
        _check_keys(shopper, [c for c in self.shopper.columns if c not in (*TIME, *QUERY)], f"{where}: shopper")
        for name, value in shopper.items():
            if value is not None and name in self.shopper.numeric and not _is_finite(value):
                raise InputError("not a number", where=f"{where}: shopper.{name}", got=value, expected="a number")
            if value is not None and not isinstance(value, (str, int, float)):
                raise InputError("not a text", where=f"{where}: shopper.{name}", got=value, expected="a text")
        try:
            timestamp: pd.Timestamp | None = pd.Timestamp(request["timestamp"])
        except KeyError:
            raise InputError("no timestamp", where=where, expected="ISO 8601 with a time zone") from None
        except (ValueError, TypeError):
            timestamp = None
        if timestamp is None or pd.isna(timestamp) or timestamp.tzinfo is None:
            expected = "ISO 8601 with a time zone"
            raise InputError("bad timestamp", where=where, got=request["timestamp"], expected=expected)
        row = pd.DataFrame([{**shopper, "timestamp": timestamp.tz_convert("UTC"), "query": query}])
        _check_keys(affinity_by_id, self.catalog.item_ids, f"{where}: affinity")
        affinity = np.zeros((1, len(self.catalog)), np.float32)
        for item, value in affinity_by_id.items():
            if not _is_finite(value):
                raise InputError("not a number", where=f"{where}: affinity.{item}", got=value, expected="a number")
            affinity[0, self.catalog.index([item], where)] = value
        ids = request.get("candidates", self.catalog.item_ids)
        if not isinstance(ids, (list, tuple)) or not ids:
            raise InputError("no candidates", where=where, got=ids, expected="a list of at least one item id")
        candidates = self.catalog.index(ids, f"{where}: candidates")
        if len(np.unique(candidates)) < len(candidates):
            raise InputError("a candidate is listed twice", where=f"{where}: candidates")
        if self.search is not None:
            affinity = affinity + self.search.match([query])
        mask = np.ones((1, len(candidates)), bool)
        return Context(self.encode_shoppers(row), candidates[None], mask, affinity[:, candidates])

    def to_dict(self) -> dict[str, Any]:
        """Return the schemas as JSON values."""
        return {"shopper": self.shopper.to_dict(), "catalog": self.catalog.to_dict()}

    @classmethod
    def from_dict(cls, values: Any, vectors: npt.NDArray[np.float32], where: object) -> ContextBuilder:
        """Build from what ``to_dict`` returned and the item vectors, shape (n_items, width)."""
        _check_keys(values, ("shopper", "catalog"), where)
        shopper = FeatureSchema.from_dict(values.get("shopper", {}), where)
        return cls(shopper, Catalog.from_dict(values.get("catalog", {}), vectors, where))


TIME = ["hour_sin", "hour_cos"]
"""The time features: the hour of the day (UTC) as a point on the unit circle."""


def query_of(request: dict[str, Any], where: object) -> str | None:
    """Return the query of a request or of a page of its history.

    Raises:
        InputError: It is no text.
    """
    query = request.get("query")
    if query is not None and not isinstance(query, str):
        raise InputError("not a text", where=f"{where}: query", got=query, expected="what was typed, or null")
    return query


def with_time(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the features of impressions, and the time features beside them."""
    angle = 2 * np.pi * (rows["timestamp"].dt.hour + rows["timestamp"].dt.minute / 60).to_numpy(np.float64) / 24
    return rows[feature_columns(rows)].assign(hour_sin=np.sin(angle), hour_cos=np.cos(angle))


def _check_keys(values: Any, known: Any, where: object) -> None:
    if not isinstance(values, dict):
        raise InputError("not an object", where=where, got=values, expected="a JSON object")
    for key in values:
        if key not in known:
            raise InputError(f"unknown key {key!r}", where=where, remedy=did_you_mean(str(key), list(known)[:1000]))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
