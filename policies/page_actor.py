"""The actor that scores every part of a page with shared weights, and a trained one as a strategy."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hawker.policies.page import LineLogits, OrganicSlate, PageChoice, PageDistribution, PageLayout, PageLogits, sum_of
from hawker.policies.pointing import candidate_scores
from hawker.policies.protocol import Strategy
from hawker.policies.shopkeeper import ExploringSlate
from hawker.policies.slate import LOGIT_BOUND, Linear, SlateActor, initialise
from hawker.policies.trained import POLICY, WEIGHTS
from hawker.shop.artefacts import read_json, verify_directory, write_json
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.features import EFFECT_LINE, EFFECT_OFFER, FeatureSchema

FEW_ADS = 3.0
"""Log-odds of no ad where an actor begins greedy: an ad in one page of twenty."""

HEADS = ("ad_query", "no_ad", "slot", "offer", "offer_weight", "line_query", "line_weight")
"""Linear layers that read the query, of the parts that are chosen."""

DENSE = 64
"""Catalog items per candidate up to which scoring all items in one product is faster than gathering candidates."""


class PageActor(nn.Module):
    """Logits of a page: pointers at candidates and lines, and small heads for the ad's slot and the offer.

    The slate's logits are those of ``SlateActor``. An ad is scored with the same item keys and a query of its own;
    that there is none competes with all bidders together, so that more bidders do not make more ads. A line is scored
    with a key made from its vector, alike for all slots of a page; an offer changes what a line is worth through the
    same keys, since a line that claims an offer is a lie without one. Where contexts tell what offers and lines make of
    a page's worth (columns ``effect.*``), that enters with a weight, as affinities enter the slate's. Logits but those
    of lines lie within ``LOGIT_BOUND``; "no ad" has the logarithm of the number of bidders on top.

    Attributes:
        layout: Which parts are chosen.
        slate: The slate's actor, whose query and keys the other parts share.
        bidders: Catalog indices of the items that may be ads, shape (S,).
        line_vectors: The bank's vectors, shape (L, w).
    """

    bidders: Tensor
    bidder_of: Tensor
    line_vectors: Tensor

    def __init__(
        self,
        layout: PageLayout,
        builder: ContextBuilder,
        hidden: int,
        generator: torch.Generator,
        bids: npt.NDArray[Any] | None = None,
        line_vectors: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Set up the actor.

        Args:
            layout: Which parts are chosen.
            builder: The shop's contexts and catalog.
            hidden: Width h.
            generator: Source of the first weights.
            bids: Bid of each catalog item, shape (I,), 0 where it has none; needed where ads are chosen.
            line_vectors: Vectors of the bank's lines near unit scale, shape (L, w), as ``Lines.scaled`` has them;
                needed where copy is chosen.

        Raises:
            ValueError: What a part needs is missing or of another size.
        """
        super().__init__()
        self.layout, self.hidden = layout, hidden
        self.slate = SlateActor(builder, layout.size, hidden, generator)
        n_items = len(builder.catalog)
        if layout.ad:
            if bids is None or len(bids) != n_items:
                raise ValueError("ads need a bid for every item")
            bidders = np.flatnonzero(np.asarray(bids) > 0)
            place = np.full(n_items, EMPTY)
            place[bidders] = np.arange(len(bidders))
            self.register_buffer("bidders", torch.from_numpy(bidders))
            self.register_buffer("bidder_of", torch.from_numpy(place))
            self.ad_query, self.no_ad = Linear(hidden, hidden), Linear(hidden, 1)
            self.slot = Linear(hidden, layout.size)
            self.ad_bias = nn.Parameter(torch.zeros(n_items))
        if layout.offers:
            self.offer = Linear(hidden, layout.offers)
        if layout.lines is not None:
            if line_vectors is None or len(line_vectors) != layout.lines:
                raise ValueError("copy needs a vector for every line")
            self.register_buffer("line_vectors", torch.from_numpy(np.array(line_vectors, np.float32)))
            self.line_query, self.line_key = Linear(hidden, hidden), Linear(line_vectors.shape[1], hidden)
            self.line_own = nn.Parameter(torch.zeros(layout.lines + 1, hidden))  # the last is no line
            self.line_bias = nn.Parameter(torch.zeros(layout.lines + 1))
            initialise(self.line_key, generator)
            if layout.offers:
                self.tier_query = nn.Parameter(torch.zeros(layout.offers, hidden))
        self._offer_effects = _columns(builder.shopper, EFFECT_OFFER, layout.offers)
        self._line_effects = _columns(builder.shopper, EFFECT_LINE, layout.lines or 0)
        if self._offer_effects is not None:
            self.offer_weight = Linear(hidden, 1)
            self.slate.shopper_spread[self._offer_effects] = torch.inf  # they enter with weights of their own alone
        if self._line_effects is not None:
            self.line_weight = Linear(hidden, 1)
            self.slate.shopper_spread[self._line_effects] = torch.inf
        for name in HEADS:
            if (head := getattr(self, name, None)) is not None:  # every value of a part starts equally likely
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    @torch.no_grad()
    def begin_greedy(self, weight: float) -> None:
        """Begin as what pays best at once, softly: in proportion to worth to the power of a weight; few ads.

        It needs contexts that tell of worth, as those of `hawker.simulators.reader.ReadWorld` do.
        """
        nn.init.zeros_(self.slate.item_key.weight)
        nn.init.zeros_(self.slate.item_bias.weight)
        for name in ("affinity_weight", "offer_weight", "line_weight"):
            if (head := getattr(self.slate if name == "affinity_weight" else self, name, None)) is not None:
                nn.init.zeros_(head.weight)
                nn.init.constant_(head.bias, weight)
        if self.layout.ad:
            nn.init.constant_(self.no_ad.bias, FEW_ADS)

    def forward(self, context: Context[Tensor], bidder: Tensor | None = None) -> PageLogits:
        """Return the logits of a batch of pages.

        Args:
            context: The pages.
            bidder: What ``bidder`` returned for them; needed where ads are chosen.
        """
        query = self.slate._query(context.shopper)
        candidates, told = context.candidates.long(), self._heads(query)
        keys = self.slate.keys()
        organic = ad = slot = offer = line = None
        if self.layout.slate:
            bias = self.slate.biases()
            scores = self._scores(query, keys, bias, candidates) + context.affinity * told["affinity_weight"]
            organic = _bound(scores).float()
        if self.layout.ad:
            assert bidder is not None, "ads need bidders"
            scores = _bound(self._ad_scores(told["ad_query"], keys, bidder))
            bidding = (bidder != EMPTY).sum(1, keepdim=True).clamp(min=1).log()
            ad = torch.cat([scores, _bound(told["no_ad"]) + bidding], 1).float()
            slot = _bound(told["slot"]).float()
        if self.layout.offers:
            offer = told["offer"]
            if self._offer_effects is not None:
                offer = offer + told["offer_weight"] * context.shopper[:, self._offer_effects]
            offer = _bound(offer).float()
        if self.layout.lines is not None:
            line_keys = nn.functional.pad(self.line_key(self.line_vectors), (0, 0, 0, 1)) + self.line_own
            by_tier = self.tier_query if self.layout.offers else None
            effects = None
            if self._line_effects is not None:
                effects = (told["line_weight"] * context.shopper[:, self._line_effects]).float()
            line_keys = line_keys.float() * self.hidden**-0.5
            line = LineLogits(told["line_query"].float(), line_keys, self.line_bias, by_tier, effects)
        return PageLogits(organic, ad, slot, offer, line)

    def _heads(self, query: Tensor) -> dict[str, Tensor]:
        """Return what the linear heads make of queries (B, h), by name: in one product, since most are narrow."""
        heads = {name: head for name in HEADS if (head := getattr(self, name, None)) is not None}
        heads["affinity_weight"] = self.slate.affinity_weight
        weight, bias = (torch.cat([getattr(head, part) for head in heads.values()]) for part in ("weight", "bias"))
        found = nn.functional.linear(query, weight, bias)
        return dict(zip(heads, found.split([head.out_features for head in heads.values()], 1), strict=True))

    def _scores(self, query: Tensor, keys: Tensor, bias: Tensor, candidates: Tensor) -> Tensor:
        """Return query . key / sqrt(h) + bias of each candidate, shape (B, C)."""
        query = query * self.hidden**-0.5
        if len(keys) <= DENSE * candidates.shape[1]:
            return candidate_scores(query, keys, bias, candidates)
        return torch.einsum("bh,bch->bc", query, keys[candidates]) + bias[candidates]

    def _ad_scores(self, query: Tensor, keys: Tensor, bidder: Tensor) -> Tensor:
        """Return the scores of candidates as ads, shape (B, C), of others any number. Only bidders are scored."""
        if not len(self.bidders):
            return torch.zeros(bidder.shape, device=query.device)
        keys, bias = (part.index_select(0, self.bidders) for part in (keys, self.ad_bias))
        return candidate_scores(query * self.hidden**-0.5, keys, bias, bidder.clamp(min=0))

    def bidder(self, context: Context[Tensor], ad_mask: Tensor | None = None) -> Tensor | None:
        """Return which of the bidders each candidate is, shape (B, C), ``EMPTY`` where it may not be the ad.

        None where ads are not chosen. ``ad_mask`` (B, C) narrows further which bidders may be ads.
        """
        if not self.layout.ad:
            return None
        may = context.mask if ad_mask is None else context.mask & ad_mask
        bidder = self.bidder_of.index_select(0, context.candidates.long().flatten()).reshape(may.shape)
        return (bidder - EMPTY) * may + EMPTY

    def distribution(
        self, context: Context[Tensor], ad_mask: Tensor | None = None, given: Tensor | None = None
    ) -> PageDistribution:
        """Return the distribution over pages.

        Args:
            context: The pages.
            ad_mask: Narrows further which bidders may be ads, shape (B, C).
            given: The slates where they are not chosen, shape (B, K), ``EMPTY`` where a slot is; None: all are filled.
        """
        bidder = self.bidder(context, ad_mask)
        may = None if bidder is None else bidder != EMPTY
        return PageDistribution(self.layout, self(context, bidder), context.mask, may, given)


