"""Bundles as strategies, so that what will be served can be tried against shoppers like any other arm."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hawker.policies.bundle import Bundle
from hawker.policies.page import LineLogits, OrganicSlate, PageDistribution, PageLayout, PageLogits
from hawker.policies.page_actor import DrawnPages
from hawker.policies.page_bundle import PageBundle
from hawker.policies.page_draw import PageScores
from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context


class ServedStrategy(Strategy):
    """The decisions of a bundle, computed by onnxruntime on the CPU wherever the contexts live.

    Attributes:
        bundle: The bundle.
    """

    name = "bundle"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.size = bundle, bundle.size

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        """Return the bundle's distribution over slates, in double precision."""
        arrays = context.map(lambda array: array.cpu().numpy())
        logits = np.where(arrays.mask, self.bundle.logits(arrays), 0.0)
        return PlackettLuce(torch.from_numpy(logits).to(context.mask.device), context.mask, self.size)


class ServedPages(DrawnPages):
    """The decisions of a bundle for whole pages, as ``PageStrategy`` makes them: on contexts that tell what was read.

    Attributes:
        bundle: The bundle.
    """

    name = "bundle"

    def __init__(self, bundle: PageBundle) -> None:
        self.bundle, self.size = bundle, bundle.size
        page = bundle.manifest["page"]
        lines = len(bundle.lines) if page["copy"] else None
        self.layout = PageLayout(bundle.size, True, page["ad"], page["offers"], lines)

    def distribution(self, context: Context[Tensor]) -> OrganicSlate:
        """Return the distribution over slates without an ad, in double precision."""
        logits = torch.from_numpy(self.bundle.scores(context.map(lambda array: array.cpu().numpy())).slate)
        return OrganicSlate(logits.to(context.mask.device), context.mask, self.size)

    def pages(self, context: Context[Tensor], ad_mask: Tensor | None = None) -> PageDistribution:
        """Return the distribution over whole pages; ``ad_mask`` (B, C) further narrows which items may be ads."""
        return PageDistribution(self.layout, *self._logits(context, ad_mask))

    def _logits(self, context: Context[Tensor], ad_mask: Tensor | None) -> tuple[PageLogits, Tensor, Tensor | None]:
        """Return the logits, the candidates that may be shown, and those that may be the ad (B, C)."""
        arrays = context.map(lambda array: array.cpu().numpy())
        scores = self.bundle.scores(arrays, None if ad_mask is None else ad_mask.cpu().numpy())
        device = context.mask.device

        def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array).to(device)

        ad, slate = tensor(scores.ad), tensor(scores.slate)
        may = None if ad is None else ~ad[:, :-1].isneginf()
        if ad is not None:
            ad = ad.masked_fill(ad.isneginf(), 0.0)  # the distribution masks it anew
        logits = PageLogits(slate, ad, tensor(scores.slot), tensor(scores.offer), self._line(scores, device))
        return logits, context.mask, may

    def _line(self, scores: PageScores, device: torch.device) -> LineLogits | None:
        if scores.line_query is None or scores.lines is None:
            return None
        rest = (scores.lines.by_tier, scores.line_effects)
        query, keys, bias = (
            torch.from_numpy(array).to(device) for array in (scores.line_query, scores.lines.keys, scores.lines.bias)
        )
        by_tier, effects = (None if part is None else torch.from_numpy(part).to(device) for part in rest)
        return LineLogits(query, keys, bias, by_tier, effects)
