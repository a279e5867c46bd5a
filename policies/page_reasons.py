"""Why a page is what it is: what each group of things that are known moves the scores of what was chosen.

A score is what the strategy's own logit of the chosen value is above the mean logit of the other values that it could
have chosen: the log-odds of the choice against each of them, on average. Of an item the others are the page's other
candidates, of an ad the other bidders and none, of a line the other lines. Logits are computed from what was read of
the shopper and from the item, through what the reader expects items, offers and lines to be worth, which is computed
anew, to the actor's logit: they are those of the bundle's graphs.

A group's share is its Shapley value, over all coalitions of groups. What is outside of a coalition is usual: columns
that tell of the shopper are as on a few pages that the strategy has met, on each in turn, and scores are averaged;
features of an item have their mean over the other candidates. So shares of one score sum to what it is above the score
of a usual item for usual shoppers; of ads' slots, offers and lines, above that for usual shoppers. (With the mean of
all pages met in place of a few of them, a shopper like nobody, the first reason was the wrong one twice as often.)

References:
    Strumbelj and Kononenko (2014), Explaining Prediction Models and Individual Predictions with Feature Contributions,
    Knowledge and Information Systems 41 (3); Sundararajan and Najmi (2020), The Many Shapley Values for Model
    Explanation, arXiv 1908.08474; Jullum, Redelmeier and Aas (2021), groupShapley, arXiv 2106.12228.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hawker.policies.page_draw import LineTable, Picks
from hawker.policies.shapley import coalitions, shapley_values
from hawker.shop.catalog import Catalog
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision

SHOPPER = ("history", "seen", "visits", "shopper", "effects")
"""Groups of what is known of a shopper: clicks and purchases, what was shown, when they come, their features; what
offers and lines are expected to do, where that comes from elsewhere."""

ITEM = ("category", "price", "text", "picture", "features", "item", "affinity")
"""Groups of what is known of an item; "features" are the other ones, "item" is what was learned of it alone,
"affinity" what it is expected to be worth where that comes from elsewhere, or what it is to a query."""

OFFER = "offer"
"""The page's offer, as a reason for a line."""

PARTS = ("slate", "ad", "slot", "offer", "copy")
"""What is explained of a page: the item of each slot, the ad or that there is none, its slot, the offer, each line."""

LOGIT_BOUND = 20.0
"""As `hawker.policies.slate.LOGIT_BOUND`, which needs torch; a test compares them."""

LEAST = 1e-6
"""The least that anything is worth."""

ENTRIES = 2**19
"""About how many numbers are computed with at once."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Pages(NamedTuple):
    """B pages that were decided.

    Attributes:
        context: What the strategy was told of them; in a shop with a search box, affinity is the query's match alone.
        picks: What it chose.
        may: Candidates that could have been the ad as far as the page's rules go, shape (B, C).
    """

    context: Context[Array]
    picks: Picks
    may: Array

    def made(self, part: str) -> bool:
        """Say whether one of ``PARTS`` is chosen."""
        return getattr(self.picks, "lines" if part == "copy" else part) is not None

    def rows(self, rows: slice | Array) -> Pages:
        """Return some of the pages."""
        picks = Picks._make(None if part is None else part[rows] for part in self.picks)
        return Pages(self.context.map(itemgetter(rows)), picks, self.may[rows])


class Reasons(NamedTuple):
    """Reasons for n choices of one part of B pages: one a slot for items and lines, else one.

    Attributes:
        groups: What reasons may be, G of them.
        score: What the chosen value's logit is above the mean of the others, shape (B, n).
        usual: The score where all groups are usual, shape (B, n).
        size: What each group adds, shape (B, n, G); their sum is ``score - usual``.
        there: Where something was chosen that could have been otherwise, shape (B, n); the rest is 0 elsewhere.
    """

    groups: tuple[str, ...]
    score: Floats
    usual: Floats
    size: Floats
    there: npt.NDArray[np.bool_]


class Ways(NamedTuple):
    """Ways to have pages otherwise, each group of an item by itself: S ways of shoppers times V ways of items.

    Attributes:
        shopper: What is told of shoppers, shape (B, S, D).
        sources: What an item's features may be taken from: shares of the candidates, shape (B, n, Q, C); the first one
            is the item itself.
        source: Which of them each group of an item is taken from, shape (V, groups).
        tiers: Shares of the tiers that stand in for the page's in the lines' logits, shape (B, W, T); for lines W is
            what V is for items.
    """

    shopper: Array
    sources: Array
    source: Array
    tiers: Array


class _Look(NamedTuple):
    """What is made of shoppers in S ways: outputs of the actor's heads and what is believed of them."""

    heads: dict[str, Floats]
    query: Floats
    belief: Floats
    seen: list[Floats]
    level: Floats