def _columns(schema: FeatureSchema, prefix: str, count: int) -> slice | None:
    """Return the ``count`` columns whose names begin so, one after the other; None where there are not so many."""
    numbers = [i for i, name in enumerate(schema.numeric) if name.startswith(prefix)]
    return slice(numbers[0], numbers[-1] + 1) if count and len(numbers) == count else None


def _bound(scores: Tensor) -> Tensor:
    return LOGIT_BOUND * torch.tanh(scores / LOGIT_BOUND)


class DrawnPages(Strategy):
    """A strategy that draws whole pages from a distribution over them, with exact log-probabilities of every part."""

    @abstractmethod
    def pages(self, context: Context[Tensor], ad_mask: Tensor | None = None) -> PageDistribution:
        """Return the distribution over whole pages; ``ad_mask`` (B, C) further narrows which items may be ads."""

    def propose(
        self, context: Context[Tensor], generator: torch.Generator, ad_mask: Tensor | None = None
    ) -> Decision[Tensor]:
        """Draw one page per context; ``log_prob`` is of the whole page, ``log_probs`` of its parts."""
        pages = self.pages(context, ad_mask)
        page = pages.sample(generator)
        log_probs = pages.log_probs(page)
        return page.decision(context, sum_of(log_probs), log_probs)

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor], ad_mask: Tensor | None = None) -> Tensor:
        """Return the log-probability of whole pages under this strategy, shape (B,)."""
        return self.pages(context, ad_mask).log_prob(PageChoice.of(context, decision))


