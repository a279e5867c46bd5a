"""Shopper models that learn no more: what depends on their weights alone is computed once, and the rest in few steps.

The answers are those of `hawker.simulators.shopper` up to rounding. Pages lie as (n, K) here, and an empty slot is a
row of zeros in every table: no step depends on what is in the data, so none waits for the device.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawker.shop.decision import Decision
from hawker.simulators.appeal import Appeal, InView
from hawker.simulators.frozen_memory import Before, FrozenMemory, Read, two_layers
from hawker.simulators.frozen_pages import Carried, Page
from hawker.simulators.layers import apart
from hawker.simulators.memory import TOLD
from hawker.simulators.shopper import ShopperModel

PAIRS = 2_048
"""Items up to which what any two of them do to each other on a page stands in a table."""


@dataclass(frozen=True)
class Liking:
    """What a page means to its shoppers before they answer.

    Attributes:
        click: P(click) before calibration, shape (n, K).
        purchase: Log-odds of a purchase after a click, shape (n, K), or None.
        worth: Expected worth of a purchase, shape (n, K), or None.
        read: What the memory will read, or None.
    """

    click: Tensor
    purchase: Tensor | None
    worth: Tensor | None
    read: Read | None


class FrozenModel:
    """One shopper model; its weights must not change any more.

    An item's row in the table is: taste and effect of purchases, effect and taste of clicks, its entries in the
    memory, worth. A line's row has no worth. Row 0 is of nothing.
    """

    def __init__(self, model: ShopperModel) -> None:
        """Compute the tables of a model, on its device."""
        with torch.no_grad():
            model = copy.deepcopy(model)
            for weights in model.parameters():
                _flush(weights)
            self._prepare(model)
            for table in (self.items, self.lines):
                _flush(table)

    def _prepare(self, model: ShopperModel) -> None:
        self.recorded, self.has_lines = model.recorded, model.line_vectors is not None
        self.centre, self.spread = model.shopper_centre, model.shopper_spread
        self.base = model.click.base.detach()
        self.examined = model.log_examination().exp()
        self.memory = None if model.memory is None else FrozenMemory(model)
        hidden, items = model.click.own_taste.weight.shape[1], len(model.item_vectors)
        self.hidden, self.buys = hidden, hidden + 1 if model.conversion is not None else 0
        self.query = self.buys + 1 + hidden
        self.kept = self.buys + 1  # from here on the memory reads
        heads = [model.click] if model.conversion is None else [model.conversion, model.click]
        tastes = [_item_parts(head, model) for head in heads]
        blocks = [*tastes[0], *tastes[-1][::-1]] if len(heads) > 1 else [*tastes[0][::-1]]
        if model.memory is not None:
            blocks.append(model.memory.item(model.item_vectors) + model.memory.own_item.weight)
        if model.recorded.revenue:
            # The mean of a log-normal worth.
            spread = (2 * model.amount_spread).exp() / 2
            worth = (model.log_price + model.amount_item(model.item_vectors).squeeze(1) + spread).exp()
            blocks.append(worth[:, None])
            self.amount = model.amount.exp()
        self.items = nn.functional.pad(torch.cat(blocks, 1), (0, 0, 1, 0)).contiguous()
        self.lines = self.items.new_zeros(1, 0)
        if model.line_vectors is not None:
            lines = [_line_rows(model, heads, block) for block in apart(model.line_vectors, model.logged_lines)]
            self.lines = nn.functional.pad(torch.cat(lines), (0, 0, 1, 0)).contiguous()
        self.people = _People(model, self.buys, self.query)
        self.in_view = None if model.in_view is None else FrozenView(model.in_view, items, model.size)

    def page(
        self, shopper: Tensor, decision: Decision[Tensor], affinity: Tensor | None, *, around: bool = True
    ) -> Page:
        """Return decided pages in the form that this model and the others of its ensemble read.

        Args:
            shopper: Encoded features, shape (n, D).
            decision: The pages; parts that the model does not know are left out.
            affinity: With the items shown, shape (n, K), or None.
            around: Whether what a page's items do to each other will be asked for.
        """
        slate, tiers = decision.slate, self.recorded.offers
        at, size = slate + 1, slate.shape[1]
        said = offer = tier = ad = None
        if self.has_lines and decision.copy is not None:
            said = decision.copy + 1
        if tiers > 1 and decision.offer is not None:
            offer = decision.offer.clamp(max=tiers - 1)[:, None]
            tier = (offer == torch.arange(tiers, device=at.device)).to(shopper.dtype)
        if self.recorded.ads and decision.ad is not None:
            ad = (decision.ad[:, None] == torch.arange(size, device=at.device)).to(shopper.dtype)
        pair = None if self.in_view is None or not around else self.in_view.pair(at)
        shown = (at > 0).to(shopper.dtype)
        return Page(self.scaled(shopper), at, shown, pair, affinity, said, offer, tier, ad)

    def scaled(self, shopper: Tensor) -> Tensor:
        """Return encoded features (n, D) centred and scaled."""
        return (shopper - self.centre) / self.spread

    def liking(self, page: Page, carried: Carried | None) -> Liking:
        """Return what a page means to its shoppers, who bring what they carry where there is a memory."""
        person, before = page.scaled, None
        if self.memory is not None:
            assert carried is not None
            before = self.memory.before(page.scaled, carried)
            person = torch.cat([page.scaled, before.told], 1)
        odds, items, lines = self._odds(page, person, None if before is None else before.wishes)
        click = odds[:, :, 0]
        purchase = odds[:, :, -1] if self.buys else None
        if self.in_view is not None:
            around = self.in_view(page)
            click = click + around
            if purchase is not None:
                purchase = torch.addcmul(purchase, around, self.people.match[1])
        examined = self.examined[: page.at.shape[1]] * page.shown
        worth = read = None
        if self.recorded.revenue:
            worth = items[:, :, -1] * (self.amount[0] if page.tier is None else (page.tier @ self.amount)[:, None])
        if before is not None:
            read = self._read(page, before, odds, items, lines)
        return Liking(click.sigmoid().mul_(examined), purchase, worth, read)

    def reading(self, page: Page, before: Before) -> Read:
        """Return what the memory will read of a page, whose shoppers brought this to it."""
        person = torch.cat([page.scaled, before.told], 1)
        return self._read(page, before, *self._odds(page, person, before.wishes))

    def _odds(self, page: Page, person: Tensor, wishes: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the heads' log-odds of the items (n, K, heads), and the rows of items and of lines (n, K, width)."""
        n, size = page.at.shape
        queries, level, tiers, ads = self.people.of(person, wishes)
        items = self.items.index_select(0, page.at.reshape(-1)).reshape(n, size, self.items.shape[1])
        if tiers is not None and page.offer is not None:
            level = level + tiers.gather(2, page.offer[:, :, None].expand(-1, tiers.shape[1], 1)).squeeze(2)
        odds = torch.baddbmm(level[:, None], items[:, :, : self.query], queries[0].transpose(1, 2))
        lines = None
        if page.said is not None:
            lines = self.lines.index_select(0, page.said.reshape(-1)).reshape(n, size, self.lines.shape[1])
            odds.baddbmm_(lines[:, :, : self.query], queries[1].transpose(1, 2))
        if ads is not None and page.ad is not None:
            odds.addcmul_(page.ad[:, :, None], ads[:, None])
        if page.affinity is not None:
            odds.addcmul_(page.affinity[:, :, None], self.people.affinity)
        if page.believed is not None:
            odds.add_(page.believed)
        return odds, items, lines

    def _read(self, page: Page, before: Before, odds: Tensor, items: Tensor, lines: Tensor | None) -> Read:
        examined, said = self.examined[: page.at.shape[1]] * page.shown, None
        if lines is not None:
            said = lines[:, :, self.kept :]
        return Read(before, odds[:, :, 1].contiguous(), self.base, examined, items[:, :, self.kept :], said, page)


