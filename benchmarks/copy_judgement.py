"""What a gold world makes of any line of copy: its clicks, its cost in satisfaction, and whole lives with it.

Nothing of this is ever shown to what learns: benchmarks alone judge by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity_cohort import LOGGED, impressions, picked, served
from hawker.policies.shopkeeper import Habits, Shopkeeper
from hawker.shop.audiences import Audiences, History
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError, did_you_mean
from hawker.simulators.bazaar import DAY, BazaarWorld, State

Floats = npt.NDArray[np.float64]

CHUNK = 512
"""Lines judged at once: they bound the memory."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Shoppers of a gold world before pages of theirs, P of them in random order.

    Attributes:
        state: What the world knows of them, (P, ...) each.
        audiences: How a shop tells them apart.
        audience: Number of each one's audience in ``audiences.labels``, shape (P,).
    """

    state: State
    audiences: Audiences
    audience: npt.NDArray[np.int64]


def gold_moments(world: BazaarWorld, audiences: Audiences, shoppers: int, days: int, seed: int) -> Moments:
    """Let new shoppers come as in a log of some days, and keep every page of theirs.

    Args:
        world: The gold world, on the CPU.
        audiences: Of the log that a writer has learned from.
        shoppers: How many.
        days: No visit begins later.
        seed: Decides everything that is drawn.
    """
    cohort = served(world, shoppers, days, seed)
    frame = impressions(world, cohort)
    label = audiences.label(frame, world.items.table).codes[(frame["position"] == 0).to_numpy()]
    order = np.random.default_rng(seed).permutation(len(label))
    return Moments(picked(cohort.before, torch.from_numpy(order)), audiences, label[order].astype(np.int64))


@dataclass(frozen=True, eq=False)
class Effect:
    """What n lines do in truth, each shown by itself at a page's first slot; means over shoppers, each of shape (n,).

    Attributes:
        click: P(click on the item).
        purchase: P(click and purchase).
        satisfaction: Expected change of satisfaction by the page.
        back: P(return within 7 days, if the visit ends with the page).
    """

    click: Floats
    purchase: Floats
    satisfaction: Floats
    back: Floats


@torch.no_grad()
def true_effect(
    world: BazaarWorld,
    texts: Sequence[str],
    item_ids: Sequence[str],
    audiences: Sequence[str],
    moments: Moments,
    *,
    tiers: Sequence[int] | None = None,
    contexts: int = 256,
) -> Effect:
    """Return what lines do in truth; nothing is drawn, and lines for one audience meet the same shoppers.

    Args:
        world: The gold world.
        texts: The lines, n of them; "" is none.
        item_ids: The item of each.
        audiences: For whom each is shown, a label of ``moments.audiences``, or "" for anybody.
        moments: Shoppers to show them to.
        tiers: Number of the discount of each line's page, 0 where not given.
        contexts: Shoppers that a line meets, at most.

    Raises:
        InputError: An unknown item or audience, or one that nobody of the moments belongs to.
    """
    item = torch.from_numpy(world.builder.catalog.index(item_ids, "true effect"))
    tier = torch.zeros(len(texts), dtype=torch.int64) if tiers is None else torch.tensor(list(tiers))
    known = tuple(dict.fromkeys(texts))
    said = world.with_lines(known)
    number = {text: i for i, text in enumerate(known)}
    line = torch.tensor([number[text] for text in texts], dtype=torch.int64)
    pools = {name: torch.from_numpy(_pool(moments, name)[:contexts]) for name in dict.fromkeys(audiences)}
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(texts), CHUNK):
        some = range(start, min(start + CHUNK, len(texts)))
        places = [pools[audiences[i]] for i in some]
        owner = torch.repeat_interleave(torch.tensor([len(place) for place in places]))
        state = picked(moments.state, torch.cat(places))
        own = owner + start
        page = Decision(item[own, None], torch.zeros(len(own)), offer=tier[own], copy=line[own, None])
        values = _expected(said, state, page)
        sizes = torch.bincount(owner, minlength=len(some))
        found.append(tuple(torch.zeros(len(some)).index_add(0, owner, value) / sizes for value in values))
    if not found:
        return Effect(*(np.zeros(0) for _ in range(4)))
    return Effect(*(torch.cat(part).double().numpy() for part in zip(*found, strict=True)))


def _pool(moments: Moments, audience: str) -> npt.NDArray[np.int64]:
    labels = moments.audiences.labels
    if audience and audience not in labels:
        raise InputError("no such audience", where="true effect", got=audience, remedy=did_you_mean(audience, labels))
    own = moments.audience == labels.index(audience) if audience else np.ones(len(moments.audience), bool)
    if not own.any():
        raise InputError("nobody of this audience has come", where="true effect", got=audience, remedy="more shoppers")
    return np.flatnonzero(own)


def _expected(world: BazaarWorld, state: State, page: Decision[Tensor]) -> tuple[Tensor, ...]:
    """Return the four parts of ``Effect`` of pages (N, 1), each of shape (N,), over clicks and purchases to come."""
    click, buys = world.attraction(state, page), world.conversion_probabilities(state, page)
    chances = (1 - click, click * (1 - buys), click * buys)
    satisfaction, back = torch.zeros(len(click)), torch.zeros(len(click))
    for chance, (clicked, bought) in zip(chances, ((0, 0), (1, 0), (1, 1)), strict=True):
        came = torch.full_like(click, clicked), torch.full_like(click, bought)
        satisfaction += chance[:, 0] * world.satisfaction_change(state, page, *came)
        back += chance[:, 0] * world.return_probability(world.after_page(state, page, *came))
    return click[:, 0], (click * buys)[:, 0], satisfaction, back


@dataclass(frozen=True, eq=False)
class Lived:
    """What came of N shoppers who saw a writer's lines everywhere, each of shape (N,).

    Attributes:
        clicks: Expected clicks, given the pages seen.
        impressions: Items shown.
        visits: Visits.
        back: Sum over visits of P(the next visit begins within 7 days).
    """

    clicks: Floats
    impressions: Floats
    visits: Floats
    back: Floats

    @property
    def ctr(self) -> float:
        """Clicks an impression."""
        return float(self.clicks.sum() / self.impressions.sum())

    @property
    def d7(self) -> float:
        """Share of visits followed by another within 7 days."""
        return float(self.back.sum() / self.visits.sum())


@torch.no_grad()
def live_with(
    world: BazaarWorld,
    lines: Mapping[str, Sequence[str]],
    audiences: Audiences,
    shoppers: int,
    days: int,
    seed: int,
) -> Lived:
    """Let new shoppers come and follow each for some days, with a line for their audience at every item.

    Slates are those of the logging strategy; no ads, no offers. Each item's line is drawn from those of the shopper's
    audience, and from those of "" where it has none of its own.

    Args:
        world: The gold world, on the CPU.
        lines: Lines by audience; "" must be there.
        audiences: How the shop tells its shoppers apart.
        shoppers: How many, N.
        days: For how long; no visit begins later.
        seed: Of everything that is drawn; the same for two writers, so that they meet the same shoppers.

    Raises:
        InputError: There are no lines for anybody.
    """
    if not lines.get("", ()):
        raise InputError("no lines for anybody", where="live with", expected='an entry ""')
    pools = [list(lines.get(label) or lines[""]) for label in audiences.labels]
    texts = tuple(dict.fromkeys(text for pool in pools for text in pool))
    number, said = {text: i for i, text in enumerate(texts)}, world.with_lines(texts)
    table = torch.full((len(pools), max(map(len, pools))), EMPTY)
    for row, pool in zip(table, pools, strict=True):
        row[: len(pool)] = torch.tensor([number[text] for text in pool])
    size = torch.tensor([len(pool) for pool in pools])
    popularity = torch.tensor(world.items.table["popularity"].to_numpy(np.float32))
    exploration = logging_strategy(world, LOGGED).habits.exploration
    keeper = Shopkeeper("popularity", world.size, popularity, Habits(exploration), world.bids)
    generator, choice = (torch.Generator().manual_seed(s) for s in (seed, seed + 1))
    liked = torch.full((1 + len(world.parameters.categories),), -1)
    for i, category in enumerate(world.parameters.categories):
        if category.name in audiences.liked:
            liked[i] = audiences.liked.index(category.name)
    here, who = said.arrive(shoppers, generator), torch.arange(shoppers)
    totals = torch.zeros(4, shoppers)
    seen = {name: torch.zeros(shoppers, dtype=torch.int64) for name in ("visits", "purchases")}
    away = torch.zeros(shoppers)
    clicks, latest = (torch.zeros(shoppers, len(audiences.liked), dtype=torch.int64) for _ in range(2))
    step = 0
    while len(who):
        step += 1
        own = (seen["visits"][who], away[who].double(), seen["purchases"][who], clicks[who], latest[who])
        audience = torch.from_numpy(audiences.number(History(*(part.numpy() for part in own))))
        decision = keeper.propose(here.context, generator)
        draw = torch.rand(decision.slate.shape, generator=choice) * size[audience, None]
        copy = table[audience[:, None], draw.long()].masked_fill(decision.slate == EMPTY, EMPTY)
        here, outcome = said.respond(here, replace(decision, copy=copy), generator)
        assert outcome.converted is not None
        assert outcome.leave is not None
        assert outcome.days is not None
        assert outcome.return_probability is not None
        shown = (decision.slate != EMPTY).float()
        ends = outcome.leave.float()
        part = (outcome.click_probability.sum(1), shown.sum(1), ends, ends * outcome.return_probability)
        totals.index_add_(1, who, torch.stack(part))
        seen["purchases"][who] += outcome.converted.sum(1).long()
        seen["visits"][who] += outcome.leave.long()
        away[who] = torch.where(outcome.leave, outcome.days, away[who])
        kind = liked[world.category[decision.slate.clamp(min=0)]]
        hit = (outcome.clicked > 0) & (kind >= 0)
        row, column = who[:, None].expand_as(kind)[hit], kind[hit]
        clicks.index_put_((row, column), torch.ones_like(row), accumulate=True)
        latest[row, column] = step
        stay = ~outcome.gone & (here.state["clock"] < days * DAY)
        here, who = here.take(stay), who[stay]
    return Lived(*totals.double().numpy())
