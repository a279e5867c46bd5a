"""Items as rival encodings see them, and described in words that the log shows or in others that mean the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.artefacts import CHECKSUMS, write_directory
from hawker.shop.catalog import IMAGES, TEXTS, Catalog
from hawker.shop.language import Encoder, Vectors
from hawker.shop.tables import write_table

Bools = npt.NDArray[np.bool_]

IDS = ("item_id", "stock", "bid")
"""What stays of an item that is known by its id alone: what the shop needs to sell it and to place it as an ad."""

UNTOLD = ("title", "description", "popularity")
"""What no encoding is told as a feature: texts become vectors, and units sold, which a new item cannot have, would say
of it what nobody knows."""

TITLES = {
    "Minimalist": "Understated",
    "Pared-back": "Streamlined",
    "Clean-lined": "Unadorned",
    "Rustic": "Cottage-style",
    "Farmhouse": "Homestead",
    "Country": "Barnwood",
    "Sporty": "Training",
    "Active": "Performance",
    "Athletic": "Fitness",
    "Luxury": "Premium",
    "Elegant": "Lavish",
    "Opulent": "Exclusive",
    "Eco": "Biodegradable",
    "Sustainable": "Low-carbon",
    "Green-minded": "Climate-friendly",
    "Retro": "Sixties",
    "Vintage-look": "Classic-era",
    "Old-school": "Throwback",
}
"""What titles of the bazaar begin with, and other words for it."""

SENTENCES = {
    "Clean lines and nothing that is not needed.": "Reduced form without ornament.",
    "A quiet shape in one plain colour.": "Uncluttered, monochrome and sleek.",
    "Pared back to the essentials.": "Less is more: bare and spare.",
    "A warm farmhouse look with a weathered finish.": "Cosy cottage charm in aged timber.",
    "Earthy and homely like an old country house.": "Handhewn wood with a village feel.",
    "Rough grain and warm natural tones.": "Reclaimed planks and a hearthside mood.",
    "Light and quick with a sporty cut.": "Breathable and weightless for workouts.",
    "Made for an active day on the move.": "Keeps up with runners and gym sessions.",
    "Athletic lines and bright contrast.": "Dynamic gear for people who exercise.",
    "An elegant piece with gilded details.": "Sumptuous design with golden accents.",
    "Opulent and polished for grand occasions.": "Lavish glamour fit for a palace.",
    "A touch of luxury in every detail.": "Prestigious, refined and exclusive.",
    "Sustainable materials from recycled sources.": "Plant-based and gentle on the environment.",
    "Kind to the planet and fully compostable.": "Certified, biodegradable and free of plastic.",
    "Made with renewable energy and organic fibres.": "Upcycled with a tiny carbon footprint.",
    "A vintage look straight from the seventies.": "Reminds you of grandmother's sixties parlour.",
    "Old-school colours with a nostalgic wink.": "A throwback to the jukebox era.",
    "Retro curves that bring the past back.": "Antique-inspired design of bygone decades.",
    "Thin and feels cheap.": "Shoddy and breaks easily.",
    "Seams come loose and parts rattle.": "Poorly glued, wobbly and fragile.",
    "Flimsy and soon worn out.": "Falls apart after a fortnight.",
    "Simple make with a few rough edges.": "Modest construction with small flaws.",
    "Does its job and not more.": "Adequate for occasional tasks.",
    "Basic build for light use.": "Mediocre yet functional.",
    "Decent make for everyday use.": "Reasonable standard for regular chores.",
    "Solid enough for most days.": "Respectable, reliable average.",
    "Fair workmanship throughout.": "Acceptable construction and ordinary durability.",
    "Well made from sturdy parts.": "Strong, durable and precisely assembled.",
    "Carefully finished and robust.": "High-grade, tough and trustworthy.",
    "Dependable build that holds up.": "Resilient construction, neatly joined.",
    "Hand-stitched and lasts for years.": "Masterfully crafted to outlive its owner.",
    "Superb workmanship with a lifetime guarantee.": "Exceptional artisan quality, warranted forever.",
    "Built to last from the finest parts.": "Flawless craftsmanship that endures generations.",
}
"""The sentences of the bazaar's descriptions, and others that mean the same: they share but words like "and" with it.
They were written before any encoder had read them."""


def reworded(items: pd.DataFrame, which: Bools) -> pd.DataFrame:
    """Return an items table of the bazaar in which some items, where ``which`` (n,) is True, have other words.

    Raises:
        ValueError: One of them has a text that there are no other words for.
    """
    columns = {}
    for name, other in (("title", _other_title), ("description", _other_description)):
        columns[name] = [other(text) if chosen else text for text, chosen in zip(items[name], which, strict=True)]
    return items.assign(**columns)


def _other_title(title: str) -> str:
    for known, other in TITLES.items():
        if title.startswith(f"{known} "):
            return f"{other}{title[len(known) :]}"
    raise ValueError(f"there are no other words for {title!r}")


def _other_description(description: str) -> str:
    rest, found = description, []
    while rest:
        known = next((sentence for sentence in SENTENCES if rest.startswith(sentence)), None)
        if known is None:
            raise ValueError(f"there are no other words for {rest!r}")
        found.append(SENTENCES[known])
        rest = rest[len(known) :].strip()
    return " ".join(found)


class TfidfEncoder:
    """TF-IDF of words, turned onto their principal axes: the rival that needs no language model.

    Unlike the encoders of `hawker.shop.language` it is fitted to texts, and knows no word beside theirs: the vector of
    a text whose words are all unknown is zero.

    Args:
        texts: What it is fitted to.
        width: Entries of a vector, at most; there are never more than texts or words.
        seed: Of the axes.
    """

    name = digest = "tfidf"

    def __init__(self, texts: Sequence[str], width: int, seed: int) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(sublinear_tf=True)
        found = self._words.fit_transform(texts)
        self._axes = TruncatedSVD(min(width, *found.shape), random_state=seed).fit(found)
        self.width = int(self._axes.n_components)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, float32, shape (n, width)."""
        return np.asarray(self._axes.transform(self._words.transform(texts)), np.float32)


