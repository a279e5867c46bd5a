"""The strategist: pages whose slate, ad and offer an actor chooses, and whose lines come from the copy bank.

The bank is held as tensors, so that one gather finds what may be said in each slot of a batch of pages and one search
draws from it. A page's log-probability is exact: that of slate, ad and offer, and that of every slot's line given them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hawker.policies.copy_bank import DECIMALS, CopyBank
from hawker.policies.page import PageChoice, PageDistribution, sum_of
from hawker.policies.page_actor import DrawnPages, LikeliestPages, certain
from hawker.policies.protocol import SlateDistribution, Strategy, slate_of
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError

NOBODY = -2
"""Number of an option that is not there; ``EMPTY`` is that of no line."""


@dataclass(frozen=True, eq=False)
class BankTable:
    """What a copy bank says on one surface, as tensors on one device; made by ``BankTable.of``.

    A key is what may be said in one place: the lines of an audience, item and tier, or else those for anybody, or else
    the template alone. Places of the same lines have one key; of G keys none has more options than M.

    Attributes:
        key: The key of each audience, item and tier, shape (A * I * T,), int64.
        edges: Cumulated propensities of each key's options, 2 from the last on, shape (G, M), float32.
        number: Of each option in the world's lines, shape (G, M), int64; ``NOBODY`` where there is none.
        log_propensity: Of each option in its key, shape (G, M), float32; minus infinity where there is none.
        items: Items, I.
        tiers: Tiers of the offer, T.
    """

    key: Tensor
    edges: Tensor
    number: Tensor
    log_propensity: Tensor
    items: int
    tiers: int

    @classmethod
    def of(
        cls,
        bank: CopyBank,
        item_ids: Sequence[str],
        labels: Sequence[str],
        discounts: Sequence[float],
        surface: str,
        lines: Sequence[str],
        device: torch.device,
    ) -> BankTable:
        """Lay out a bank for a world.

        Args:
            bank: The bank.
            item_ids: The catalog's items, in its order.
            labels: The audiences, in the order of their numbers.
            discounts: Share of the price that each tier of the offer takes off, none included.
            surface: Where the lines stand.
            lines: The world's lines, whose numbers decisions hold.
            device: Where the tensors lie.

        Raises:
            InputError: The world lacks a line of the bank.
        """
        number, off = {text: i for i, text in enumerate(lines)}, np.round(np.asarray(discounts, np.float64), DECIMALS)
        if unknown := [text for text in bank.texts(surface) if text not in number]:
            remedy = "let the world's shoppers understand the bank's lines"
            raise InputError("the world lacks a line of the bank", where="copy bank", got=unknown[0], remedy=remedy)
        on = (bank.table["surface"] == surface).to_numpy()
        said, templates = bank.table[on], bank.templates[bank.templates["surface"] == surface]
        rows = list(zip(said["audience"], said["item_id"], said["discount"], strict=True))
        places = {place: i for i, place in enumerate(dict.fromkeys(rows))}
        item, who = ({name: i for i, name in enumerate(names)} for names in (item_ids, labels))
        whole = np.full((len(item), len(off)), number[bank.neutral[surface]])
        for item_id, share, line in zip(templates["item_id"], templates["discount"], templates["line"], strict=True):
            if item_id in item:
                whole[item[item_id], off == share] = number[line]
        distinct, template = np.unique(whole, return_inverse=True)
        keys = np.tile(len(places) + template.reshape(whole.shape), (len(who), 1, 1))
        for (audience, item_id, share), place in sorted(places.items(), key=lambda entry: entry[0][0] != ""):
            if item_id in item and (not audience or audience in who):
                keys[who[audience] if audience else slice(None), item[item_id], off == share] = place
        counts = np.array([*Counter(rows).values(), *np.ones(len(distinct))], np.int64)
        row, column = np.nonzero(np.arange(counts.max()) < counts[:, None])  # the options, in the order of the bank
        number_of = np.full((len(counts), counts.max()), NOBODY)
        number_of[row, column] = [*(number[line] for line in said["line"]), *distinct]
        propensity = np.zeros(number_of.shape)
        propensity[row, column] = np.append(bank.propensity[on], np.ones(len(distinct)))
        edges = propensity.cumsum(1)
        edges[np.arange(edges.shape[1]) >= counts[:, None] - 1] = 2.0  # rounding does not add up
        with np.errstate(divide="ignore"):
            parts = edges.astype(np.float32), number_of, np.log(propensity).astype(np.float32)
        key, *tables = (torch.from_numpy(part).to(device) for part in (keys.reshape(-1), *parts))
        return cls(key, tables[0], tables[1], tables[2], len(item), len(off))

    def choose(
        self, items: Tensor, audience: Tensor, tier: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw a line for every slot of a batch of pages.

        Args:
            items: Catalog indices, shape (B, K); ``EMPTY`` marks an empty slot, where nothing is said.
            audience: Of each page's shopper, shape (B,), int64.
            tier: Of each page's offer, shape (B,), int64; None is tier 0 everywhere.
            generator: Draws one number a slot.

        Returns:
            The lines' numbers, ``EMPTY`` in an empty slot, and their log-probabilities, 0 there, both (B, K).
        """
        key = self._key(items, audience, tier)
        draw = torch.rand(items.shape, generator=generator, device=items.device)
        option = key * self.edges.shape[1] + (self.edges[key] <= draw[..., None]).sum(2)
        nothing = items == EMPTY
        number, log_prob = self.number.view(-1)[option], self.log_propensity.view(-1)[option]
        return number.masked_fill_(nothing, EMPTY), log_prob.masked_fill_(nothing, 0.0)

    def log_prob(self, items: Tensor, audience: Tensor, tier: Tensor | None, numbers: Tensor) -> Tensor:
        """Return the log-probability that ``choose`` says each of the given lines in its slot, shape (B, K).

        Minus infinity for a line that it never says there. ``numbers`` (B, K) are as ``choose`` returns them.
        """
        key = self._key(items, audience, tier)
        said = torch.where(self.number[key] == numbers[..., None], self.log_propensity[key], -torch.inf).amax(2)
        nothing = torch.zeros_like(said).masked_fill_(numbers != EMPTY, -torch.inf)
        return torch.where(items == EMPTY, nothing, said)

    def _key(self, items: Tensor, audience: Tensor, tier: Tensor | None) -> Tensor:
        """Return the key of each slot, shape (B, K); that of an empty slot is any."""
        first = audience * (self.items * self.tiers) if tier is None else audience * (self.items * self.tiers) + tier
        return self.key[items.clamp(min=0) * self.tiers + first[:, None]]


