"""What the logs know too little of: how often they show each item, ad, line and offer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.lines import Lines

ENOUGH = 50.0
"""Shows from which on a part is known: at a click rate of a tenth they leave that rate uncertain by 40%."""


@dataclass(frozen=True)
class Support:
    """How often a log shows what a page may show.

    Attributes:
        items: Impressions of each catalog item, shape (I,).
        ads: Its impressions as an ad, shape (I,).
        lines: Impressions of each line of the bank, shape (L,).
        offers: Pages of each discount tier, shape (T,); tiers that follow have none.
        visit: Pages of the longest visit, shape ().
    """

    items: Tensor
    ads: Tensor
    lines: Tensor
    offers: Tensor
    visit: Tensor

    @classmethod
    def from_impressions(cls, impressions: pd.DataFrame, catalog: Catalog, lines: Lines | None, offers: int) -> Support:
        """Count what the impressions show.

        Args:
            impressions: Rows of a log.
            catalog: Its items.
            lines: The bank that its copy is numbered in.
            offers: Discount tiers, T.
        """
        item = catalog.index(impressions["item_id"], "impressions column item_id")
        ad = item[(impressions["placement"] == "ad").to_numpy()]
        line = np.zeros(0, np.int64)
        if lines is not None and "copy" in impressions:
            line = lines.index(impressions["copy"])
        pages = impressions.drop_duplicates(["visit_id", "page"])
        tier = pages["offer"].to_numpy() if "offer" in pages else np.zeros(len(pages), np.int64)

        def count(values: npt.NDArray[Any], n: int) -> Tensor:
            return torch.from_numpy(np.bincount(values[values >= 0], minlength=n).astype(np.float32))

        bank, n_items = 0 if lines is None else len(lines), len(catalog)
        longest = torch.tensor(float(pages.groupby("visit_id").size().max()))
        return cls(count(item, n_items), count(ad, n_items), count(line, bank), count(tier, offers), longest)

    def plus(self, other: Support) -> Support:
        """Return the counts of two logs of the same shop, with no visit in common."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in ("items", "ads", "lines", "offers")}
        return Support(**counts, visit=torch.maximum(self.visit, other.visit))

    def missing(self, decision: Decision[Tensor]) -> Tensor:
        """Return how many of each page's impressions the log does not support, shape (B,), from 0 to K.

        An impression is as little known as the rarest of its item, its line, its being an ad and the page's offer. What
        was shown n times is missing by 1 - n / 50, and not at all from 50 times on.
        """
        slate = decision.slate
        items, ads, lines, offers = self._unknown
        found = _share(items, slate)
        if decision.ad is not None:
            ad = decision.ad[:, None] == torch.arange(slate.shape[1], device=slate.device)
            found = torch.maximum(found, _share(ads, slate.masked_fill(~ad, EMPTY)))
        if decision.copy is not None:
            found = torch.maximum(found, _share(lines, decision.copy))
        if decision.offer is not None:
            found = torch.maximum(found, _share(offers, decision.offer[:, None]))
        return (found * (slate != EMPTY)).sum(1)

    @cached_property
    def _unknown(self) -> list[Tensor]:
        """How much is missing of each item, ad, line and tier; then all of what has no count, and nothing of none."""
        return [
            torch.cat([(1.0 - counts / ENOUGH).clamp(min=0.0), counts.new_tensor([1.0, 0.0])])
            for counts in (self.items, self.ads, self.lines, self.offers)
        ]

    def save(self, path: Path) -> None:
        """Write the counts."""
        save_file({field.name: getattr(self, field.name).cpu() for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Support:
        """Read what ``save`` wrote."""
        return cls(**load_file(path, device=str(device)))


def _share(unknown: Tensor, shown: Tensor) -> Tensor:
    """Return how much is missing of each value shown (B, n), from a table of ``Support._unknown``."""
    return unknown[shown.clamp(max=len(unknown) - 2)]
