"""A whole page as one random choice: the ad, the slate around it, the offer and a line of copy for every item.

A page is drawn in this order: the ad's item or none, the ad's slot, the organic items in the other slots by
Plackett-Luce without the ad's item, the offer's tier, and a line or none for every filled slot given the offer. The
log-probability of a page is the sum of those of the parts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hawker.policies.choices import one_of_each, ranked
from hawker.policies.protocol import picks_of, slate_of
from hawker.policies.slate import Marginals, PlackettLuce, gumbel
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision

PARTS = ("slate", "ad", "offer", "copy")
"""What a page may be made of, in the order in which actions list it."""

NEVER = -1e4
"""Logit of what is masked: its probability is 0 in floating point, and its product with its logarithm is no NaN."""


@dataclass(frozen=True)
class PageLayout:
    """Which parts of a page are chosen, and how an action lists them.

    An action is ``[C] * K + [C + 1] + [K] + [T] + [L + 1] * K``, without the numbers of parts that are off: places in
    the candidate list for the slots (the ad's item at its slot too, ``EMPTY`` for a slot that stays empty), the place
    of the ad's item or C for none, the ad's slot (0 where there is none), the offer's tier, a line for each slot or L
    for none.

    Attributes:
        size: Slots of a page, K.
        slate: Whether the items are chosen.
        ad: Whether an ad and its slot are.
        offers: Tiers of the offer, T; 0 where it is not chosen.
        lines: Lines of the bank, L; None where copy is not chosen.
    """

    size: int
    slate: bool = True
    ad: bool = False
    offers: int = 0
    lines: int | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are chosen."""
        chosen = (self.slate, self.ad, self.offers > 0, self.lines is not None)
        return tuple(part for part, is_on in zip(PARTS, chosen, strict=True) if is_on)

    def _values(self, choices: int) -> dict[str, list[int]]:
        """Return how many values each number of an action has, by block, in their order."""
        values = {"slate": [choices] * self.size} if self.slate else {}
        if self.ad:
            values |= {"ad": [choices + 1], "slot": [self.size]}
        if self.offers:
            values["offer"] = [self.offers]
        return values if self.lines is None else values | {"copy": [self.lines + 1] * self.size}

    @property
    def width(self) -> int:
        """Numbers of an action."""
        return len(self.nvec(0))

    def nvec(self, choices: int) -> list[int]:
        """Return how many values each number of an action has, with C = ``choices`` candidates."""
        return [value for block in self._values(choices).values() for value in block]

    def split(self, actions: Tensor) -> dict[str, Tensor]:
        """Return the blocks of actions (B, width) by name, each (B, its numbers): slate, ad, slot, offer and copy."""
        blocks = self._values(0)
        return dict(zip(blocks, actions.split([len(block) for block in blocks.values()], 1), strict=True))

    def actions(self, page: PageChoice, choices: int) -> Tensor:
        """Return pages as actions, shape (B, width), with C = ``choices`` candidates."""
        parts = []
        if page.slate is not None:
            parts.append(page.slate)
        if page.ad is not None and page.slot is not None:
            none = page.ad == EMPTY
            parts += [page.ad.masked_fill(none, choices)[:, None], page.slot.masked_fill(none, 0)[:, None]]
        if page.offer is not None:
            parts.append(page.offer[:, None])
        if page.lines is not None and self.lines is not None:
            parts.append(page.lines.masked_fill(page.lines == EMPTY, self.lines))
        return torch.cat(parts, 1)

    def page(self, actions: Tensor, choices: int) -> PageChoice:
        """Return actions (B, width) as pages, with C = ``choices`` candidates."""
        blocks = self.split(actions.long())
        ad = slot = None
        if self.ad:
            none = blocks["ad"] == choices
            ad, slot = (blocks[name].masked_fill(none, EMPTY).squeeze(1) for name in ("ad", "slot"))
        return PageChoice(
            blocks.get("slate"),
            ad,
            slot,
            blocks["offer"].squeeze(1) if self.offers else None,
            None if self.lines is None else blocks["copy"].masked_fill(blocks["copy"] == self.lines, EMPTY),
        )


class PageChoice(NamedTuple):
    """What is chosen for B pages; a part that is off is None.

    Attributes:
        slate: Place in the candidate list of each slot's item, the ad's at its slot, shape (B, K); or ``EMPTY``.
        ad: Place of the ad's item, shape (B,); ``EMPTY`` where the page has none.
        slot: The ad's slot, shape (B,); ``EMPTY`` where the page has none.
        offer: Tier, shape (B,).
        lines: Line at each slot, shape (B, K); ``EMPTY`` where there is none.
    """

    slate: Tensor | None
    ad: Tensor | None = None
    slot: Tensor | None = None
    offer: Tensor | None = None
    lines: Tensor | None = None

    def decision(
        self, context: Context[Tensor], log_prob: Tensor, log_probs: dict[str, Tensor] | None = None
    ) -> Decision[Tensor]:
        """Return pages whose slate is chosen as decisions, with the log-probability of the whole page (B,)."""
        assert self.slate is not None, "what is given is no decision"
        return Decision(slate_of(context, self.slate), log_prob, self.slot, self.offer, self.lines, log_probs)

    @classmethod
    def of(cls, context: Context[Tensor], decision: Decision[Tensor]) -> PageChoice:
        """Return decisions as pages.

        Raises:
            ValueError: A slate holds an item that is no candidate of its page.
        """
        slate, slot = picks_of(context, decision.slate), decision.ad
        ad = None if slot is None else slate.gather(1, slot.clamp(min=0)[:, None]).squeeze(1)
        if ad is not None and slot is not None:
            ad = ad.masked_fill(slot == EMPTY, EMPTY)
        return cls(slate, ad, slot, decision.offer, decision.copy)


class LineLogits(NamedTuple):
    """Logits of lines in factors, since they depend on an offer that is drawn before them.

    Of line l on page b with tier t: (query[b] + by_tier[t]) . keys[l] + bias[l] + effects[b, l].

    Attributes:
        query: Shape (B, h).
        keys: Of each line, and of none in the last place, shape (L + 1, h).
        bias: Shape (L + 1,).
        by_tier: What a tier adds to the query, shape (T, h); None where offers are off.
        effects: What contexts say of each line, shape (B, L); 0 for none of them. None where they say nothing.
    """

    query: Tensor
    keys: Tensor
    bias: Tensor
    by_tier: Tensor | None = None
    effects: Tensor | None = None

    def given(self, offer: Tensor | None) -> Tensor:
        """Return the logits at tiers (B,): shape (B, L + 1)."""
        query = self.query if offer is None or self.by_tier is None else self.query + self.by_tier[offer]
        logits = torch.addmm(self.bias, query, self.keys.T)
        return logits if self.effects is None else logits + torch.nn.functional.pad(self.effects, (0, 1))


class PageLogits(NamedTuple):
    """What an actor makes of B pages; a part that is off is None.

    Attributes:
        slate: Of each candidate as an organic item, shape (B, C), from -40 to 40.
        ad: Of each candidate as an ad, and of none in the last place, shape (B, C + 1).
        slot: Of each slot as the ad's, shape (B, K).
        offer: Of each tier, shape (B, T).
        line: Of the lines.
    """

    slate: Tensor | None
    ad: Tensor | None = None
    slot: Tensor | None = None
    offer: Tensor | None = None
    line: LineLogits | None = None


class OrganicSlate:
    """Plackett-Luce slates in pages of which some have fewer slots to fill.

    Differs from ``PlackettLuce`` in that, and in how much it does per gradient step: log-probability and entropy come
    from one pass over the candidates, which needs logits from -40 to 40.
    """

    def __init__(self, logits: Tensor, mask: Tensor, size: int, room: Tensor | None = None) -> None:
        """Set up the distribution.

        Args:
            logits: Shape (B, C).
            mask: Eligible candidates, shape (B, C).
            size: Slots, K.
            room: Slots to fill, at most K, shape (B,); None fills all.
        """
        self._logits, self._mask, self._size, self._room = logits, mask, size, room

    @property
    def _plain(self) -> PlackettLuce:
        return PlackettLuce(self._logits, self._mask, self._size)

    def _cut(self, picks: Tensor) -> Tensor:
        if self._room is None:
            return picks
        return picks.masked_fill(torch.arange(self._size, device=picks.device) >= self._room[:, None], EMPTY)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw a slate for every page: picks of shape (B, K)."""
        return self._cut(self._plain.sample(generator))

    def mode(self) -> Tensor:
        """Return the likeliest slates, picks of shape (B, K)."""
        return self._cut(self._plain.mode())

    def marginals(self, draws: int, generator: torch.Generator) -> Marginals:
        """Return the probability of each candidate at each position, as if all slots were to fill."""
        return self._plain.marginals(draws, generator)

    def log_prob(self, picks: Tensor) -> Tensor:
        """Return the log-probability of whole slates, shape (B,); minus infinity where they cannot be drawn."""
        return self.log_prob_and_entropy(picks)[0]

    def log_prob_and_entropy(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of whole slates, and the sum of the slots' conditional entropies, (B,) each."""
        backwards = picks.flip(1)  # sums over what is left are then plain cumulative sums
        is_filled = backwards != EMPTY
        filled, places = is_filled.to(self._logits.dtype), backwards.clamp(min=0)
        # 1 for an eligible candidate that is not picked, 0 for one that is, below 0 for what cannot be picked. Products
        # with numbers take a fraction of the time that filling by a mask does.
        left = self._mask.to(filled.dtype).scatter_add_(1, places, -filled)
        log_prob, entropy = ranked(self._logits, left.clamp(min=0.0), places, filled)
        return log_prob.masked_fill(~self._fits(is_filled, left), -torch.inf), entropy

    def _fits(self, backwards: Tensor, left: Tensor) -> Tensor:
        """Return where slates can be drawn (B,): from which slots are filled (B, K), the last first, and ``left``."""
        expected = self._mask.sum(1).clamp(max=self._size)
        if self._room is not None:
            expected = torch.minimum(expected, self._room)
        slots = torch.arange(self._size - 1, -1, -1, device=left.device)
        return (backwards == (slots < expected[:, None])).all(1) & (left.amin(1) >= 0)


class PageDistribution:
    """Pages of a batch of contexts; see the module for how they are drawn.

    Attributes:
        layout: Which parts are chosen.
    """

    def __init__(
        self,
        layout: PageLayout,
        logits: PageLogits,
        mask: Tensor,
        ad_mask: Tensor | None = None,
        given: Tensor | None = None,
    ) -> None:
        """Set up the distribution.

        Args:
            layout: Which parts are chosen.
            logits: What an actor makes of the pages.
            mask: Candidates that may be shown, shape (B, C).
            ad_mask: Eligible candidates that may be the ad, shape (B, C); needed where ads are chosen.
            given: The slates where they are not chosen, shape (B, K), ``EMPTY`` where a slot is; None: all are filled.
        """
        self.layout, self._logits, self._mask, self._given = layout, logits, mask, given
        self._ad: Tensor | None = None
        if layout.ad:
            assert logits.ad is not None, "ads need logits"
            assert ad_mask is not None, "ads need a mask"
            may = torch.nn.functional.pad(ad_mask & mask, (0, 1), value=True)
            may = may.to(logits.ad.dtype)
            self._ad = logits.ad * may + (1.0 - may) * NEVER
        self._slot, self._offer = logits.slot, logits.offer

    def without_copy(self) -> PageDistribution:
        """Return the same distribution of pages on which somebody else says the lines."""
        plain = copy.copy(self)
        plain.layout, plain._logits = replace(self.layout, lines=None), self._logits._replace(line=None)
        return plain

    def sample(self, generator: torch.Generator) -> PageChoice:
        """Draw a page for every context."""
        return self._choose(generator)

    def mode(self) -> PageChoice:
        """Return the page that takes the likeliest value of each part in turn."""
        return self._choose(None)

    def _choose(self, generator: torch.Generator | None) -> PageChoice:
        ad = slot = slate = offer = lines = None
        if self._ad is not None and self._slot is not None:
            ad = _pick(self._ad, generator)
            none = ad == self._mask.shape[1]
            ad, slot = ad.masked_fill(none, EMPTY), _pick(self._slot, generator).masked_fill(none, EMPTY)
        if self._logits.slate is not None:
            organic = self._organic(ad)
            slate = organic.mode() if generator is None else organic.sample(generator)
            if ad is not None and slot is not None:
                slate = _with_ad(slate, ad, slot)
        if self._offer is not None:
            offer = _pick(self._offer, generator)
        line = self._line(offer)
        if line is not None:
            lines = _pick_lines(line, self.layout.size, generator)
            lines = lines.masked_fill(lines == line.shape[1] - 1, EMPTY)
            lines = lines.masked_fill(~self._shown(slate, slot, lines), EMPTY)
        return PageChoice(slate, ad, slot, offer, lines)

    def log_prob(self, page: PageChoice) -> Tensor:
        """Return the log-probability of whole pages, shape (B,); minus infinity where one cannot be drawn."""
        return sum_of(self.log_probs(page))

    def log_probs(self, page: PageChoice) -> dict[str, Tensor]:
        """Return the log-probability of each part given those before it, (B,) each; "ad" is the ad with its slot."""
        return self.log_probs_and_entropies(page)[0]

    def entropy(self, page: PageChoice) -> Tensor:
        """Return the sum of the conditional entropies along drawn pages in nats, shape (B,).

        Its mean over drawn pages is the entropy of the page, and unlike -log_prob it has a useful gradient.
        """
        return sum_of(self.log_probs_and_entropies(page)[1])

    def log_probs_and_entropies(self, page: PageChoice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return log-probability and conditional entropy of each part along the pages, (B,) each, by part."""
        log_probs, entropies = self.each(page)
        if "copy" in log_probs:
            log_probs["copy"] = log_probs["copy"].sum(1)
        return log_probs, entropies

    def each(self, page: PageChoice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the same with the log-probability of each slot's line by itself: "copy" is (B, K)."""
        log_probs: dict[str, Tensor] = {}
        entropies: dict[str, Tensor] = {}
        if self._logits.slate is not None:
            assert page.slate is not None
            organic, is_there = _without_ad(page.slate, page.ad, page.slot)
            log_prob, entropies["slate"] = self._organic(page.ad).log_prob_and_entropy(organic)
            log_probs["slate"] = log_prob if is_there is None else log_prob.masked_fill(~is_there, -torch.inf)
        if self._ad is not None and self._slot is not None:
            assert page.ad is not None
            assert page.slot is not None
            none = page.ad == EMPTY
            place = page.ad.masked_fill(none, self._mask.shape[1])
            ad, ad_entropy = one_of_each(self._ad, place[:, None])
            at, slot_entropy = one_of_each(self._slot, page.slot.clamp(min=0)[:, None])
            log_probs["ad"] = _possible(ad.squeeze(1)) + at.squeeze(1).masked_fill(none, 0.0)
            entropies["ad"] = ad_entropy + slot_entropy.masked_fill(none, 0.0)
        if self._offer is not None:
            assert page.offer is not None
            offer, entropies["offer"] = one_of_each(self._offer, page.offer[:, None])
            log_probs["offer"] = offer.squeeze(1)
        line = self._line(page.offer)
        if line is not None:
            assert page.lines is not None
            said = page.lines.masked_fill(page.lines == EMPTY, line.shape[1] - 1)
            each, entropy = one_of_each(line, said)
            shown = self._shown(page.slate, page.slot, page.lines)
            each = torch.where(shown, each, torch.where(page.lines == EMPTY, 0.0, -torch.inf))
            log_probs["copy"], entropies["copy"] = each, shown.sum(1) * entropy
        return log_probs, entropies

    def _organic(self, ad: Tensor | None) -> OrganicSlate:
        """Return the distribution of the slots around an ad (B,)."""
        assert self._logits.slate is not None
        if ad is None:
            return OrganicSlate(self._logits.slate, self._mask, self.layout.size)
        has_ad = ad != EMPTY
        taken = torch.zeros_like(self._mask).scatter_(1, ad.clamp(min=0)[:, None], has_ad[:, None])
        return OrganicSlate(self._logits.slate, self._mask & ~taken, self.layout.size, self.layout.size - has_ad.long())

    def _shown(self, slate: Tensor | None, slot: Tensor | None, lines: Tensor) -> Tensor:
        """Return which slots have an item to say something about, shape (B, K)."""
        if slate is not None:
            return slate != EMPTY
        if self._given is None:
            return torch.ones_like(lines, dtype=torch.bool)
        shown = self._given != EMPTY
        if slot is not None:
            shown = shown | (torch.arange(self.layout.size, device=shown.device) == slot[:, None])
        return shown

    def _line(self, offer: Tensor | None) -> Tensor | None:
        """Return the logits of the lines, none in the last place, given the offer (B,): (B, L + 1)."""
        line = self._logits.line
        return None if line is None else line.given(offer)


def sum_of(parts: dict[str, Tensor]) -> Tensor:
    """Return the sum of the parts, shape (B,)."""
    return torch.stack(list(parts.values())).sum(0)


def _pick(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a column of each row, (B,); the likeliest one without a generator. Never one that is masked."""
    if generator is None:
        return logits.argmax(1)
    return (logits + gumbel(logits, generator)).max(1).indices  # argmax takes twice as long


def _pick_lines(logits: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Draw K columns of each row, with replacement, (B, K), by one search in the row's cumulative sums."""
    if generator is None:
        return logits.argmax(1, keepdim=True).expand(-1, size)
    edges = (logits - logits.max(1, keepdim=True).values).exp().cumsum(1)
    draws = torch.rand(len(edges), size, generator=generator, device=edges.device) * edges[:, -1:]
    return torch.searchsorted(edges, draws, right=True).clamp_(max=edges.shape[1] - 1)


def _at(log_probs: Tensor, place: Tensor) -> Tensor:
    """Return one entry of each row, shape (B,)."""
    return log_probs.gather(1, place[:, None]).squeeze(1)


def _possible(log_prob: Tensor) -> Tensor:
    """Return log-probabilities with those of what is masked at minus infinity."""
    return log_prob.masked_fill(log_prob < NEVER / 2, -torch.inf)


def _with_ad(organic: Tensor, ad: Tensor, slot: Tensor) -> Tensor:
    """Put ads (B,) into their slots (B,) and the organic picks (B, K) around them."""
    place, size = torch.arange(organic.shape[1], device=organic.device), organic.shape[1]
    at = slot.masked_fill(slot == EMPTY, size)[:, None]
    return torch.where(place == at, ad[:, None], organic.gather(1, place - (place > at).long()))


def _without_ad(slate: Tensor, ad: Tensor | None, slot: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Take the ads out of slates (B, K); return what is left, and where (B,) the ad stood at its slot indeed."""
    if ad is None or slot is None:
        return slate, None
    size, has_ad = slate.shape[1], ad != EMPTY
    place = torch.arange(size, device=slate.device)
    at = slot.masked_fill(~has_ad, size)[:, None]
    organic = slate.gather(1, (place + (place >= at).long()).clamp(max=size - 1))
    organic = organic.masked_fill(has_ad[:, None] & (place == size - 1), EMPTY)
    return organic, ~has_ad | (_at(slate, slot.clamp(min=0)) == ad)