class PageStrategy(DrawnPages):
    """Whole pages from a page actor, with exact log-probabilities of every part.

    Attributes:
        actor: The actor; it chooses at least the slate.
        builder: The shop's contexts and catalog that it was trained with.
        lines: Texts of the bank's lines, whose numbers its copy holds.
        trained_on: What made it: digests, seed, steps.
    """

    name = "trained"

    def __init__(
        self, actor: PageActor, builder: ContextBuilder, lines: tuple[str, ...], trained_on: dict[str, Any]
    ) -> None:
        if not actor.layout.slate:
            raise ValueError("a strategy chooses the slate")
        self.actor, self.builder, self.lines = actor.requires_grad_(False).eval(), builder, lines
        self.trained_on, self.size = trained_on, actor.layout.size

    def distribution(self, context: Context[Tensor]) -> OrganicSlate:
        """Return the distribution over slates without an ad."""
        logits = self.actor(context, self.actor.bidder(context)).slate
        return OrganicSlate(logits, context.mask, self.size)

    def pages(self, context: Context[Tensor], ad_mask: Tensor | None = None) -> PageDistribution:
        """Return the distribution over whole pages; ``ad_mask`` (B, C) further narrows which items may be ads."""
        return self.actor.distribution(context, ad_mask)

    def save(self, directory: Path) -> None:
        """Write weights and schemas into a directory that is being written."""
        save_file({k: v.detach().cpu().contiguous() for k, v in self.actor.state_dict().items()}, directory / WEIGHTS)
        layout = self.actor.layout
        page = {"size": layout.size, "ad": layout.ad, "offers": layout.offers, "copy": layout.lines is not None}
        values = {"page": page | {"hidden": self.actor.hidden}, "lines": list(self.lines)}
        write_json(directory / POLICY, values | {"builder": self.builder.to_dict(), "trained_on": self.trained_on})

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> PageStrategy:
        """Read a strategy that ``save`` wrote, verifying its checksums.

        Raises:
            InputError: Files are missing, changed or of another form.
        """
        directory = verify_directory(directory, "policy")
        values = read_json(directory / POLICY)
        try:
            weights = load_file(directory / WEIGHTS)
            vectors, page = weights["slate.item_vectors"].numpy(), values["page"]
            builder = ContextBuilder.from_dict(values["builder"], vectors, directory / POLICY)
            lines = weights["line_vectors"].numpy() if page["copy"] else None
            layout = PageLayout(page["size"], True, page["ad"], page["offers"], None if lines is None else len(lines))
            bids = None
            if layout.ad:
                bids = np.zeros(len(vectors))
                bids[weights["bidders"].numpy()] = 1.0
            actor = PageActor(layout, builder, page["hidden"], torch.Generator(), bids, lines)
            actor.load_state_dict(weights)
            return cls(actor.to(device), builder, tuple(values["lines"]), values["trained_on"])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OSError, SafetensorError) as error:
            raise InputError("not a policy of this version", where=directory, got=str(error).splitlines()[0]) from None


