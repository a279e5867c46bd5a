"""The items of a shop, as the strategy and the shopper models see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.features import FeatureSchema

NOT_FEATURES = ("item_id", "title", "description", "stock", "image_embedding")


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items, in a fixed order: everywhere in Hawker an item is its index in this order.

    Attributes:
        item_ids: The shop's own ids, one per item.
        features: Schema of the item features.
        vectors: Encoded item features, shape (n_items, features.width).
    """

    item_ids: tuple[str, ...]
    features: FeatureSchema
    vectors: npt.NDArray[np.float32]

    @classmethod
    def from_items(cls, items: pd.DataFrame) -> Catalog:
        """Build the catalog from the ``items`` table of a log, ordered as the table is."""
        features = FeatureSchema.fit(items, [c for c in items.columns if c not in NOT_FEATURES])
        return cls(tuple(items["item_id"].astype(str)), features, features.encode(items))

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def _position(self) -> pd.Index:
        return pd.Index(self.item_ids)

    def index(self, item_ids: Iterable[Any], where: object) -> npt.NDArray[np.int64]:
        """Return the index of each item id, shape (n,).

        Raises:
            InputError: An id is not in the catalog; the message names ``where``.
        """
        ids = pd.Index(pd.Series(list(item_ids), dtype=object).astype(str))
        found = self._position.get_indexer(ids)
        if (found < 0).any():
            unknown = str(ids[int(np.argmax(found < 0))])
            raise InputError(
                "item not in the catalog", where=where, got=unknown, remedy=did_you_mean(unknown, self.item_ids[:1000])
            )
        return found.astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return ids and schema as JSON values; the vectors are stored apart, as an array."""
        return {"item_ids": list(self.item_ids), "features": self.features.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], vectors: npt.NDArray[np.float32], where: object) -> Catalog:
        """Build a catalog from what ``to_dict`` returned and its vectors, shape (n_items, width).

        Raises:
            InputError: ``values`` has another form, or the vectors another shape.
        """
        try:
            item_ids, features = tuple(map(str, values["item_ids"])), values["features"]
        except (KeyError, TypeError) as error:
            raise InputError("not a catalog", where=where, got=repr(error)) from None
        features = FeatureSchema.from_dict(features, where)
        if vectors.shape != (len(item_ids), features.width):
            expected = f"shape {(len(item_ids), features.width)}"
            raise InputError("item vectors do not fit the catalog", where=where, got=vectors.shape, expected=expected)
        return cls(item_ids, features, vectors)
