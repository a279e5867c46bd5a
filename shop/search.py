"""What words typed into a search box have to do with each item: BM25, and what logged clicks say beside it.

A query is data: it is cut to a few words, and words that neither the items nor the shop's shoppers use are passed over.
A query that says nothing then is no query. Nothing here needs torch unless the shop's texts were encoded by a language
model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hawker.shop.artefacts import read_json, write_json
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.features import FeatureSchema
from hawker.shop.language import Encoder, load_encoder

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LONGEST = 200
"""Characters of a query that are read."""

MOST_WORDS = 12
"""Words of a query that count: the first known ones."""

ENTRIES = 16
"""Numbers that a query's encoding has in a context."""

ASKED = "query.asked"
COLUMNS = (ASKED, *(f"query.{i}" for i in range(ENTRIES)))
"""What the schema of contexts calls whether there is a query, and its encoding."""

ALIKE, SHORTEST = 0.82, 4
"""What `difflib` says at least of an unknown word that is taken for a known one, misspelt, and its letters, at least.
Both have the same first letter."""

LARGEST = 6.0
"""Log-odds that a query adds or takes, at most."""

FILES = ("search.json", "search.safetensors")

_K1, _B = 1.2, 0.75  # as Lucene has them
_HELD = 1 << 26  # bytes of matches that are kept
_CELLS = 1 << 22  # queries times items at a time
_SPELT = 100_000  # words whose spelling is remembered
_BREAKS = re.compile(r"[\s!-/:-@\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f\uff01-\uff0f]+")
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be by can do for from get give have i in is it its like looking me my need of on or "
        "our please show some that the their them they this to us want we what with you your",
    )
)

Floats = npt.NDArray[np.float32]


def terms(text: object) -> list[str]:
    """Return the words of a text in lower case, in order, without those that say nothing; none where it is no text."""
    if not isinstance(text, str):
        return []
    found = _BREAKS.split(unicodedata.normalize("NFKC", text).casefold())
    return [word for word in found if word and word not in _STOP]


