"""The bazaar with a search box: some visits begin with a query, and what is wanted then counts beside taste.

What each item is to a query is truth that the world knows (`hawker.simulators.bazaar_queries`). Strategies are told
what is typed, in the state as ``query``, the number of a text; who reads it is `hawker.simulators.query_world`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.language import Encoder, HashedEncoder
from hawker.shop.search import Search
from hawker.simulators.bazaar import BazaarWorld, State, _draw
from hawker.simulators.bazaar_parameters import BazaarParameters, load_bazaar
from hawker.simulators.bazaar_queries import make_queries
from hawker.simulators.query_world import brought
from hawker.simulators.world import Shoppers


class SearchBazaar(BazaarWorld):
    """A shop with a search box; see `hawker.simulators.world.World`.

    In visits that began with a query, the shop's own search, BM25 over titles, categories and descriptions, brings
    candidates, and the rest are drawn as ever. ``context.affinity`` is the BM25 score of each candidate, 0 without a
    query: what the shop's own strategy ranks by.

    Attributes:
        queries: The texts that are ever typed, Q of them.
        relevance: Grade of each item for each query, 0 to 3, shape (Q, I).
        lexical: BM25 score of each item for each query, shape (Q, I).
    """

    _has_search_box = True

    def __init__(self, parameters: BazaarParameters, device: torch.device, encoder: Encoder | None = None) -> None:
        """Open the shop; see ``BazaarWorld``.

        Raises:
            InputError: The parameters know no search box, or no item is launched and in stock.
        """
        super().__init__(parameters, device, encoder)
        box = parameters.search
        if box is None:
            raise InputError("a shop without a search box", where=parameters.name, expected="parameters with `search`")
        made = make_queries(parameters, box, self.items)
        self.queries, self._share = made.texts, box.share
        self.relevance = torch.from_numpy(made.relevance).to(device)
        self._query_chance = self._tensor(made.chance)
        self.lexical = self._tensor(Search.of_items(self.items.table, HashedEncoder(1)).lexical(self.queries))
        # The last row, -1, is that of no query.
        self._more_clicks, self._more_purchases, self._scores = (
            nn.functional.pad(table, (0, 0, 0, 1))
            for table in (
                self._tensor(box.click)[self.relevance],
                self._tensor(box.conversion)[self.relevance],
                self.lexical,
            )
        )
        best = self.lexical[:, self._eligible].topk(min(box.found, self.choices), 1)
        self._found = nn.functional.pad(
            self._eligible[best.indices].masked_fill(best.values <= 0, EMPTY), (0, 0, 0, 1), value=EMPTY
        )

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers, some of whom ask for something."""
        here = super().arrive(n, generator)
        query = self._asked(here.state["segment"], generator)
        return self._served(here, query, torch.ones_like(query, dtype=torch.bool))

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper; who begins a visit may ask for something."""
        after, outcome = super().respond(shoppers, decision, generator)
        assert outcome.leave is not None
        fresh = self._asked(after.state["segment"], generator)
        query = torch.where(outcome.leave, fresh, shoppers.state["query"])
        return self._served(after, query, outcome.leave), outcome

    def _asked(self, segment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what shoppers of these segments type, (n,); ``EMPTY`` where they type nothing."""
        query = _draw(self._query_chance[segment], generator)
        silent = torch.rand(len(segment), generator=generator, device=self.device) >= self._share
        return query.masked_fill(silent, EMPTY)

    def _served(self, here: Shoppers, query: Tensor, begins: Tensor) -> Shoppers:
        """Return shoppers with their queries (N,), and with candidates for those where a visit begins, (N,)."""
        own = here.context.candidates
        found, _ = brought(self._found[query], own, here.context.mask)
        candidates = torch.where(begins[:, None], found, own)
        affinity = self._scores[query].gather(1, candidates)
        return replace(
            here,
            context=replace(here.context, candidates=candidates, affinity=affinity),
            state=here.state | {"query": query},
        )

    def attraction(self, state: State, decision: Decision[Tensor]) -> Tensor:
        """Return P(click | looked at), shape (N, K); 0 in empty slots."""
        return self._moved(super().attraction(state, decision), self._more_clicks, state, decision)

    def conversion_probabilities(self, state: State, decision: Decision[Tensor]) -> Tensor:
        """Return P(purchase | click), shape (N, K)."""
        return self._moved(super().conversion_probabilities(state, decision), self._more_purchases, state, decision)

    def _moved(self, chance: Tensor, table: Tensor, state: State, decision: Decision[Tensor]) -> Tensor:
        """Add to the log-odds of probabilities (N, K) what a table has for each query and item."""
        if "query" not in state:  # whoever asks what pages do by themselves
            return chance
        return (chance.logit() + table[state["query"][:, None], decision.slate.clamp(min=0)]).sigmoid()


def open_bazaar(variant: str | Path | None, device: torch.device) -> BazaarWorld:
    """Return the bazaar or a variant of it, with a search box where the variant has one; see ``load_bazaar``."""
    parameters = load_bazaar(variant)
    return (BazaarWorld if parameters.search is None else SearchBazaar)(parameters, device)
