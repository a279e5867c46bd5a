"""A world whose visits may begin with a query: what is typed stands in the contexts, and brings candidates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from hawker.shop.catalog import Catalog
from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.language import Encoder, HashedEncoder
from hawker.shop.search import COLUMNS, Search, with_query
from hawker.shop.search_fit import MOST, Shown, fit_search
from hawker.simulators.world import Shoppers, World

FOUND = 0.8
"""Share of a page's candidates that a query brings, at most; the rest are as without one."""

COMMON = 100_000
"""Queries of a log, the commonest, that may be asked in worlds."""

CELLS = 16_000_000
"""Queries times items whose matches are held; of more queries than that only the commonest are asked."""


@dataclass(frozen=True)
class Asked:
    """What shoppers of a log asked for.

    Attributes:
        texts: The queries that say something, commonest first.
        visits: Visits that began with each.
        silent: Visits without one.
    """

    texts: tuple[str, ...]
    visits: tuple[int, ...]
    silent: int

    @classmethod
    def from_dict(cls, values: Any, where: object) -> Asked:
        """Build it from its fields as JSON values.

        Raises:
            InputError: ``values`` has another form.
        """
        try:
            asked = cls(tuple(map(str, values["texts"])), tuple(map(int, values["visits"])), int(values["silent"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("not queries of a log", where=where, got=repr(error)) from None
        if len(asked.texts) != len(asked.visits) or min((*asked.visits, asked.silent), default=0) < 0:
            raise InputError("not queries of a log", where=where, expected="as many counts as texts, none below 0")
        return asked


@dataclass
class QueryTally:
    """What a search is learned from, gathered from pieces of a log; no more than ``MOST`` impressions are kept."""

    _pieces: list[pd.DataFrame] = field(default_factory=list)
    _kept: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    _visits: Counter[str] = field(default_factory=Counter)
    _all: int = 0

    def add(self, rows: pd.DataFrame) -> None:
        """Take in impressions; where they have no queries there is nothing to learn from."""
        if "query" not in rows or not len(rows):
            return
        first = rows[["visit_id", "query"]].drop_duplicates("visit_id")["query"]
        self._all += len(first)
        self._visits.update(map(str, first.dropna()))
        asks = rows["query"].notna()
        for asked in (True, False):
            some = rows.loc[asks == asked, ["query", "item_id", "position", "clicked"]]
            some = some.iloc[: max(MOST // 2 - self._kept[asked], 0)]
            self._kept[asked] += len(some)
            self._pieces.append(some.astype({"query": "object", "item_id": "str"}))

    def learned(self, items: pd.DataFrame, catalog: Catalog, encoder: Encoder | None) -> tuple[Search, Asked] | None:
        """Return what was learned, and what is asked; None where no query says anything.

        Args:
            items: The items table of the log.
            catalog: Its catalog.
            encoder: Encodes items; without one queries are hashed.
        """
        if not self._visits:
            return None
        rows = pd.concat(self._pieces, ignore_index=True)
        query = rows["query"].where(rows["query"].notna(), None).to_numpy(object)
        item, position = catalog.index(rows["item_id"], "impressions"), rows["position"].to_numpy(np.int64)
        shown = Shown(query, item, position, rows["clicked"].to_numpy().astype(bool))
        search = fit_search(items, shown, HashedEncoder() if encoder is None else encoder)
        if search is None:
            return None
        said = [(text, n) for text, n in self._visits.most_common(COMMON) if search.asked(text)]
        said = said[: max(CELLS // max(len(catalog), 1), 1)]
        texts, visits = zip(*said, strict=True)
        return search, Asked(texts, visits, self._all - sum(visits))


class QueryWorld:
    """A world with a search box; see `hawker.simulators.world.World`.

    At the first page of every visit its query, if there is one, brings candidates: the best by what a search has
    learned, and by BM25. The rest are the world's own. ``context.affinity`` is the query's match with each candidate,
    in log-odds of a click, and the columns of ``context.shopper`` that belong to the query are filled. A visit without
    a query has the candidates of the world inside, affinities of 0, and zeros in these columns.

    Attributes:
        world: What answers.
        queries: The texts that may be typed, Q of them; in the state, ``query`` is the number of one, -1 for none.
    """

    def __init__(
        self,
        world: World,
        search: Search,
        queries: tuple[str, ...],
        eligible: npt.NDArray[np.bool_],
        visits: tuple[int, ...] = (),
        silent: int = 0,
    ) -> None:
        """Put a search box in front of a world.

        Args:
            world: What answers.
            search: Reads queries.
            queries: The texts.
            eligible: True for items that a query may bring, shape (I,).
            visits: How often each is typed; () where the state of the world inside says which one is.
            silent: How often none is.
        """
        self.world, self.queries, self.size, self.device = world, queries, world.size, world.device
        self.choices, self.offers, self.lines, self.bids = world.choices, world.offers, world.lines, world.bids
        schema = world.builder.shopper
        self._adds = COLUMNS[0] not in schema.numeric
        schema = with_query(schema) if self._adds else schema
        self._start = schema.numeric.index(COLUMNS[0])
        self.builder = ContextBuilder(schema, world.builder.catalog, search)
        whole = self.choices >= len(self.builder.catalog)  # whatever is searched for is there
        found = search.found(queries, 0 if whole else int(FOUND * self.choices), eligible)
        # The last row, that of -1, is of no query.
        self._columns, self._match = (
            nn.functional.pad(torch.from_numpy(table), (0, 0, 0, 1)).to(self.device)
            for table in (search.columns(queries), search.match(queries))
        )
        self._found = nn.functional.pad(torch.from_numpy(found), (0, 0, 0, 1), value=EMPTY).to(self.device)
        shares = np.cumsum([*visits, silent], dtype=np.float64)
        self._reached = torch.from_numpy(shares / max(shares[-1], 1.0)).to(self.device) if visits else None

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers, some of whom ask for something."""
        here = self.world.arrive(n, generator)
        query = here.state["query"] if self._reached is None else self._drawn(n, generator)
        return self._served(here, query, torch.ones_like(query, dtype=torch.bool))

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper; who begins a visit may ask for something."""
        inner = shoppers
        if self._adds:
            kept = shoppers.context.shopper
            rest = torch.cat([kept[:, : self._start], kept[:, self._start + len(COLUMNS) :]], 1)
            inner = replace(shoppers, context=replace(shoppers.context, shopper=rest))
        after, outcome = self.world.respond(inner, decision, generator)
        begins = torch.ones_like(outcome.gone) if outcome.leave is None else outcome.leave
        if self._reached is None:
            query = after.state["query"]
        else:
            fresh = self._drawn(len(begins), generator)
            query = torch.where(begins, fresh, shoppers.state["query"])
        return self._served(after, query, begins), outcome

    def _drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw queries as often as they are typed, (n,)."""
        assert self._reached is not None
        draws = torch.rand(n, generator=generator, device=self.device, dtype=self._reached.dtype)
        number = torch.searchsorted(self._reached, draws, right=True)
        return number.masked_fill(number >= len(self.queries), EMPTY)

    def _served(self, here: Shoppers, query: Tensor, begins: Tensor) -> Shoppers:
        """Return shoppers who typed something, (N,), with what it brings those whose visit begins, (N,)."""
        context, asks = here.context, (begins & (query != EMPTY))[:, None]
        found, mask = brought(self._found[query], context.candidates, context.mask)
        candidates = torch.where(asks, found.to(context.candidates.dtype), context.candidates)
        mask = torch.where(asks, mask, context.mask)
        affinity = self._match[query].gather(1, candidates.long())
        kept, end = context.shopper, self._start if self._adds else self._start + len(COLUMNS)
        shopper = torch.cat([kept[:, : self._start], self._columns[query], kept[:, end:]], 1)
        state = here.state | {"query": query}
        return replace(here, context=replace(context, shopper=shopper, candidates=candidates, mask=mask,
                                             affinity=affinity), state=state)  # fmt: skip


def brought(found: Tensor, own: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates and their mask, both (n, C): what was found, then as many of one's own as there is room for.

    No item is open twice.

    Args:
        found: Items, ``EMPTY`` for none, shape (n, F); F is at most C.
        own: Items, shape (n, C).
        mask: True where they are eligible, shape (n, C).
    """
    known = (own[:, :, None] == found[:, None, :]).any(2)
    may = torch.cat([found != EMPTY, mask & ~known], 1)
    first = may.logical_not().int().sort(dim=1, stable=True).indices[:, : own.shape[1]]
    return torch.cat([found, own], 1).gather(1, first).clamp(min=0), may.gather(1, first)