@dataclass(frozen=True, eq=False)
class Search:
    """What a shop makes of queries. Made by `hawker.shop.search_fit.fit_search`.

    Attributes:
        words: Words that are known: those of the items, then others that shoppers use.
        bm25: What each word adds to the score of each item (Robertson and Zaragoza 2009), shape (I, words).
        titles: 1 where a word stands in an item's title or category, shape (I, words).
        idf: How much a word tells, shape (words,); that of the rarest for words that no item has.
        pairs: Log-odds of a click that a word of a query adds to items with a word in title or category, shape (words,
            words).
        dense: Log-odds that a query adds: any at all, for a full BM25 score, for all its words in title or category,
            and for a cosine of the encodings that is one standard deviation above the mean, shape (4,).
        vectors: Encodings of the items' titles and categories, shape (I, w).
        encoder: What encodes them and queries.
    """

    words: tuple[str, ...]
    bm25: csr_array
    titles: csr_array
    idf: Floats
    pairs: csr_array
    dense: Floats
    vectors: Floats
    encoder: Encoder
    _kept: dict[tuple[str, ...], Floats] = field(default_factory=dict)
    _spelt: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of_items(cls, items: pd.DataFrame, encoder: Encoder, others: Iterable[str] = ()) -> Search:
        """Return what the items alone tell of queries; nothing is learned yet: ``match`` is 0.

        Args:
            items: The items table of a log.
            encoder: Encodes queries and items.
            others: Words that shoppers use, too.
        """
        from scipy.sparse import csr_array  # not where nobody searches

        titles = _texts(items, ("title", "category"))
        whole = [f"{one} {two}" for one, two in zip(titles, _texts(items, ("description",)), strict=True)]
        own, said = [[terms(text) for text in texts] for texts in (titles, whole)]
        words = dict.fromkeys(sorted({word for each in said for word in each}))
        words |= dict.fromkeys(sorted(set(others) - words.keys()))
        number, n = {word: i for i, word in enumerate(words)}, len(items)
        counts = _counts(said, number)
        held = np.bincount(counts.indices, minlength=len(words))  # items that have each word
        idf = np.log1p((n - held + 0.5) / (held + 0.5)).astype(np.float32)
        length = counts.sum(1)
        damped = _K1 * (1 - _B + _B * length / max(length.mean(), 1e-9))
        rows = np.repeat(np.arange(n), np.diff(counts.indptr))
        tf = counts.data / (counts.data + damped[rows]) * (_K1 + 1)
        bm25 = csr_array(((idf[counts.indices] * tf).astype(np.float32), counts.indices, counts.indptr), counts.shape)
        titled = _counts(own, number)
        titled.data[:] = 1.0
        nothing = _counts([[] for _ in words], number)
        vectors = encoder.encode(titles)
        return cls(tuple(words), bm25, titled, idf, nothing, np.zeros(4, np.float32), vectors, encoder)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def _by_letter(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for word in self.words:
            found.setdefault(word[0], []).append(word)
        return found

    def learned(self, dense: Floats, pairs: csr_array) -> Search:
        """Return the same with other log-odds."""
        return replace(self, dense=dense, pairs=pairs, _kept={})

    def asked(self, query: object) -> tuple[str, ...]:
        """Return the known words of a query, each once, in order; () where it says nothing.

        A word that is not known is taken for the known one that is spelt most like it, if any is.
        """
        found: dict[str, None] = {}
        if isinstance(query, str) and len(query) > LONGEST:
            query = query[:LONGEST].rsplit(None, 1)[0]  # not a piece of a word
        for word in terms(query):
            if word not in self._spelt:
                if len(self._spelt) >= _SPELT:
                    self._spelt.clear()
                self._spelt[word] = word if word in self._number else self._like(word)
            if (known := self._spelt[word]) is not None:
                found[known] = None
        return tuple(found)[:MOST_WORDS]

    def _like(self, word: str) -> str | None:
        if len(word) < SHORTEST:
            return None
        return next(iter(get_close_matches(word, self._by_letter.get(word[0], ()), 1, ALIKE)), None)

    def columns(self, queries: Sequence[object]) -> Floats:
        """Return the entries that queries have in contexts, see ``COLUMNS``; zeros where nothing is asked, (n, 17)."""
        table = np.zeros((len(queries), len(COLUMNS)), np.float32)
        code, distinct = _distinct([self.asked(query) for query in queries])
        some = [i for i, words in enumerate(distinct) if words]
        if some:
            encoded = self.encoder.encode([" ".join(distinct[i]) for i in some])
            rows = np.zeros((len(distinct), len(COLUMNS)), np.float32)
            rows[some, 0], rows[some, 1:] = 1.0, encoded @ _axes(encoded.shape[1])
            table = rows[code]
        return table

    def match(self, queries: Sequence[object]) -> Floats:
        """Return the log-odds of a click that queries add to each item, shape (n, I); 0 where nothing is asked."""
        code, distinct = _distinct([self.asked(query) for query in queries])
        missing = [words for words in distinct if words and words not in self._kept]
        found = dict(zip(missing, self._matches(missing), strict=True)) if missing else {}
        none = np.zeros(self.bm25.shape[0], np.float32)
        rows = [found[words] if words in found else self._kept.get(words, none) for words in distinct]
        if (len(self._kept) + len(found)) * none.nbytes > _HELD:
            self._kept.clear()
        if len(found) * none.nbytes <= _HELD:
            self._kept.update(found)
        return np.stack(rows)[code] if rows else np.zeros((0, len(none)), np.float32)

    def _matches(self, queries: list[tuple[str, ...]]) -> Floats:
        found = np.zeros((len(queries), self.bm25.shape[0]), np.float32)
        step = max(1, _CELLS // max(self.bm25.shape[0], 1))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            words = self.bag(some)
            of_pairs = (words @ self.pairs @ self.titles.T).toarray() / np.maximum(words.sum(1), 1)[:, None]
            odds = self.features(some) @ self.dense + of_pairs
            found[start : start + step] = np.clip(odds, -LARGEST, LARGEST)
        return found

    def bag(self, queries: list[tuple[str, ...]]) -> csr_array:
        """Return which known words stand in queries, as ``asked`` has them, shape (n, words)."""
        return _counts([list(words) for words in queries], self._number)

    def features(self, queries: list[tuple[str, ...]]) -> Floats:
        """Return what ``dense`` is multiplied by for queries, as ``asked`` has them, and items, shape (n, I, 4)."""
        bag = self.bag(queries)
        told = np.maximum(bag @ self.idf, 1e-6)[:, None]
        best, held = bag.multiply(self.idf).tocsr(), (bag @ self.bm25.T).toarray()
        full, titled = held / (told * (_K1 + 1)), (best @ self.titles.T).toarray() / told
        near = self.encoder.encode([" ".join(words) for words in queries]) @ self.vectors.T
        near = (near - near.mean(1, keepdims=True)) / np.maximum(near.std(1, keepdims=True), 1e-6)
        return np.stack([np.ones_like(full), full, titled, near], 2).astype(np.float32)

    def lexical(self, queries: Sequence[object]) -> Floats:
        """Return the BM25 scores of each item, shape (n, I); 0 where nothing is asked."""
        code, distinct = _distinct([self.asked(query) for query in queries])
        scores: Floats = (self.bag(distinct) @ self.bm25.T).toarray().astype(np.float32)[code]
        return scores

    def found(self, queries: Sequence[object], count: int, eligible: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the best eligible items for each query, shape (n, count); ``EMPTY`` where there are no more.

        Half are the best by ``match``, the rest those that BM25 finds and then the next by match. Nothing is found
        where nothing is asked.

        Args:
            queries: Texts.
            count: Items to find.
            eligible: True for items that may be found, shape (I,).
        """
        match, lexical = self.match(queries), self.lexical(queries)
        place = np.argsort(np.argsort(-match, 1, kind="stable"), 1)  # 0 for the best
        score = np.where(place < count // 2, 2e6, np.where(lexical > 0, 1e6 + lexical, -place))
        score = np.where(eligible, score, -np.inf)
        best = np.argsort(-score, 1, kind="stable")[:, :count]
        best = np.where(np.isneginf(np.take_along_axis(score, best, 1)), EMPTY, best)
        best[[not self.asked(query) for query in queries]] = EMPTY
        short = count - best.shape[1]
        return np.pad(best, ((0, 0), (0, max(short, 0))), constant_values=EMPTY)

    def save(self, directory: Path) -> None:
        """Write what is needed to search into a directory that is being written."""
        arrays = {"idf": self.idf, "dense": self.dense, "vectors": self.vectors}
        for name in ("bm25", "titles", "pairs"):
            matrix = getattr(self, name)
            arrays[f"{name}.data"] = matrix.data.astype(np.float32)
            arrays[f"{name}.indices"] = matrix.indices.astype(np.int32)
            arrays[f"{name}.indptr"] = matrix.indptr.astype(np.int64)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / FILES[1])
        encoder = {"name": self.encoder.name, "digest": self.encoder.digest}
        write_json(directory / FILES[0], {"words": list(self.words), "encoder": encoder})

    @classmethod
    def load(cls, directory: Path) -> Search | None:
        """Read what ``save`` wrote; None where there is nothing.

        Raises:
            InputError: A file is damaged, or the encoder is not there or makes other vectors.
        """
        where = directory / FILES[0]
        if not where.is_file():
            return None
        from scipy.sparse import csr_array

        told = read_json(where)
        try:
            arrays, words = load_file(directory / FILES[1]), tuple(map(str, told["words"]))
            n = len(arrays["vectors"])
            sparse: dict[str, Any] = {}
            for name, rows in (("bm25", n), ("titles", n), ("pairs", len(words))):
                parts = tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
                sparse[name] = csr_array(parts, shape=(rows, len(words)))
            encoder = _encoder(str(told["encoder"]["name"]), str(told["encoder"]["digest"]), where)
            dense: dict[str, Any] = {name: arrays[name] for name in ("idf", "dense", "vectors")}
            return cls(words, encoder=encoder, **sparse, **dense)
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise InputError("not a search of this version", where=directory, got=str(error).splitlines()[0]) from None


def with_query(schema: FeatureSchema) -> FeatureSchema:
    """Return a schema with ``COLUMNS`` after its numbers, in units in which they are of unit size."""
    extra = len(COLUMNS) - 1
    return FeatureSchema(
        schema.numeric + COLUMNS,
        schema.mean + (0.0,) * (1 + extra),
        schema.scale + (1.0,) + (ENTRIES**-0.5,) * extra,
        schema.categories,
    )


def _encoder(name: str, digest: str, where: object) -> Encoder:
    if name.partition(":")[0] == "hashed":
        encoder = load_encoder(name, None)  # type: ignore[arg-type]  # which computes in NumPy
    else:
        import torch

        from hawker.shop.models import home

        encoder = load_encoder(name, torch.device("cpu"), home() / "vectors")
    if encoder.digest != digest:
        expected = f"vectors of {digest[:12]}..."
        raise InputError("an encoder that makes other vectors", where=where, got=encoder.digest[:12], expected=expected)
    found: Encoder = encoder
    return found


def _axes(width: int) -> Floats:
    """Return a fixed projection to ``ENTRIES`` numbers that keeps lengths (Johnson and Lindenstrauss, 1984)."""
    drawn = np.random.default_rng(width).standard_normal((width, ENTRIES))
    axes: Floats = (drawn / ENTRIES**0.5).astype(np.float32)
    return axes


def _texts(items: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    here = [items[name].fillna("").astype(str) for name in columns if name in items]
    return [" ".join(parts) for parts in zip(*here, strict=True)] if here else [""] * len(items)


def _counts(texts: list[list[str]], number: dict[str, int]) -> csr_array:
    """Return how often each known word stands in texts, shape (n, words), each word once in a row."""
    from scipy.sparse import csr_array

    rows = [sorted(number[word] for word in text if word in number) for text in texts]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.array([i for row in rows for i in row], np.int32)
    matrix = csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(len(texts), len(number)))
    matrix.sum_duplicates()
    return matrix


def _distinct(queries: list[tuple[str, ...]]) -> tuple[npt.NDArray[np.int64], list[tuple[str, ...]]]:
    """Return each query's number among the distinct ones, and these."""
    number: dict[tuple[str, ...], int] = {}
    code = np.array([number.setdefault(query, len(number)) for query in queries], np.int64)
    return code, list(number)
