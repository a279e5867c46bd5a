"""The items of a shop, as the strategy and the shopper models see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.features import FeatureSchema
from hawker.shop.language import Encoder

TEXTS = ("title", "description")
IMAGES = "image_embedding"
NOT_FEATURES = ("item_id", *TEXTS, "stock", IMAGES)

TEXT_VARIANCE = 4.0
"""Variance that an item's text has in all its entries together once it is scaled: that of about four features. So has
its image embedding."""

LARGEST_ENTRY = 1e12
"""The largest entry of an image embedding: the squares of many are still numbers."""


@dataclass(frozen=True)
class TextSchema:
    """Which encoder turned the items' texts into vectors.

    Attributes:
        encoder: Its name, as ``hawker.shop.language.load_encoder`` takes it.
        digest: What its vectors depend on besides the text.
        width: Entries of a text's vector.
    """

    encoder: str
    digest: str
    width: int


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items, in a fixed order: everywhere in Hawker an item is its index in this order.

    Attributes:
        item_ids: The shop's own ids, one per item.
        features: Schema of the item features.
        vectors: Encoded item features, then the vector of the item's text, then its image embedding, shape
            (n_items, width).
        text: How texts were encoded; None where the items have none.
        image_width: Entries of an image embedding; 0 where the items have none.
    """

    item_ids: tuple[str, ...]
    features: FeatureSchema
    vectors: npt.NDArray[np.float32]
    text: TextSchema | None = None
    image_width: int = 0

    @classmethod
    def from_items(cls, items: pd.DataFrame, encoder: Encoder | None = None) -> Catalog:
        """Build the catalog from the ``items`` table of a log, ordered as the table is.

        Args:
            items: The table; ``encoder`` reads title and description as one text.
            encoder: Turns texts into vectors; without one texts are left out.

        Raises:
            InputError: Image embeddings differ in length, or an entry is no finite number.
        """
        features = FeatureSchema.fit(items, [c for c in items.columns if c not in NOT_FEATURES])
        blocks, schema = [features.encode(items)], None
        columns = [items[name].fillna("").astype(str) for name in TEXTS if name in items]
        texts = [". ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]
        if encoder is not None and any(texts):
            schema = TextSchema(encoder.name, encoder.digest, encoder.width)
            blocks.append(encoder.encode(texts))
        images = _images(items)
        return cls(tuple(items["item_id"].astype(str)), features, np.hstack([*blocks, images]), schema, images.shape[1])

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def width(self) -> int:
        """Entries of an item's vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def centre(self) -> npt.NDArray[np.float32]:
        """What to subtract from a vector to centre it: shape (width,)."""
        return np.concatenate([self.features.centre, self.vectors[:, self.features.width :].mean(0)])

    @cached_property
    def spread(self) -> npt.NDArray[np.float32]:
        """What to divide a centred vector by: shape (width,), positive.

        The entries of a text share one scale, which brings their variances to ``TEXT_VARIANCE`` in sum: language models
        put all texts close together, and an entry alone may hardly vary. Those of an image embedding do likewise.
        """
        spreads, start = [self.features.spread], self.features.width
        for width in (0 if self.text is None else self.text.width, self.image_width):
            block = self.vectors[:, start : start + width]
            variance = float(block.var(0).sum())
            varies = variance > 1e-8 * float(np.square(block).mean(0).sum())  # more than rounding does
            scale = np.sqrt(variance / TEXT_VARIANCE) if varies else 1.0
            spreads.append(np.full(width, scale, np.float32))
            start += width
        return np.concatenate(spreads)

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
        text = None if self.text is None else asdict(self.text)
        features = self.features.to_dict()
        return {"item_ids": list(self.item_ids), "features": features, "text": text, "image_width": self.image_width}

    @classmethod
    def from_dict(cls, values: dict[str, Any], vectors: npt.NDArray[np.float32], where: object) -> Catalog:
        """Build a catalog from what ``to_dict`` returned and its vectors, shape (n_items, width).

        Raises:
            InputError: ``values`` has another form, or the vectors another shape.
        """
        try:
            item_ids, features = tuple(map(str, values["item_ids"])), values["features"]
            text = None if values["text"] is None else TextSchema(**values["text"])
            image_width = int(values["image_width"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("not a catalog", where=where, got=repr(error)) from None
        features = FeatureSchema.from_dict(features, where)
        shape = (len(item_ids), features.width + (text.width if text else 0) + image_width)
        if vectors.shape != shape:
            expected = f"shape {shape}"
            raise InputError("item vectors do not fit the catalog", where=where, got=vectors.shape, expected=expected)
        return cls(item_ids, features, vectors, text, image_width)


def _images(items: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return the items' image embeddings, shape (n_items, width), their mean where one is missing; width 0 without any.

    Raises:
        InputError: They differ in length, or an entry is no finite number; the message names the item.
    """
    known: dict[int, npt.NDArray[np.float32]] = {}
    for row, cell in enumerate(items.get(IMAGES, ())):
        entries = np.asarray(cell, None if isinstance(cell, np.ndarray) else object)
        if entries.size == 0 or (entries.ndim == 0 and pd.isna(cell)):
            continue
        where = f"items column {IMAGES}, item {items['item_id'].iloc[row]}"
        bad = [entry for entry in np.atleast_1d(entries).tolist() if not _is_number(entry)]
        if entries.ndim != 1 or bad:
            expected = f"a list of numbers of size up to {LARGEST_ENTRY:g}"
            raise InputError("not an image embedding", where=where, got=str(bad[0] if bad else cell), expected=expected)
        first = next(iter(known), row)
        if row != first and len(entries) != len(known[first]):
            raise InputError(
                "an image embedding of another length",
                where=where,
                got=f"{len(entries):,} entries",
                expected=f"{len(known[first]):,} as in item {items['item_id'].iloc[first]}",
                remedy="embed all images with one model",
            )
        known[row] = entries.astype(np.float32)
    if not known:
        return np.zeros((len(items), 0), np.float32)
    stacked = np.stack(list(known.values()))
    images = np.tile(stacked.mean(0, dtype=np.float64).astype(np.float32), (len(items), 1))
    images[list(known)] = stacked
    return images


def _is_number(entry: object) -> bool:
    return isinstance(entry, (int, float)) and not isinstance(entry, bool) and abs(entry) <= LARGEST_ENTRY
