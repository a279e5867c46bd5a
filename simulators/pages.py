"""Decided pages as a shopper model reads them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import ShopperModel, slate_rows


def shown_rows(model: ShopperModel, context: Context[Tensor], decision: Decision[Tensor]) -> Rows:
    """Return B decided pages as rows, with every part of the decision that the model knows.

    A tier above those that it knows counts as the largest of them.
    """
    slate = decision.slate
    rows = slate_rows(context.shopper, slate, affinity_of(context, slate))
    line = offer = ad = None
    if model.line_vectors is not None:
        line = torch.full_like(slate, EMPTY) if decision.copy is None else decision.copy
    if model.recorded.offers > 1:
        offer = torch.zeros_like(slate)
        if decision.offer is not None:
            offer = decision.offer[:, None].clamp(max=model.recorded.offers - 1).expand(slate.shape)
    if model.recorded.ads:
        place = torch.arange(slate.shape[1], device=slate.device)
        ad = torch.zeros(slate.shape, device=slate.device)
        ad = ad if decision.ad is None else (decision.ad[:, None] == place).float()
    flat = [None if part is None else part.reshape(-1) for part in (line, offer, ad)]
    return replace(rows, line=flat[0], offer=flat[1], ad=flat[2])


def affinity_of(context: Context[Tensor], slate: Tensor) -> Tensor:
    """Return the shopper's affinity with each item of a slate, both (B, K); an empty slot has 0."""
    same = context.candidates[:, None, :] == slate[:, :, None]
    return (same * context.affinity[:, None, :]).sum(-1)