class LikeliestPages(Strategy):
    """The likeliest value of each part of a trained strategy's pages in turn, ad first; nothing is drawn.

    It earns what the strategy has learned without what it explores. Off-policy estimates need the strategy that draws.

    Attributes:
        trained: The strategy that draws.
    """

    name = "likeliest"

    def __init__(self, trained: PageStrategy) -> None:
        self.trained, self.size = trained, trained.size

    def distribution(self, context: Context[Tensor]) -> ExploringSlate:
        """Return the one slate without an ad that is never left to chance, as a distribution."""
        actor = self.trained.actor
        return ExploringSlate(actor(context, actor.bidder(context)).slate, context.mask, self.size, 0.0)

    def propose(
        self, context: Context[Tensor], generator: torch.Generator, ad_mask: Tensor | None = None
    ) -> Decision[Tensor]:
        """Return one page per context, whose probability is 1."""
        page = self.trained.pages(context, ad_mask).mode()
        return page.decision(context, torch.zeros(len(context.mask), device=context.mask.device))

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor], ad_mask: Tensor | None = None) -> Tensor:
        """Return 0 for the pages that are shown and minus infinity for all others, shape (B,)."""
        shown = self.trained.pages(context, ad_mask).mode()
        return sum_of(certain(PageChoice.of(context, decision), shown))


def certain(page: PageChoice, shown: PageChoice) -> dict[str, Tensor]:
    """Return the log-probability of each part of pages, (B,) each, where others are shown for certain."""
    assert page.slate is not None
    assert shown.slate is not None
    same = {"slate": (page.slate == shown.slate).all(1)}
    if page.ad is not None and page.slot is not None and shown.ad is not None and shown.slot is not None:
        same["ad"] = (page.ad == shown.ad) & (page.slot == shown.slot)
    if page.offer is not None and shown.offer is not None:
        same["offer"] = page.offer == shown.offer
    if page.lines is not None and shown.lines is not None:
        same["copy"] = (page.lines == shown.lines).all(1)
    return {
        name: torch.zeros(len(is_so), device=is_so.device).masked_fill_(~is_so, -torch.inf)
        for name, is_so in same.items()
    }