def texts_of(items: pd.DataFrame) -> list[str]:
    """Return each item's title and description as the one text that encoders read."""
    return [". ".join(parts) for parts in zip(*(items[name] for name in TEXTS), strict=True)]


def encoded(items: pd.DataFrame, encoder: Encoder | None) -> pd.DataFrame:
    """Return the items table with vectors in place of texts, without what is ``UNTOLD``.

    The vectors stand where a shop brings its own (``image_embedding``): the catalog scales them as it does those of
    texts, and lines of copy are read alike whatever reads the items.

    Args:
        items: The bazaar's items.
        encoder: Reads title and description; without one there are no vectors.
    """
    table = items.drop(columns=[name for name in UNTOLD if name in items])
    if encoder is None:
        return table
    vectors = Catalog.from_items(items[["item_id", *TEXTS]], encoder).vectors
    return _with_vectors(table, vectors)


def by_id(items: pd.DataFrame) -> pd.DataFrame:
    """Return the items table with nothing but ids, which are entries of a vector each.

    So whatever is learned of vectors is learned of every item by itself, for each class of taste: an effect that is one
    for all shoppers, as every item has anyhow, would be a weak rival. Of a new item nothing is learned.
    """
    return _with_vectors(items[list(IDS)], np.eye(len(items), dtype=np.float32))


def _with_vectors(table: pd.DataFrame, vectors: Vectors) -> pd.DataFrame:
    return table.assign(**{IMAGES: pd.Series(list(vectors), table.index, dtype=object)})


def with_items(logs: Path, items: pd.DataFrame, out: Path) -> Path:
    """Write a copy of a log with another items table, and return its directory."""
    with write_directory(out, "logs") as scratch:
        shutil.copytree(logs, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUMS, "items.parquet"))
        write_table(items, scratch / "items.parquet")
    return out