class _People:
    """What a model's heads make of people: queries against the tables, and effects of their own.

    The heads are clicks, clicks of anybody with these features (where there is a memory), purchases.
    """

    def __init__(self, model: ShopperModel, buys: int, query: int) -> None:
        known, like = len(model.shopper_centre), model.shopper_centre
        heads: list[tuple[Appeal, bool, int]] = [(model.click, True, buys + 1)]
        heads += [(model.click, False, buys + 1)] if model.memory is not None else []
        heads += [(model.conversion, True, 0)] if model.conversion is not None else []
        count, width = len(heads), known + (TOLD if model.recorded.timeline else 0)
        sides = 1 if model.line_vectors is None else 2
        tiers, ads = model.recorded.offers if model.recorded.offers > 1 else 0, int(model.recorded.ads)
        self.count, self.query, self.tiers, self.has_ads, self.buys = count, query, tiers, bool(ads), buys
        self.match = like.new_zeros(2) if model.match is None else model.match
        # Weights of what people know of themselves, and a bias in the last column.
        queries = like.new_zeros(sides, count, query, width + 1)
        level, tier, ad = (like.new_zeros(count, *more, width + 1) for more in ((), (tiers,), (ads,)))
        inner, self._outer = [], []
        for j, (appeal, told, start) in enumerate(heads):
            knows = torch.ones_like(level[j])
            knows[known:-1] = float(told)
            level[j] = torch.cat([appeal.shopper_effect.weight[0], appeal.base[None]])
            if tiers:
                tier[j, 1:] = torch.cat([appeal.shopper_offer_taste.weight, appeal.offer_effect[:, None]], 1)
            if ads:
                ad[j, 0] = torch.cat([appeal.shopper_ad_taste.weight[0], appeal.ad_effect[None]])
            level[j], tier[j], ad[j] = level[j] * knows, tier[j] * knows, ad[j] * knows
            for side in range(sides):
                tower = appeal.shopper_line_taste if side else appeal.shopper_taste
                queries[side, j, start - 1 if start else buys - 1, -1] = 1.0  # the effect rides along
                place = slice(start, start + appeal.own_taste.weight.shape[1])
                if isinstance(tower, nn.Linear):
                    queries[side, j, place, :-1] = tower.weight * knows[:-1]
                else:
                    first, last = two_layers(tower)
                    inner.append(torch.cat([first.weight, first.bias[:, None]], 1) * knows)
                    self._outer.append((side, j, place, last.weight.T.contiguous()))
        self.affinity = torch.stack([appeal.affinity_effect for appeal, _, _ in heads])
        if buys:
            # What is liked is bought, see `ShopperModel.conversion_odds`; the queries follow page by page.
            level[-1, :-1] += self.match[0] * level[0, :-1]
            self.affinity[-1] += self.match[0] * self.affinity[0]
            tier[-1] += self.match[1] * tier[0]
            ad[-1] += self.match[1] * ad[0]
        blocks = [*queries.flatten(1, 2), level, tier.flatten(0, 1), ad.flatten(0, 1)]
        self._widths = [len(block) for block in blocks]
        self._weight, self._bias = _split_bias(torch.cat(blocks))
        self._inner = _split_bias(torch.cat(inner)) if inner else None

    def of(self, person: Tensor, wishes: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None]:
        """Return queries for items and lines, each (n, heads, query), and level (n, heads), tiers (n, heads, T), ads.

        Args:
            person: Scaled features and what a memory tells, shape (n, D).
            wishes: Changes of tastes, shape (n, wishes).
        """
        found = torch.addmm(self._bias, person, self._weight)
        *flat, level, tiers, ads = found.split(self._widths, 1)
        queries = [part.unflatten(1, (self.count, self.query)) for part in flat]
        if self._inner is not None:
            weight, bias = self._inner
            inner = torch.addmm(bias, person, weight).tanh_()
            parts = inner.split(inner.shape[1] // len(self._outer), 1)
            for (side, j, place, outer), part in zip(self._outer, parts, strict=True):
                queries[side][:, j, place].addmm_(part, outer)
        for side, query in enumerate(queries):
            if wishes is not None:
                hidden = wishes.shape[1] // len(queries)
                query[:, 0, -hidden:].add_(wishes[:, side * hidden : (side + 1) * hidden])
            if self.buys:
                torch.mul(query[:, 0, self.buys :], self.match[side], out=query[:, -1, self.buys :])
        shaped = tiers.unflatten(1, (self.count, self.tiers)) if self.tiers else None
        return queries, level, shaped, ads if self.has_ads else None


class FrozenView:
    """What the rest of the page does to an item; see `hawker.simulators.appeal.InView`."""

    def __init__(self, view: InView, items: int, size: int) -> None:
        self.vectors, self._widths = nn.functional.pad(view.vectors, (0, 0, 1, 0)).contiguous(), view._widths
        above, below = view.above.detach(), view.below.detach()
        # What the item in the second place does to the one in the first, by what they may share: (blocks, K, K).
        every = torch.ones(size, size, device=self.vectors.device)
        self._sides = above[:, None, None] * every.tril(-1) + below[:, None, None] * every.triu(1)
        self.pairs: Tensor | None = None
        self._laid: dict[int, tuple[Tensor, Tensor]] = {}
        if items <= PAIRS:
            # What the lower of two items does to the upper one, and the upper one to the lower: one number of 8 bytes,
            # since fetching is what takes the time.
            widths = torch.tensor(view._widths, device=every.device)
            weights = (part.repeat_interleave(widths) for part in (below, above))
            both = [(self.vectors * part) @ self.vectors.T for part in weights]
            self.pairs = torch.stack(both, 2).view(torch.float64).reshape(-1)

    def pair(self, at: Tensor) -> Tensor | None:
        """Return which two items are together on pages of rows ``at`` (n, K): places in the table (n, pairs)."""
        size = at.shape[1]
        if self.pairs is None:
            return None
        # Integers below 2**24 are exact in float32, and a product takes less time than two indexed look-ups.
        return (at.to(torch.float32) @ self._lay(size)[0]).int()

    def __call__(self, page: Page) -> Tensor:
        """Return the effect on the log-odds, shape (n, K)."""
        n, size = page.at.shape
        if self.pairs is None or page.pair is None:
            own = self.vectors.index_select(0, page.at.reshape(-1)).reshape(n, size, self.vectors.shape[1])
            effect = own.new_zeros(n, size, size)
            for part, side in zip(own.split(self._widths, 2), self._sides[:, :size, :size], strict=True):
                effect.addcmul_(part @ part.transpose(1, 2), side)
            return effect.sum(2)
        share = self._lay(size)[1]
        return self.pairs.index_select(0, page.pair.reshape(-1)).view(torch.float32).reshape(n, len(share)) @ share

    def _lay(self, size: int) -> tuple[Tensor, Tensor]:
        """Return how places of pairs come from items (K, pairs), and effects from those of pairs (2 pairs, K)."""
        if size in self._laid:
            return self._laid[size]
        upper, lower = torch.triu_indices(size, size, 1, device=self.vectors.device)
        count = torch.arange(len(upper), device=upper.device)
        pair = torch.zeros(size, len(upper), device=upper.device)
        pair[upper, count], pair[lower, count] = float(len(self.vectors)), 1.0
        share = torch.zeros(len(upper), 2, size, device=upper.device)
        share[count, 0, upper], share[count, 1, lower] = 1.0, 1.0
        self._laid[size] = pair, share.reshape(-1, size)
        return self._laid[size]


def _item_parts(head: Appeal, model: ShopperModel) -> tuple[Tensor, Tensor]:
    """Return tastes (n_items, h) and effects (n_items, 1) of the items."""
    taste: Tensor = head.item_taste(model.item_vectors) + head.own_taste.weight
    effect: Tensor = head.item_effect(model.item_vectors) + head.own_effect.weight
    return taste, effect


def _line_rows(model: ShopperModel, heads: list[Appeal], vectors: Tensor) -> Tensor:
    """Return the rows of lines with these vectors in the table, shape (n_lines, width)."""
    parts = [_line_parts(head, vectors) for head in heads]
    blocks = [*parts[0], *parts[-1][::-1]] if len(heads) > 1 else [*parts[0][::-1]]
    if model.memory is not None:
        assert model.memory.line is not None
        blocks.append(model.memory.line(model.heard(vectors)))
    return torch.cat(blocks, 1)


def _line_parts(head: Appeal, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return tastes (n_lines, h) and effects (n_lines, 1) of the lines."""
    taste: Tensor = head.line_taste(vectors)
    effect: Tensor = head.line_effect(vectors)
    return taste, effect


def _flush(weights: Tensor) -> None:
    """Set to 0 what is next to it: numbers below 1.2e-38, to which priors shrink weights, slow a CPU down 30 times."""
    weights.masked_fill_(weights.abs() < 1e-30, 0.0)


def _split_bias(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (width, n), to multiply by, and biases (n,), from rows (n, width + 1) that end with their bias."""
    return rows[:, :-1].T.contiguous(), rows[:, -1].contiguous()