class PageReasons:
    """Scores of a page actor and the reasons for them, in NumPy and double precision.

    Attributes:
        usual: What was told of shoppers on usual pages, shape (M, D).
        groups: What reasons for a part may be.
    """

    def __init__(self, arrays: Mapping[str, Array], catalog: Catalog, table: LineTable | None) -> None:
        """Args: what `hawker.agents.page_reasons.reason_arrays` made, the items, what lines need beside it."""
        self._a, self._table = arrays, table
        self.usual = arrays["usual"]
        vectors = (catalog.vectors.astype(np.float64) - catalog.centre) / catalog.spread
        self._vectors, self._own = vectors, arrays["item.own"]
        self._rows = vectors @ arrays["item.weight"].T + self._own
        self._hidden = arrays["query.1.bias"].shape[0]
        self._knows_worth = "reward" in arrays
        self._columns = {
            name: np.flatnonzero(arrays["column_group"] == i)
            for i, name in enumerate(SHOPPER)
            if (arrays["column_group"] == i).any()
        }
        entries = {name: np.flatnonzero(arrays["item_group"] == i) for i, name in enumerate(ITEM)}
        self._told = not self._knows_worth or "searches" in arrays  # contexts say more than what is worked out here
        always = {"item"} | ({"affinity"} if self._told else set())
        self._entries = {name: found for name, found in entries.items() if len(found) or name in always}
        shopper, item = tuple(self._columns), tuple(self._entries)
        lines = (*shopper, OFFER) if table is not None and table.by_tier is not None else shopper
        self.groups = {"slate": shopper + item, "ad": shopper + item, "slot": shopper, "offer": shopper, "copy": lines}

    def explain(self, pages: Pages) -> dict[str, Reasons]:
        """Return the reasons for every part of pages that is chosen, by the names of ``PARTS``."""
        return {part: self.explain_part(pages, part) for part in self.there(pages)}

    def there(self, pages: Pages) -> dict[str, npt.NDArray[np.bool_]]:
        """Return where there is something to explain, (B, n) by part, as ``Reasons`` has it."""
        return {part: self._chosen(pages, part)[1] for part in PARTS if pages.made(part)}

    def explain_part(self, pages: Pages, part: str, slot: Array | None = None) -> Reasons:
        """Return the reasons for one part of pages.

        Args:
            pages: B of them.
            part: One of ``PARTS`` that they have.
            slot: Explain the item or the line of one slot of each page alone, shape (B,).
        """
        place, there = self._chosen(pages, part)
        if slot is not None:
            place, there = (np.take_along_axis(array, slot[:, None], 1) for array in (place, there))
        groups, items = self.groups[part], len(self._entries)
        ways = 2 ** len(self._columns) * len(self.usual)
        worth = 2 ** len(groups) // 2 ** len(self._columns) * place.shape[1] + pages.context.mask.shape[1]
        step = max(1, ENTRIES // (ways * max(worth * 4, self.usual.shape[1])))
        score, usual, size = np.zeros(place.shape), np.zeros(place.shape), np.zeros((*place.shape, len(groups)))
        rows = np.flatnonzero(there.any(1))
        alike = np.zeros(len(rows), bool)
        if part == "ad":
            alike = (place == EMPTY)[rows, 0]  # no item, no item's reasons
        for some, varied in ((rows[~alike], items if part in ("slate", "ad") else 0), (rows[alike], 0)):
            for start in range(0, len(some), step):
                part_of = some[start : start + step]
                found = self._coalitions(pages.rows(part_of), part, place[part_of], varied)
                score[part_of], usual[part_of] = found[..., -1], found[..., 0]
                shares = shapley_values(found)
                size[part_of, :, : shares.shape[2]] = shares
        told: Floats = np.where(there[..., None], size, 0.0)
        return Reasons(groups, np.where(there, score, 0.0), np.where(there, usual, 0.0), told, there)

    def _coalitions(self, pages: Pages, part: str, place: Array, items: int) -> Floats:
        """Return the scores of every coalition of shoppers' groups, ``items`` groups of items, and the offer."""
        known = coalitions(len(self._columns))  # (S, groups)
        m, own = len(self.usual), pages.context.shopper.astype(np.float64)
        shopper = np.repeat(np.repeat(own[:, None], m, 1)[:, None], len(known), 1)  # (B, S, M, D)
        for inside, columns in zip(known.T, self._columns.values(), strict=True):
            shopper[:, np.ix_(~inside, columns)[0], :, columns] = self.usual[:, columns].T[None, :, None]
        others = self._others(pages, part, place)
        mean = others / np.maximum(others.sum(2, keepdims=True), 1)
        sources = np.stack([_one_hot(place, pages.context.mask.shape[1]), mean], 2)
        source = np.zeros((2**items, len(self._entries)), np.int64)
        source[:, :items] = ~coalitions(items)
        tier = self._tier(pages)
        tiers = np.stack([np.full_like(tier, 1.0 / max(tier.shape[1], 1)), tier], 1)
        ways = Ways(shopper.reshape(len(own), -1, own.shape[1]), sources, source, tiers)
        worth = self.scores(pages, part, place, ways)  # (B, n, S * M, V)
        worth = worth.reshape(*worth.shape[:2], len(known), m, worth.shape[3]).mean(3)
        found: Floats = np.swapaxes(worth, 2, 3).reshape(*worth.shape[:2], -1)  # shoppers' groups are the lower bits
        return found

    def score(self, pages: Pages, part: str) -> Floats:
        """Return the scores of one part of pages as they are, (B, n), as ``Reasons`` has them."""
        place, there = self._chosen(pages, part)
        sources = _one_hot(place, pages.context.mask.shape[1])[:, :, None]
        own = (sources, np.zeros((1, len(self._entries)), np.int64), self._tier(pages)[:, None])
        shopper = np.array(pages.context.shopper[:, None], np.float64)
        found: Floats = there * self.scores(pages, part, place, Ways(shopper, *own))[..., 0, 0]
        return found

    def replaced(
        self, pages: Pages, part: str, slot: Array, group: str, shopper: Array, place: Array, tier: Array
    ) -> Floats:
        """Return the scores of one choice of each page with a group as it is elsewhere, in R ways, shape (B, R).

        Args:
            pages: The pages.
            part: One of ``PARTS``.
            slot: Which item or line, shape (B,); 0 of the other parts.
            group: One of its groups.
            shopper: Where a shopper's group is taken from, shape (B, R, D).
            place: Candidates that an item's group is taken from, shape (B, R).
            tier: Tiers that stand in for the page's, shape (B, R).
        """
        own, places = self._chosen(pages, part)[0][np.arange(len(slot)), slot][:, None], pages.context.mask.shape[1]
        here = np.array(pages.context.shopper[:, None], np.float64)
        sources, source = _one_hot(own, places)[:, :, None], np.zeros((1, len(self._entries)), np.int64)
        tiers = self._tier(pages)[:, None]
        if group in self._columns:
            here, columns = np.repeat(here, shopper.shape[1], 1), self._columns[group]
            here[..., columns] = shopper[..., columns]
        elif group == OFFER:
            tiers = _one_hot(tier, tiers.shape[2])
        else:
            sources = np.concatenate([sources, _one_hot(place, places)[:, None]], 2)
            source = np.zeros((place.shape[1], len(self._entries)), np.int64)
            source[:, list(self._entries).index(group)] = 1 + np.arange(place.shape[1])
        return self.scores(pages, part, own, Ways(here, sources, source, tiers)).reshape(len(own), -1)

    def others(self, pages: Pages, part: str, slot: Array) -> npt.NDArray[np.bool_]:
        """Return the other candidates that could stand in one place of each page, (B, C); none but for items."""
        return self._others(pages, part, self._chosen(pages, part)[0])[np.arange(len(slot)), slot]

    def scores(self, pages: Pages, part: str, place: Array, ways: Ways) -> Floats:
        """Return the scores of values of one part, (B, n), in many ways, shape (B, n, S, V); of lines (B, n, S, W).

        Only items have ways of their own: V is 1 of slots and offers. That there is no ad is the same in all of them.
        """
        context = pages.context
        look, rows = self._look(ways.shopper), self._rows[context.candidates]
        by_kind = self._seen(look, context.candidates)  # (B, S, C, blocks)
        if part in ("slate", "ad"):
            affinity = context.affinity.astype(np.float64)
            logits = self._items(look, rows, by_kind.sum(3), affinity, part)
            varied = self._varied(look, context, by_kind, ways, part)
            mean = _mean(logits, self._others(pages, part, place))
            if part == "slate":
                return varied - mean[..., None]
            return self._ads(look, pages, logits, varied, mean, place)
        if part == "slot":
            return _margin(_bound(look.heads["slot"])[:, :, None], place)
        effects = self._effects(look, context, rows, by_kind.sum(3), part, ways.shopper)
        if part == "offer":
            return _margin(_bound(look.heads["offer"] + effects)[:, :, None], place)
        assert self._table is not None
        query = look.heads["line_query"][:, :, None]
        if self._table.by_tier is not None:
            query = query + (ways.tiers @ self._table.by_tier)[:, None]
        logits = query @ self._table.keys.T + self._table.bias
        if isinstance(effects, np.ndarray):
            logits[..., :-1] += effects[:, :, None]
        return _margin(logits, place)

    def _ads(self, look: _Look, pages: Pages, logits: Floats, varied: Floats, others: Floats, place: Array) -> Floats:
        """Return the scores of ads (B, 1, S, V) among bidders and none, from what ``scores`` has made of items."""
        may = self._bidders(pages)
        count = may.sum(1)[:, None, None]
        none = _bound(look.heads["no_ad"][..., 0]) + np.log(np.maximum(count[..., 0], 1))  # (B, S)
        is_none = (place == EMPTY)[:, :, None]
        mean = ((others * (count - 1)) + none[:, None]) / np.maximum(count, 1)
        without = none[:, None] - _mean(logits, may[:, None])
        found: Floats = np.where(is_none[..., None], without[..., None], varied - mean[..., None])
        return found

    def _chosen(self, pages: Pages, part: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return which value was chosen, (B, n), and where one was chosen that could have been otherwise."""
        picks = pages.picks
        if part == "slate":
            place, organic = picks.slate, np.ones_like(picks.slate, bool)
            if picks.slot is not None:
                organic = np.arange(place.shape[1]) != picks.slot[:, None]
            more = self._others(pages, part, place).any(2)
            return place, (place != EMPTY) & organic & more
        if part == "ad":
            assert picks.ad is not None
            found: npt.NDArray[np.bool_] = np.asarray(self._bidders(pages).any(1)).reshape(-1, 1)
            return picks.ad[:, None], found
        if part == "slot":
            assert picks.slot is not None
            slot, slots = picks.slot[:, None], picks.slate.shape[1]
            return slot, (slot != EMPTY) & np.full_like(slot, slots > 1, bool)
        if part == "offer":
            assert picks.offer is not None
            return picks.offer[:, None], np.full((len(picks.offer), 1), len(self._a["head.offer.bias"]) > 1)
        assert picks.lines is not None
        assert self._table is not None
        none = len(self._table.bias) - 1
        return np.where(picks.lines == EMPTY, none, picks.lines), (picks.slate != EMPTY) & (none > 0)

    def _others(self, pages: Pages, part: str, place: Array) -> npt.NDArray[np.bool_]:
        """Return the other candidates that could stand in each place, shape (B, n, C)."""
        if part not in ("slate", "ad"):
            return np.zeros((*place.shape, pages.context.mask.shape[1]), bool)
        here = np.arange(pages.context.mask.shape[1])
        could = self._bidders(pages) if part == "ad" else pages.context.mask
        if part == "slate" and pages.picks.ad is not None:
            could = could & (here != pages.picks.ad[:, None])
        found: npt.NDArray[np.bool_] = could[:, None] & (here != place[..., None])
        return found

    def _bidders(self, pages: Pages) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = pages.context.mask & pages.may & self._a["bidder"][pages.context.candidates]
        return found

    def _tier(self, pages: Pages) -> Floats:
        """Return the pages' offers as shares of the tiers, (B, T); T is 0 where none are chosen."""
        if pages.picks.offer is None:
            return np.zeros((len(pages.may), 0))
        return _one_hot(pages.picks.offer, len(self._a["head.offer.bias"]))

    def _look(self, shopper: Array) -> _Look:
        a = self._a
        hidden = (shopper - a["centre"]) / a["spread"]
        for layer in ("query.0", "query.1"):
            hidden = np.tanh(hidden @ a[f"{layer}.weight"].T + a[f"{layer}.bias"])
        names = [name.split(".")[1] for name in a if name.startswith("head.") and name.endswith(".bias")]
        heads = {name: hidden @ a[f"head.{name}.weight"].T + a[f"head.{name}.bias"] for name in names}
        if not self._knows_worth:
            nothing = np.zeros((*shopper.shape[:2], 0))
            return _Look(heads, hidden, nothing, [], nothing)
        start, classes, values = a["believed"]
        belief, state = shopper[..., start : start + classes], shopper[..., start + classes :]
        speeds = len(a["kinds_seen"])
        state = state[..., : speeds * values].reshape(*shopper.shape[:2], speeds, values)
        seen = [np.einsum("bsfv,f->bsv", state, weights) for weights in a["kinds_seen"].T]
        return _Look(heads, hidden, belief, seen, shopper @ a["level.weight"].T + a["level.bias"])

    def _seen(self, look: _Look, items: Array) -> Floats:
        """Return what was shown before adds to the log-odds of items (B, M), by kind, shape (B, S, M, blocks)."""
        b, s = look.query.shape[:2]
        parts = []
        for block, seen in enumerate(look.seen):
            kinds = self._a["kinds"][items, block][:, None]
            parts.append(np.take_along_axis(seen, np.broadcast_to(kinds, (b, s, items.shape[1])), 2))
        return np.stack(parts, 3) if parts else np.zeros((b, s, items.shape[1], 0))

    def _odds(self, look: _Look, rows: Floats, seen: Floats) -> list[Floats]:
        """Return the log-odds of clicks, and of purchases where known, in each class: (B, S, M, classes) each."""
        classes = look.belief.shape[2]
        click, purchase = rows[..., self._hidden + 2 :][..., :classes], rows[..., self._hidden + 2 + classes :]
        alike = look.level[..., :1] + seen
        odds = [click[:, None] + alike[..., None]]
        if purchase.shape[-1]:
            alike = look.level[..., 1:] + self._a["match"][0] * alike
            odds.append(purchase[:, None] + alike[..., None])
        return odds

    def _worth(self, look: _Look, odds: list[Floats]) -> Floats:
        """Return what answers with these log-odds (B, S, M, classes) are worth at once, shape (B, S, M)."""
        value = self._a["reward"][0]
        if len(odds) > 1:
            value = value + self._a["reward"][1] * _sigmoid(odds[1])
        found: Floats = ((_sigmoid(odds[0]) * value) @ look.belief[..., None])[..., 0]
        return found

    def _items(self, look: _Look, rows: Floats, seen: Floats, affinity: Floats, part: str) -> Floats:
        """Return the logits of items with these rows (B, M, R) in the slate or as ads, shape (B, S, M)."""
        keys, h = np.swapaxes(rows[..., : self._hidden], 1, 2), self._hidden
        if part == "ad":
            return _bound(look.heads["ad_query"] @ keys + rows[:, None, :, h + 1])
        worth = affinity[:, None]
        if self._knows_worth:
            found = np.log(np.maximum(self._worth(look, self._odds(look, rows, seen)), LEAST))
            worth = found + worth if self._told else found
        return _bound(look.query @ keys + rows[:, None, :, h] + worth * look.heads["affinity_weight"])

    def _varied(self, look: _Look, context: Context[Array], by_kind: Floats, ways: Ways, part: str) -> Floats:
        """Return the logits of chosen items in V ways, shape (B, n, S, V)."""
        a, sources, source = self._a, ways.sources, ways.source
        b, n = sources.shape[:2]
        s, v = look.query.shape[1], len(source)
        vectors = sources @ self._vectors[context.candidates][:, None]  # (B, n, Q, d)
        own = sources @ self._own[context.candidates][:, None]
        rows: Floats = np.zeros((b, n, v, own.shape[3]))
        affinity = np.zeros((b, n, v))
        for group, (name, entries) in zip(source.T, self._entries.items(), strict=True):
            if len(entries):
                rows += (vectors[..., entries] @ a["item.weight"][:, entries].T)[:, :, group]
            if name == "item":
                rows += own[:, :, group]
            if name == "affinity":
                affinity = (sources @ context.affinity[:, None, :, None])[..., 0][:, :, group]
        seen = np.zeros((b, s, n, v))
        for block, kind in enumerate(a["kind_group"] if self._knows_worth else ()):
            group = source[:, list(self._entries).index(ITEM[kind])]
            seen += np.einsum("bnqc,bsc->bsnq", sources, by_kind[..., block])[..., group]
        flat = (rows.reshape(b, n * v, -1), seen.reshape(b, s, n * v), affinity.reshape(b, n * v))
        logits = self._items(look, *flat, part)
        return np.moveaxis(logits.reshape(b, s, n, v), 1, 2)

    def _effects(
        self, look: _Look, context: Context[Array], rows: Floats, seen: Floats, part: str, shopper: Array
    ) -> Floats | float:
        """Return what contexts say of each tier or line times its weight, (B, S, values); 0 where nothing."""
        name = "offer" if part == "offer" else "line"
        if f"head.{name}_weight.bias" not in self._a:
            return 0.0
        weight = look.heads[f"{name}_weight"]
        if not self._knows_worth:
            first, count = self._a[f"effect_{name}"]
            return weight * shopper[..., first : first + count]
        odds = self._odds(look, rows, seen)
        worth = self._worth(look, odds)
        best = np.argsort(-worth, axis=2, kind="stable")[..., : int(self._a["top"][0]), None]
        odds = [np.take_along_axis(values, best, 2).mean(2, keepdims=True) for values in odds]
        plain = np.log(np.maximum(self._worth(look, odds), LEAST))
        moved = [values + table for values, table in zip(odds, self._a[f"effect_{name}"], strict=True)]
        found: Floats = weight * (np.log(np.maximum(self._worth(look, moved), LEAST)) - plain)
        return found


def picks_of(context: Context[Array], decision: Decision[Array]) -> Picks:
    """Return decisions as picks: places in the candidate list in place of catalog indices."""
    same = context.candidates[:, None, :] == decision.slate[:, :, None]
    slate = np.where(decision.slate == EMPTY, EMPTY, same.argmax(2))
    ad = None
    if decision.ad is not None:
        ad = np.take_along_axis(slate, np.maximum(decision.ad, 0)[:, None], 1)[:, 0]
        ad = np.where(decision.ad == EMPTY, EMPTY, ad)
    return Picks(slate, ad, decision.ad, decision.offer, decision.copy)


def _one_hot(place: Array, length: int) -> Floats:
    """Return 1 at each place (...), 0 elsewhere, (..., length); of ``EMPTY`` it is the first place."""
    found: Floats = (np.arange(length) == np.maximum(place, 0)[..., None]).astype(np.float64)
    return found


def _mean(logits: Floats, others: Array) -> Floats:
    """Return the mean of logits (B, S, C) over some of them (B, n, C), shape (B, n, S)."""
    shares = others / np.maximum(others.sum(2, keepdims=True), 1)
    found: Floats = shares @ np.swapaxes(logits, 1, 2)
    return found


def _margin(logits: Floats, place: Array) -> Floats:
    """Return what each chosen logit (B, n) of rows (B, S, W, A) is above the mean of the rest, (B, n, S, W)."""
    length = logits.shape[3]
    chosen = _one_hot(place, length)
    weights = chosen - (1.0 - chosen) / max(length - 1, 1)
    found: Floats = np.einsum("bswa,bna->bnsw", logits, weights, optimize=True)
    return found


def _bound(scores: Floats) -> Floats:
    found: Floats = LOGIT_BOUND * np.tanh(scores / LOGIT_BOUND)
    return found


def _sigmoid(odds: Floats) -> Floats:
    found: Floats = 0.5 * (1.0 + np.tanh(0.5 * odds))
    return found
