"""Learning what queries have to do with items from the clicks of visits that began with one."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array, hstack

from hawker.shop.language import Encoder
from hawker.shop.search import Search, terms

LEAST = 20
"""Impressions after queries with a word from which on the word is learned of, whether items have it or not."""

MOST = 400_000
"""Impressions that are learned from, at most."""

VARIANCES = (0.1, 0.3, 1.0)
"""Variances that log-odds of pairs of words may have before anything is seen; impressions left out say which."""

FOLDS = 5
"""One of so many impressions is left out to choose the variance by."""

Ints = npt.NDArray[np.int64]


class Shown(NamedTuple):
    """Impressions, n of them.

    Attributes:
        query: The query of each one's visit, or something that is no text; shape (n,).
        item: Catalog index, shape (n,).
        position: Position on the page, shape (n,).
        clicked: Whether it was clicked, shape (n,).
    """

    query: npt.NDArray[np.object_]
    item: Ints
    position: Ints
    clicked: npt.NDArray[np.bool_]


def fit_search(items: pd.DataFrame, shown: Shown, encoder: Encoder) -> Search | None:
    """Learn by how much queries move the log-odds of clicks (logistic regression with normal priors).

    Impressions of visits without a query take part: an item's own log-odds, and those of positions, are the same with
    and without one, and what is learned of queries is what they add. Only so can an item that is shown after many
    queries because it is liked be told from one that answers them.

    Args:
        items: The items table of a log, in the catalog's order.
        shown: What was shown.
        encoder: Encodes queries and items.

    Returns:
        The search; None where no query says anything, or none or all of the impressions after queries were clicked.
    """
    code, queries = pd.factorize(shown.query)
    texts = [text for text in queries if isinstance(text, str)]
    often: dict[str, int] = {}
    seen = np.bincount(code[code >= 0], minlength=len(queries))
    for text, times in zip(queries, seen, strict=True):
        for word in set(terms(text)):
            often[word] = often.get(word, 0) + int(times)
    search = Search.of_items(items, encoder, [word for word, times in often.items() if times >= LEAST])
    asked = {text: search.asked(text) for text in texts}
    number = {words: i for i, words in enumerate(dict.fromkeys(words for words in asked.values() if words))}
    of_text = np.array([number.get(asked.get(text, ()), -1) for text in queries] + [-1], np.int64)
    query = of_text[code]
    clicks = shown.clicked[query >= 0]
    if not len(number) or not clicks.any() or clicks.all():
        return None
    design, width = _design(search, list(number), query, shown)
    fold = np.random.default_rng(0).integers(FOLDS, size=len(query))
    held = (fold == 0) & (query >= 0)
    losses = []
    for variance in VARIANCES:
        weights = _fitted(design[fold > 0], shown.clicked[fold > 0], width, variance)
        odds = design[held] @ weights
        losses.append(np.logaddexp(0.0, np.where(shown.clicked[held], -odds, odds)).mean())
    weights = _fitted(design, shown.clicked, width, VARIANCES[int(np.argmin(losses))])
    words = len(search.words)
    pairs = csr_array(weights[-words * words :].reshape(words, words).astype(np.float32))
    return search.learned(weights[-words * words - 4 : -words * words].astype(np.float32), pairs)


def _design(search: Search, queries: list[tuple[str, ...]], query: Ints, shown: Shown) -> tuple[csr_array, int]:
    """Return rows of items, positions, dense features and pairs of words, and how many columns the pairs have.

    Args:
        search: Knows the words.
        queries: The distinct ones.
        query: Of each impression, -1 for none, shape (n,).
        shown: The impressions.
    """
    n, n_items, words = len(query), search.bm25.shape[0], len(search.words)
    every = np.arange(n)
    ones = np.ones(n, np.float32)
    item = csr_array((ones, (every, shown.item)), shape=(n, n_items))
    position = csr_array((ones, (every, shown.position)), shape=(n, int(shown.position.max(initial=0)) + 1))
    rows = np.flatnonzero(query >= 0)
    pair, of_row = np.unique(query[rows] * n_items + shown.item[rows], return_inverse=True)
    of_query, of_item = np.divmod(pair, n_items)
    dense = np.zeros((n, 4), np.float32)
    for start in range(0, len(queries), 256):  # (256, I, 4) at a time
        some = (of_query >= start) & (of_query < start + 256)
        if some.any():
            features = search.features(queries[start : start + 256])
            here = some[of_row]
            dense[rows[here]] = features[of_query[of_row[here]] - start, of_item[of_row[here]]]
    bag = search.bag(queries)
    left, right = bag[of_query], search.titles[of_item]
    products = _rowwise(left, right, words)
    crossed = csr_array((products.data, products.indices, products.indptr), shape=products.shape)[of_row]
    place = csr_array((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape=(n, len(rows)))
    return hstack([item, position, csr_array(dense), place @ crossed], format="csr"), words * words


def _rowwise(left: csr_array, right: csr_array, words: int) -> csr_array:
    """Return the products of words of two texts, row by row, over the words of the left one, shape (n, words^2)."""
    sizes, others = np.diff(left.indptr), np.diff(right.indptr)
    counts = sizes * others
    row = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(int(counts.sum())) - np.repeat(counts.cumsum() - counts, counts)
    one, two = np.divmod(offset, np.maximum(others[row], 1))
    column = left.indices[left.indptr[row] + one].astype(np.int64) * words + right.indices[right.indptr[row] + two]
    data = (1.0 / np.maximum(sizes[row], 1)).astype(np.float32)
    return csr_array((data, (row, column)), shape=(len(counts), words * words))


def _fitted(design: csr_array, clicked: npt.NDArray[np.bool_], width: int, variance: float) -> npt.NDArray[np.float64]:
    """Return weights of all columns; the last ``width`` have the variance, all others have 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    used = np.flatnonzero(np.bincount(design.indices, minlength=design.shape[1]))
    scale = np.where(used >= design.shape[1] - width, variance**0.5, 1.0).astype(np.float32)
    small = design[:, used]
    small.data *= scale[small.indices]
    model = LogisticRegression(C=1.0, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough
        model.fit(small, clicked)
    weights = np.zeros(design.shape[1])
    weights[used] = model.coef_[0] * scale
    # The constant of all impressions is no doing of queries, which have a column of their own.
    return weights