def audience_of(context: Context[Tensor]) -> tuple[Context[Tensor], Tensor]:
    """Take the last column of ``shopper``, the number of the audience (B,), off contexts, and return both."""
    return replace(context, shopper=context.shopper[:, :-1]), context.shopper[:, -1].long()


class Strategist(Strategy):
    """Pages of an actor with lines from the copy bank, with exact log-probabilities of every part.

    Its contexts tell the number of the shopper's audience in the last column of ``shopper``.

    Attributes:
        pages: Who chooses slate, ad and offer; lines that it would say are left out.
        table: What may be said.
    """

    name = "strategist"

    def __init__(self, pages: DrawnPages | LikeliestPages, table: BankTable) -> None:
        self.pages, self.table, self.size = pages, table, pages.size

    def distribution(self, context: Context[Tensor]) -> SlateDistribution:
        """Return the distribution over slates without an ad."""
        return self.pages.distribution(audience_of(context)[0])

    def propose(
        self, context: Context[Tensor], generator: torch.Generator, ad_mask: Tensor | None = None
    ) -> Decision[Tensor]:
        """Draw one page per context; ``log_prob`` is of the whole page, ``log_probs`` of its parts."""
        context, audience = audience_of(context)
        drawn = self._drawn(context, ad_mask)
        if isinstance(self.pages, LikeliestPages):
            page = drawn.mode()
            log_probs = certain(page, page)
        else:
            page = drawn.sample(generator)
            log_probs = drawn.log_probs(page)
        assert page.slate is not None
        slate = slate_of(context, page.slate)
        lines, each = self.table.choose(slate, audience, page.offer, generator)
        log_probs |= {"copy": each.sum(1)}
        return Decision(slate, sum_of(log_probs), page.slot, page.offer, lines, log_probs)

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor], ad_mask: Tensor | None = None) -> Tensor:
        """Return the log-probability of whole pages under this strategy, shape (B,)."""
        assert decision.copy is not None, "a strategist's pages say something"
        context, audience = audience_of(context)
        page, drawn = PageChoice.of(context, decision), self._drawn(context, ad_mask)
        likeliest = isinstance(self.pages, LikeliestPages)
        log_probs = certain(page, drawn.mode()) if likeliest else drawn.log_probs(page)
        each = self.table.log_prob(decision.slate, audience, decision.offer, decision.copy)
        return sum_of(log_probs | {"copy": each.sum(1)})

    def _drawn(self, context: Context[Tensor], ad_mask: Tensor | None) -> PageDistribution:
        """Return what all but the lines is drawn from, or the likeliest of."""
        pages = self.pages.trained if isinstance(self.pages, LikeliestPages) else self.pages
        return pages.pages(context, ad_mask).without_copy()
