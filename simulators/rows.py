"""Logged pages as tensors: what was shown to whom, what came of it, and how a shopper's pages follow each other."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.shop.context import ContextBuilder
from hawker.shop.lines import Lines
from hawker.simulators.split import shopper_codes

DAY = 86_400.0

LONGEST = 512
"""Pages of one history: who has seen more begins anew, so that a tireless visitor costs no more than many shoppers."""


@dataclass(frozen=True)
class Rows:
    """P pages and the n impressions on them, page by page from the top; pages of a shopper in order of time.

    What a log does not record is None; so is everything that came of pages not shown yet.

    Attributes:
        shopper: Encoded shopper features of each page, shape (P, D).
        page: The page of each impression, ascending, shape (n,).
        item: Catalog index, shape (n,).
        position: Position on the page, shape (n,).
        affinity: The shopper's affinity with the item, shape (n,).
        clicked: 1 where it was clicked, shape (n,).
        converted: 1 where the click led to a purchase; NaN where not known, shape (n,).
        revenue: Currency earned, shape (n,).
        line: Number of the line of copy shown with it, -1 for none, shape (n,).
        offer: Discount tier, shape (n,).
        ad: 1 where the item was shown as an ad, shape (n,).
        time: How the pages of a shopper follow each other.
    """

    shopper: Tensor
    page: Tensor
    item: Tensor
    position: Tensor
    affinity: Tensor
    clicked: Tensor
    converted: Tensor | None = None
    revenue: Tensor | None = None
    line: Tensor | None = None
    offer: Tensor | None = None
    ad: Tensor | None = None
    time: Timeline | None = None

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def _start(self) -> Tensor:
        return torch.searchsorted(self.page, torch.arange(len(self.shopper) + 1, device=self.page.device))

    def take(self, pages: Tensor, time: Timeline | None = None) -> Rows:
        """Return the rows of those pages, which may repeat; ``time`` is how they now follow each other."""
        start = self._start
        counts = (start[1:] - start[:-1])[pages]
        rows = ranges(start[:-1][pages], counts)
        page = torch.repeat_interleave(torch.arange(len(pages), device=pages.device), counts)
        return replace(self.only(rows), shopper=self.shopper[pages], page=page, time=time)

    def only(self, rows: Tensor) -> Rows:
        """Return those rows alone, of the same pages."""
        taken = {
            field.name: value[rows]
            for field in fields(self)
            if field.name not in ("shopper", "time") and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **taken)


@dataclass(frozen=True)
class Timeline:
    """How the P pages of S shoppers follow each other. Shoppers are whoever the log tells apart: ids, else visits.

    Who has more than ``LONGEST`` pages is several shoppers here, one after the other.

    Attributes:
        first: The first page of each shopper, and P, shape (S + 1,).
        gap: Days since the shopper's page before, 0 at the first, shape (P,).
        number: Number of the page within its visit, from 0, shape (P,).
        closes: 1 on the last page of a visit, NaN where the log ends before one can know, shape (P,).
        wait: Whole days until the visit after this one, or that the log went on without one, shape (P,).
        returned: 1 where there was one, 0 where the wait is censored, NaN where no visit ends or nobody knows (P,).
    """

    first: Tensor
    gap: Tensor
    number: Tensor
    closes: Tensor
    wait: Tensor
    returned: Tensor

    def __len__(self) -> int:
        return len(self.first) - 1

    def pages(self, shoppers: Tensor) -> Tensor:
        """Return the pages of those shoppers, one shopper after the other."""
        return ranges(self.first[shoppers], (self.first[1:] - self.first[:-1])[shoppers])

    def take(self, shoppers: Tensor) -> Timeline:
        """Return the timeline of those shoppers, in that order; they may repeat."""
        pages = self.pages(shoppers)
        counts = (self.first[1:] - self.first[:-1])[shoppers]
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        rest = (self.gap, self.number, self.closes, self.wait, self.returned)
        return Timeline(first, *(array[pages] for array in rest))


def ranges(start: Tensor, count: Tensor) -> Tensor:
    """Return start[0], start[0] + 1, ... (count[0] of them), start[1], ...: shape (sum of count,)."""
    offset = count.cumsum(0) - count
    return torch.repeat_interleave(start - offset, count) + torch.arange(int(count.sum()), device=start.device)


@dataclass(frozen=True)
class EncodedLog:
    """A log as rows, and where its impressions and shoppers went.

    Attributes:
        rows: The rows.
        order: For each row, the number of its impression in the table, shape (n,).
        shopper: For each shopper of the timeline, or for each page where there is none, whom ``shopper_codes`` means.
    """

    rows: Rows
    order: npt.NDArray[np.int64]
    shopper: npt.NDArray[np.int64]


def encode_log(
    impressions: pd.DataFrame, builder: ContextBuilder, lines: Lines | None, device: torch.device
) -> EncodedLog:
    """Encode a log's impressions, sorted by time, and put them on ``device``.

    Where no shopper has more than one page there is no timeline, and the rows keep the order of the table.
    """
    code = shopper_codes(impressions)
    stamp = impressions["timestamp"].to_numpy("datetime64[us]").astype(np.int64) / 1e6
    visit = pd.factorize(impressions["visit_id"])[0]
    opened = np.full(visit.max(initial=-1) + 1, np.inf)
    np.minimum.at(opened, visit, stamp)
    page_number, position = (impressions[name].to_numpy(np.int64) for name in ("page", "position"))
    order = np.lexsort((position, page_number, visit, opened[visit], code))
    code, visit, page_number, stamp = code[order], visit[order], page_number[order], stamp[order]
    head = np.ones(len(order), bool)
    head[1:] = (visit[1:] != visit[:-1]) | (page_number[1:] != page_number[:-1])
    heads = np.flatnonzero(head)
    timeline = None
    if len(np.unique(code[heads])) < len(heads):
        known = impressions["shopper_id"].notna().to_numpy()[order][heads]
        timeline = _timeline(code[heads], visit[heads], stamp[heads], known, float(stamp.max()))
        owner = code[heads][timeline.first.numpy()[:-1]]
        timeline = Timeline(*(getattr(timeline, field.name).to(device) for field in fields(Timeline)))
    else:
        owner = code[heads]

    def tensor(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.array(values)).to(device)

    def column(name: str) -> Tensor | None:
        if name not in impressions or impressions[name].isna().all():
            return None
        return tensor(impressions[name].to_numpy(np.float32)[order])

    item = builder.catalog.index(impressions["item_id"], "impressions")
    ad = (impressions["placement"] == "ad").to_numpy()[order]
    offer = impressions["offer"].to_numpy(np.int64)[order] if "offer" in impressions else np.zeros(0, np.int64)
    clicked = column("clicked")
    assert clicked is not None
    rows = Rows(
        shopper=tensor(builder.encode_shoppers(impressions.iloc[order[heads]])),
        page=tensor(np.cumsum(head) - 1),
        item=tensor(item[order]),
        position=tensor(position[order]),
        affinity=tensor(builder.own_affinity(impressions, item)[order]),
        clicked=clicked,
        converted=column("converted"),
        revenue=column("revenue"),
        line=None if lines is None or "copy" not in impressions else tensor(lines.index(impressions["copy"])[order]),
        offer=tensor(offer) if offer.any() else None,
        ad=tensor(ad.astype(np.float32)) if ad.any() else None,
        time=timeline,
    )
    return EncodedLog(rows, order, owner)


def _timeline(
    code: npt.NDArray[np.int64],
    visit: npt.NDArray[np.int64],
    stamp: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_],
    end: float,
) -> Timeline:
    """Build the timeline of pages that stand shopper by shopper in order of time; ``end`` is the log's last second."""
    n = len(code)
    new_shopper, new_visit = np.ones(n, bool), np.ones(n, bool)
    new_shopper[1:] = code[1:] != code[:-1]
    new_visit[1:] = new_shopper[1:] | (visit[1:] != visit[:-1])
    first = np.flatnonzero(new_shopper)
    gap = np.where(new_shopper, 0.0, np.diff(stamp, prepend=stamp[0]) / DAY).clip(min=0.0)
    opening = np.flatnonzero(new_visit)
    number = np.arange(n) - opening[np.cumsum(new_visit) - 1]
    last_of_visit, last_of_shopper = np.append(new_visit[1:], True), np.append(new_shopper[1:], True)
    closes = last_of_visit.astype(np.float64)
    # A page in the log's last half hour may not have been the last of its visit.
    closes[last_of_shopper & (end - stamp < 1_800.0)] = np.nan
    until = np.where(last_of_shopper, end, np.append(stamp[1:], end))
    wait = (np.floor(until / DAY) - np.floor(stamp / DAY)).clip(min=0.0)  # visits may overlap
    returned = np.where(last_of_visit & known, (~last_of_shopper).astype(np.float64), np.nan)
    seen = np.arange(n) - first[np.cumsum(new_shopper) - 1]
    first = np.flatnonzero(seen % LONGEST == 0)
    arrays = (gap, number.astype(np.float64), closes, wait, returned)
    return Timeline(
        torch.from_numpy(np.append(first, n)), *(torch.from_numpy(array.astype(np.float32)) for array in arrays)
    )
