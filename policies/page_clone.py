"""The strategy that wrote a log of whole pages, as far as shares tell: items by position, ads, offers and lines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.policies.baselines import LoggingClone, PositionedSlate
from hawker.policies.page import sum_of
from hawker.policies.protocol import Strategy, picks_of, slate_of
from hawker.shop.catalog import Catalog
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision

Floats = npt.NDArray[np.float64]


class PageClone(Strategy):
    """Whole pages at a log's rates: an ad or none, items around it, an offer, and lines by the offer they came with.

    Nothing of it looks at the shopper: what the log's strategy made of shoppers is lost on it.
    """

    def __init__(
        self, items: LoggingClone, ads: Floats | None, slots: Floats, offers: Floats | None, lines: Floats | None
    ) -> None:
        """Set up the clone.

        Args:
            items: The organic items by position.
            ads: Share of pages with each item as their ad, shape (I,), at most 1 in all; None shows no ads.
            slots: Share of ads at each slot, shape (K,).
            offers: Share of pages with each tier, shape (T,); None makes no offers.
            lines: Share of impressions with each line, and with none in the last place, by tier: shape (T, L + 1), of
                one row where no offers are made; None says nothing.
        """
        self.name, self.size, self._items = items.name, items.size, items
        self._slots = torch.from_numpy(slots).float()
        self._ads, self._offers, self._lines = (
            None if part is None else torch.from_numpy(part).float() for part in (ads, offers, lines)
        )

    @classmethod
    def fit(
        cls,
        items: LoggingClone,
        impressions: pd.DataFrame,
        catalog: Catalog,
        ad: bool,
        offer: bool,
        lines: tuple[str, ...],
    ) -> PageClone:
        """Count a log's ads, offers and lines.

        Args:
            items: The clone of its items.
            impressions: The log.
            catalog: Of the shop.
            ad: Whether there are to be ads.
            offer: Whether there are to be offers.
            lines: The bank of lines; what else the log says is left out.
        """
        rows = impressions[impressions["position"] < items.size]
        pages = rows.drop_duplicates(["visit_id", "page"])
        ads = offers = said = None
        slots = np.full(items.size, 1.0 / items.size)
        if ad:
            shown = rows[rows["placement"] == "ad"]
            ads = np.bincount(catalog.index(shown["item_id"], "impressions"), minlength=len(catalog)) / len(pages)
            if len(shown):
                slots = np.bincount(shown["position"], minlength=items.size) / len(shown)
        tier = np.zeros(len(rows), np.int64)
        if offer and "offer" in rows:
            offers = np.bincount(pages["offer"].to_numpy(np.int64)) / len(pages)
            tier = rows["offer"].to_numpy(np.int64)
        if lines and "copy" in rows:
            place = {text: i for i, text in enumerate(lines)} | {None: len(lines)}
            texts = rows["copy"].astype(object).where(rows["copy"].notna(), None)
            number = texts.map(place).to_numpy(np.float64)
            known = ~np.isnan(number)
            said = np.zeros((1 if offers is None else len(offers), len(lines) + 1))
            np.add.at(said, (tier[known], number[known].astype(np.int64)), 1.0)
            said[:, -1] += said.sum(1) == 0  # a tier never seen with a line says nothing
            said /= said.sum(1, keepdims=True)
        return cls(items, ads, slots, offers, said)

    def distribution(self, context: Context[Tensor]) -> PositionedSlate:
        """Return the distribution over slates without an ad."""
        return self._items.distribution(context)

    def _slates(self, context: Context[Tensor], ad: Tensor, slot: Tensor) -> PositionedSlate:
        """Return the distribution over slates around the ads at places (B,), ``EMPTY`` for none, and slots (B,)."""
        logits = self.distribution(context).logits
        is_ad = torch.nn.functional.one_hot(ad.clamp(min=0), logits.shape[2]).bool() & (ad != EMPTY)[:, None]
        here = torch.nn.functional.one_hot(slot.clamp(min=0), self.size).bool() & (ad != EMPTY)[:, None]
        elsewhere = is_ad[:, None] & ~here[:, :, None]
        others = ~is_ad[:, None] & here[:, :, None]
        return PositionedSlate(logits.masked_fill(elsewhere | others, -torch.inf), context.mask)

    def _ad_shares(self, context: Context[Tensor]) -> Tensor:
        """Return the probability of each candidate as the ad, and of none in the last place, shape (B, C + 1)."""
        assert self._ads is not None
        ads = self._ads.to(context.mask.device)
        weight = ads[context.candidates.long()] * context.mask
        # Candidates stand for all items: where one may be the ad, pages have one as often as in the log.
        shares = ads.sum() * weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
        return torch.cat([shares, (1.0 - shares.sum(1, keepdim=True)).clamp(min=0.0)], 1)

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Draw one page per context; ``log_prob`` is of the whole page, ``log_probs`` of its parts."""
        n, device = len(context.mask), context.mask.device
        place = slot = torch.full((n,), EMPTY, device=device)
        if self._ads is not None:
            drawn = torch.multinomial(self._ad_shares(context), 1, generator=generator).squeeze(1)
            place = drawn.masked_fill(drawn == context.mask.shape[1], EMPTY)
            slot = torch.multinomial(self._slots.to(device), n, replacement=True, generator=generator)
            slot = slot.masked_fill(place == EMPTY, EMPTY)
        slate = slate_of(context, self._slates(context, place, slot).sample(generator))
        offer = copy = None
        if self._offers is not None:
            offer = torch.multinomial(self._offers.to(device), n, replacement=True, generator=generator)
        if self._lines is not None:
            shares = self._lines.to(device)[torch.zeros_like(place) if offer is None else offer]
            copy = torch.multinomial(shares, self.size, replacement=True, generator=generator)
            copy = copy.masked_fill((copy == shares.shape[1] - 1) | (slate == EMPTY), EMPTY)
        page = Decision(slate, torch.zeros(n, device=device), None if self._ads is None else slot, offer, copy)
        parts = self.log_probs(context, page)
        return Decision(slate, sum_of(parts), page.ad, offer, copy, parts)

    def log_probs(self, context: Context[Tensor], decision: Decision[Tensor]) -> dict[str, Tensor]:
        """Return the log-probability of each part of pages by name, (B,) each."""
        picks, parts = picks_of(context, decision.slate), {}
        place = slot = torch.full_like(picks[:, 0], EMPTY)
        if self._ads is not None:
            if decision.ad is not None:
                slot = decision.ad
            place = picks.gather(1, slot.clamp(min=0)[:, None]).squeeze(1).masked_fill(slot == EMPTY, EMPTY)
            shares = self._ad_shares(context)
            at = torch.where(place == EMPTY, shares.shape[1] - 1, place)
            where = self._slots.to(slot.device).log()[slot.clamp(min=0)].masked_fill(slot == EMPTY, 0.0)
            parts["ad"] = (shares / shares.sum(1, keepdim=True)).log().gather(1, at[:, None]).squeeze(1) + where
        parts["slate"] = self._slates(context, place, slot).log_prob(picks)
        tier = torch.zeros_like(place) if decision.offer is None else decision.offer
        if self._offers is not None:
            parts["offer"] = self._offers.to(tier.device).log()[tier]
        if self._lines is not None:
            shares = self._lines.to(tier.device)[tier if self._offers is not None else torch.zeros_like(tier)]
            said = torch.full_like(picks, EMPTY) if decision.copy is None else decision.copy
            said = said.masked_fill(said == EMPTY, shares.shape[1] - 1)
            parts["copy"] = shares.log().gather(1, said).masked_fill(picks == EMPTY, 0.0).sum(1)
        return parts

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor]) -> Tensor:
        """Return the log-probability of whole pages under this strategy, shape (B,)."""
        return sum_of(self.log_probs(context, decision))
