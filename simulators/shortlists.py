"""The items with the largest inner products with a query, found in a short list instead of the whole catalogue.

Every query searches the list of the kind that it is nearest to: the items that are best for the mean of its kind. It is
the shoppers who are sorted into cells here, not the items as in an inverted file (faiss IVF; Jégou, Douze, Schmid 2011,
doi 10.1109/TPAMI.2010.57). What is best for somebody lies at the rim of the items' cloud, in a certain direction, and
is spread over many of its cells: for learned tastes and 100,000 items 200 products find 98% of the best 40, and some
80% where they are spent on the best cells of items. A search has one fixed shape and consists of few tensor operations,
so that it runs on the world's device within a step and never waits for it. That is why there is no library for
searching here; those at hand take and give arrays of the host, or have threads of their own.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

KINDS = 256
"""Kinds of queries."""

CHUNK = {"cpu": 512}
"""Queries that are answered at a time, so that what is read for them stays in the cache of a CPU."""

LARGEST_CHUNK = 16_384
"""As many on any other device, for the sake of its memory."""


class Shortlists:
    """An index of items for the ``count`` best of them; it returns the exact ones where a list holds all items."""

    def __init__(self, vectors: Tensor, queries: Tensor, count: int, length: int, seed: int) -> None:
        """Build the index.

        Args:
            vectors: One of each item, shape (I, d).
            queries: Some like those that will be asked, shape (n, d).
            count: Items to find, at most I.
            length: Items of a list, at least ``count`` where there are as many.
            seed: Of the search for kinds.
        """
        self.count, length = count, min(length, len(vectors))
        distinct = np.unique(queries.cpu().numpy(), axis=0)
        clusters = KMeans(min(KINDS, len(distinct)), n_init=1, max_iter=20, random_state=seed).fit(distinct)
        kinds = torch.from_numpy(clusters.cluster_centers_).to(vectors)
        best = [(part @ vectors.T).topk(length, 1).indices for part in kinds.split(64)]
        self._items = torch.cat(best).sort(1).values  # (kinds, length)
        self._vectors = vectors[self._items].transpose(1, 2).contiguous()  # (kinds, d, length)
        self._kinds, self._level = kinds.T.contiguous(), -kinds.square().sum(1) / 2

    def search(self, queries: Tensor) -> Tensor:
        """Return the items found for each query, in the order of their numbers, shape (n, count)."""
        parts = queries.split(CHUNK.get(queries.device.type, LARGEST_CHUNK))
        return torch.cat([self._search(part) for part in parts])

    def _search(self, queries: Tensor) -> Tensor:
        kind = torch.addmm(self._level, queries, self._kinds).argmax(1)
        products = torch.bmm(queries[:, None], self._vectors.index_select(0, kind)).squeeze(1)
        place = products.topk(self.count, 1, sorted=False).indices.sort(1).values
        return self._items.index_select(0, kind).gather(1, place)


def evenly(n: int, count: int, total: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` of the numbers below ``total`` n times, none twice and all equally likely, shape (n, count).

    One is drawn in each of as many equal parts of a circle that begins anywhere.
    """
    device = generator.device
    edges = torch.arange(count + 1, device=device) * total // max(count, 1)
    spans = torch.nn.functional.pad(edges.diff(), (0, 1), value=max(total, 1))
    draws = torch.randint(1 << 62, (n, count + 1), generator=generator, device=device) % spans
    return (edges[:-1] + draws[:, :-1] + draws[:, -1:]) % max(total, 1)


def others(taken: Tensor, rank: Tensor) -> Tensor:
    """Return which numbers from 0 have those ranks (n, E) among the ones not taken; ``taken`` (n, R) ascends."""
    before = taken - torch.arange(taken.shape[1], device=taken.device)  # numbers not taken below each
    return rank + torch.searchsorted(before, rank, right=True)
