"""A world whose candidates are retrieved for each shopper, so that a catalogue may be large."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.simulators.learned import FEW, LearnedWorld
from hawker.simulators.reader import OWN, ReadWorld
from hawker.simulators.shortlists import Shortlists, evenly, others
from hawker.simulators.world import Shoppers

RANKED = 5
"""Items that are ranked for each one retrieved."""

SAMPLE = 1_024
"""Shoppers to learn from what is going to be searched for."""

PAGES = 12
"""Random pages that each of them is shown for that."""

SPARE = 1.5
"""How many can begin a visit at the same page, of the most who did in the sample."""

MISSED = "retrieval.missed"
"""In the state, True for a shopper whose candidates were not retrieved for their visit."""


class RetrievingWorld:
    """A world with candidates of its own; see `hawker.simulators.world.World`.

    At the first page of every visit candidates are found for its shopper, and kept until the next visit. Most are
    those likeliest to be clicked by this shopper, as the first member of the fitted shoppers adds to the mean of the
    log-odds over classes of taste, by an approximate search whose ``recall`` can be asked for; the last ``exploring``
    ones are drawn evenly from all others. No item is found twice. The world inside keeps all else, and there are as
    many candidates as it has. Where fewer items are eligible, the mask closes what is left.

    Who begins a visit is known to the device alone, and to ask would make the host wait in every step. So there is one
    search for a fixed share of the shoppers at each page, those who begin a visit first. Only if more of them do at the
    same page does somebody, drawn by chance, get what the world inside has for them: candidates of its own or, where it
    has none, those of the visit before. The state ``retrieval.missed``, shape (N,), is True during such a visit.

    Attributes:
        world: What answers.
        exploring: Candidates that are drawn, of each page's.
    """

    def __init__(
        self, world: LearnedWorld | ReadWorld, explore: float = 0.2, eligible: Tensor | None = None, seed: int = 0
    ) -> None:
        """Put retrieval in front of a world.

        Args:
            world: What answers. Behind a reader the history that it reads counts, else the shoppers' features alone.
            explore: Share of the candidates to draw, in [0, 1).
            eligible: True for items that may be candidates, those in stock, shape (I,); None for all of them.
            seed: Of the shoppers that the search is learned from.

        Raises:
            InputError: No item is eligible.
            ValueError: The world's affinities belong to its own candidates.
        """
        self.world, self.builder, self.size, self.device = world, world.builder, world.size, world.device
        self.choices, self.offers, self.lines, self.bids = world.choices, world.offers, world.lines, world.bids
        self.model = world.model if isinstance(world, ReadWorld) else world.ensemble.models[0]
        self.tastes = world.tastes if isinstance(world, ReadWorld) else world.ensemble.tastes
        everything = torch.arange(len(self.builder.catalog), device=self.device)
        self._stock = everything if eligible is None else everything[eligible.to(self.device)]
        if not len(self._stock):
            raise InputError("no item is eligible", where="candidates", expected="at least 1")
        found = min(self.choices, len(self._stock))
        self.exploring = int(explore * found)
        self._mask = (torch.arange(self.choices, device=self.device) < found)[None]
        with torch.no_grad():
            items = self.model.click.items(self.model.item_vectors)
            if self.tastes is not None:
                items = torch.cat([items, self.tastes.utilities()[0].item], 1)
            self._vectors = items[self._stock]
            queries, leaving = self._met(SAMPLE, torch.Generator(self.device).manual_seed(seed))
            count = found - self.exploring
            self._lists = Shortlists(self._vectors, queries, count, RANKED * count, seed)
        self._room = min(SPARE * leaving, 1.0)

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers with candidates of their own."""
        here = self.world.arrive(n, generator)
        context, missed = here.context, torch.zeros(n, dtype=torch.bool, device=self.device)
        candidates, mask, affinity = self._found(context, generator)
        context = replace(context, candidates=candidates, mask=mask, affinity=affinity)
        return replace(here, context=context, state=here.state | {MISSED: missed})

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper; who begins a visit gets new candidates."""
        own = {name: value for name, value in shoppers.state.items() if name != MISSED}
        after, outcome = self.world.respond(replace(shoppers, state=own), decision, generator)
        begins, missed, context = outcome.leave, shoppers.state[MISSED], after.context
        if begins is None:  # every page is a visit, and who is seen again is somebody new
            return replace(after, state=after.state | {MISSED: missed}), outcome
        n = len(begins)
        first = torch.rand(n, generator=generator, device=self.device) + begins
        rows = first.topk(n if n < FEW else math.ceil(self._room * n), sorted=False).indices
        served, some = begins[rows], context.map(lambda array: array[rows])

        def kept(whole: Tensor, old: Tensor, new: Tensor) -> Tensor:
            return whole.index_copy(0, rows, torch.where(served[:, None], new, old))

        candidates, mask, affinity = self._found(some, generator)
        context = replace(
            context,
            candidates=kept(context.candidates, some.candidates, candidates),
            mask=kept(context.mask, some.mask, mask),
            affinity=context.affinity if affinity is some.affinity else kept(context.affinity, some.affinity, affinity),
        )
        missed = (missed | begins).index_copy(0, rows, missed[rows] & ~served)
        return replace(after, context=context, state=after.state | {MISSED: missed}), outcome

    @torch.no_grad()
    def _found(self, context: Context[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidates for shoppers, the exploring ones last, their mask and affinities, all (n, C)."""
        people, left = context.shopper, len(self._stock) - self._lists.count
        best = self._lists.search(self._query(people))
        rest = others(best, evenly(len(people), self.exploring, left, generator))
        found = self._stock[torch.cat([best, rest], 1)]
        found = nn.functional.pad(found, (0, self.choices - found.shape[1]))
        affinity = self.world.affinity(people, found) if isinstance(self.world, ReadWorld) else context.affinity
        return found, self._mask.expand(found.shape), affinity

    def _query(self, people: Tensor) -> Tensor:
        """Return what items' vectors are multiplied by for shoppers (n, D), shape (n, d)."""
        if isinstance(self.world, ReadWorld):
            return torch.cat([self.model.wish(self.world.person(people)), self.world.beliefs(people)], 1)
        wish = self.model.wish(self.model.person(people, None))
        if self.tastes is None:
            return wish
        return torch.cat([wish, self.tastes.beliefs(self.tastes.begin(self.tastes.scaled(people)))], 1)

    def _met(self, n: int, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return the queries of n of the logs' shoppers at their first page and after random ones, (13 n, d).

        And the largest share of them who ended their visit at the same page.
        """
        here = self.world.arrive(n, generator)
        _check_affinity(here.state.get(f"{OWN}affinity", here.context.affinity))
        queries, leaving = [self._query(here.context.shopper)], 0.0
        width = min(self.size, len(self._stock))
        for _ in range(PAGES):
            items = self._stock[evenly(n, width, len(self._stock), generator)]
            slate = nn.functional.pad(items, (0, self.size - width), value=EMPTY)
            page = Decision(slate, torch.zeros(n, device=self.device))
            here, outcome = self.world.respond(here, page, generator)
            if outcome.leave is not None:
                leaving = max(leaving, float(outcome.leave.float().mean()))
            here = here.replaced(outcome.gone, self.world.arrive(n, generator))
            queries.append(self._query(here.context.shopper))
        return torch.cat(queries), leaving

    @torch.no_grad()
    def recall(self, n: int, generator: torch.Generator) -> float:
        """Return the share that searches find of the items that an exact one finds, over some n shoppers of the logs.

        Each is asked about at their first page and after each of 12 random ones.
        """
        queries, shared = self._met(n, generator)[0], 0.0
        for part in queries.split(256):
            exact = (part @ self._vectors.T).topk(self._lists.count, 1).indices
            shared += float((self._lists.search(part)[:, :, None] == exact[:, None]).sum())
        return shared / (len(queries) * self._lists.count)


def unfilled(arrivals: Context[Tensor], choices: int) -> Context[Tensor]:
    """Return arrivals with room for so many candidates, for a world that has none of its own.

    Raises:
        ValueError: There are affinities, which belong to the candidates.
    """
    _check_affinity(arrivals.affinity)
    shape = (len(arrivals.shopper), choices)
    zero = arrivals.shopper.new_zeros(1, 1)
    return replace(
        arrivals, candidates=zero.long().expand(shape), mask=(zero == 0).expand(shape), affinity=zero.expand(shape)
    )


def eligible_items(arrivals: Context[Tensor], n_items: int) -> Tensor:
    """Return True for items that were candidates of some visit of the logs, shape (n_items,)."""
    found = torch.zeros(n_items, dtype=torch.bool, device=arrivals.candidates.device)
    found[arrivals.candidates[arrivals.mask].long()] = True
    return found


def _check_affinity(affinity: Tensor) -> None:
    if bool(affinity.any()):
        raise ValueError("the affinities belong to the world's own candidates")
