"""Logged pages as tensors: what was shown to whom, what came of it, and how a shopper's pages follow each other."""

from __future__ import annotations

import math
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

APART = 1_800.0
"""Seconds between a shopper's visits, at least."""

LATE = 1_000_000
"""Rows that calibrate at most: a few numbers need no more."""

NUMBERS = ("page", "item", "position", "line", "offer")
"""Columns of rows that are whole numbers."""

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
        believed: What classes of taste expect given the pages before, see `hawker.simulators.taste_rows`: log-odds of a
            click and of a purchase after it, less their constants, shape (n, 2).
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
    believed: Tensor | None = None
    time: Timeline | None = None

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def start(self) -> Tensor:
        """The first row of each page, and n, shape (P + 1,)."""
        pages = torch.arange(len(self.shopper) + 1, device=self.page.device, dtype=self.page.dtype)
        return torch.searchsorted(self.page, pages)

    def take(self, pages: Tensor, time: Timeline | None = None) -> Rows:
        """Return the rows of those pages, which may repeat; ``time`` is how they now follow each other."""
        start = self.start
        counts = (start[1:] - start[:-1])[pages]
        rows = ranges(start[:-1][pages], counts)
        page = torch.repeat_interleave(torch.arange(len(pages), device=pages.device), counts)
        return replace(self.only(rows), shopper=self.shopper[pages], page=page, time=time)

    def only(self, rows: Tensor) -> Rows:
        """Return those rows alone, of the same pages, as numbers to compute with: on disk they may be narrower."""
        taken = {
            field.name: value[rows].to(torch.int64 if field.name in NUMBERS else torch.float32)
            for field in fields(self)
            if field.name not in ("shopper", "time") and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **taken)

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device."""
        here = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return replace(self, **{name: value.to(device) for name, value in here.items()})


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

    def to(self, device: torch.device) -> Timeline:
        """Return the timeline on a device."""
        return Timeline(*(getattr(self, field.name).to(device) for field in fields(self)))

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
        order: For each row, the number of its impression in the table, shape (n,); none for logs on disk.
        shopper: For each shopper of the timeline, or for each page where there is none, whom ``shopper_codes`` means.
        stamp: When each page was shown, in seconds since 1970, shape (P,), on the CPU.
    """

    rows: Rows
    order: npt.NDArray[np.int64]
    shopper: npt.NDArray[np.int64]
    stamp: Tensor

    def owners(self) -> npt.NDArray[np.int64]:
        """Return whom each row belongs to, shape (n,)."""
        page, time = self.rows.page.cpu().numpy(), self.rows.time
        pages = self.shopper if time is None else np.repeat(self.shopper, torch.diff(time.first).cpu().numpy())
        return np.asarray(pages[page])

    def late_pages(self, share: float) -> Tensor:
        """Mark the pages of the last ``share`` of the rows in time, shape (P,), on the CPU.

        Those of the very moment where the cut falls are all late. No more than ``LATE`` rows are.
        """
        counts = torch.diff(self.rows.start).cpu()
        n = int(counts.sum())
        late = min(n - math.floor((1.0 - share) * n), LATE)
        order = self.stamp.argsort(descending=True)
        # Pages up to the one with the last of so many rows.
        within = counts[order].cumsum(0) - counts[order] < late
        if not bool(within.any()):
            return torch.zeros(len(counts), dtype=torch.bool)
        return self.stamp >= self.stamp[order[within]].min()


def encode_log(
    impressions: pd.DataFrame, builder: ContextBuilder, lines: Lines | None, device: torch.device
) -> EncodedLog:
    """Encode a log's impressions, sorted by time, and put them on ``device``.

    Where no shopper has more than one page there is no timeline, and the rows keep the order of the table.
    """
    end = impressions["timestamp"].max()
    log = encode_piece(impressions, builder, lines, end)
    alone = int(log.shopper.max()) + 1 == len(log.rows.shopper)
    return replace(log, rows=replace(log.rows, time=None if alone else log.rows.time).to(device))


def encode_piece(
    impressions: pd.DataFrame,
    builder: ContextBuilder,
    lines: Lines | None,
    end: pd.Timestamp,
    events: pd.DataFrame | None = None,
) -> EncodedLog:
    """Encode whole shoppers of a log, sorted by time, with their timeline.

    Args:
        impressions: Their rows.
        builder: The shop's contexts and catalog.
        lines: The lines of copy that the log shows.
        end: The log's last moment.
        events: What the log knows shoppers to have done where no exposure is recorded: ``shopper_id`` and
            ``timestamp``. Half an hour or more from the pages beside it, an event is a visit of its own: who was there
            has come back, and was last seen then.
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
    known = impressions["shopper_id"].notna().to_numpy()[order][heads]
    last = end.value // 1000 / 1e6
    seen = _seen_elsewhere(impressions["shopper_id"], events, code[heads], stamp[heads], last)
    timeline = _timeline(code[heads], visit[heads], stamp[heads], known, last, seen)

    def tensor(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.array(values))

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
    return EncodedLog(rows, order, code[heads][timeline.first.numpy()[:-1]], tensor(stamp[heads]))


def _seen_elsewhere(
    shopper: pd.Series,
    events: pd.DataFrame | None,
    code: npt.NDArray[np.int64],
    stamp: npt.NDArray[np.float64],
    end: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return when each page's shopper was last seen elsewhere before it, and next after it, in seconds, (P,) each.

    Minus infinity and infinity stand for never. Seen elsewhere is who does something more than half an hour from any
    page of theirs, up to the log's end.

    Args:
        shopper: Ids of the impressions' shoppers, missing where unknown; the known ones have the first codes.
        events: What they did.
        code: The shopper of each page, ascending.
        stamp: The page's time, ascending within a shopper.
        end: The log's last second.
    """
    before, after = np.full(len(code), -np.inf), np.full(len(code), np.inf)
    if events is None:
        return before, after
    who = pd.Index(shopper.dropna().unique()).sort_values().get_indexer(events["shopper_id"])
    moment = events["timestamp"].to_numpy("datetime64[us]").astype(np.int64) / 1e6
    who, moment = who[(who >= 0) & (moment <= end)], moment[(who >= 0) & (moment <= end)]
    # One number for shopper and time: spans of two shoppers never touch.
    start = min(stamp.min(), moment.min(initial=np.inf))
    span = np.ceil(end - start) + 4 * APART
    page, event = code * span + (stamp - start), who * span + (moment - start)
    right = np.searchsorted(page, event, side="right")  # the first page after each event
    padded = np.concatenate([[-np.inf], page, [np.inf]])
    event = np.sort(event[(event - padded[right] > APART) & (padded[right + 1] - event > APART)])
    event = np.concatenate([[-np.inf], event, [np.inf]])
    later = np.searchsorted(event, page)
    own_before, own_after = event[later - 1] >= code * span, event[later] < (code + 1) * span
    before[own_before] = (event[later - 1] - code * span + start)[own_before]
    after[own_after] = (event[later] - code * span + start)[own_after]
    return before, after


def _timeline(
    code: npt.NDArray[np.int64],
    visit: npt.NDArray[np.int64],
    stamp: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_],
    end: float,
    seen_elsewhere: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
) -> Timeline:
    """Build the timeline of pages that stand shopper by shopper in order of time.

    Args:
        code: The shopper of each page, (P,).
        visit: Its visit.
        stamp: Its time, in seconds.
        known: Whether the log knows the shopper.
        end: The log's last second.
        seen_elsewhere: What ``_seen_elsewhere`` returned.
    """
    n = len(code)
    new_shopper, new_visit = np.ones(n, bool), np.ones(n, bool)
    new_shopper[1:] = code[1:] != code[:-1]
    new_visit[1:] = new_shopper[1:] | (visit[1:] != visit[:-1])
    first = np.flatnonzero(new_shopper)
    before, after = seen_elsewhere
    since = np.maximum(np.append(stamp[:1], stamp[:-1]), before)
    gap = np.where(new_shopper, 0.0, (stamp - since) / DAY).clip(min=0.0)
    opening = np.flatnonzero(new_visit)
    number = np.arange(n) - opening[np.cumsum(new_visit) - 1]
    last_of_visit, last_of_shopper = np.append(new_visit[1:], True), np.append(new_shopper[1:], True)
    closes = last_of_visit.astype(np.float64)
    # A page in the log's last half hour may not have been the last of its visit.
    closes[last_of_shopper & (end - stamp < APART)] = np.nan
    until = np.minimum(np.where(last_of_shopper, end, np.append(stamp[1:], end)), after)
    wait = (np.floor(until / DAY) - np.floor(stamp / DAY)).clip(min=0.0)  # visits may overlap
    came = ~last_of_shopper | np.isfinite(after)
    returned = np.where(last_of_visit & known, came.astype(np.float64), np.nan)
    seen = np.arange(n) - first[np.cumsum(new_shopper) - 1]
    first = np.flatnonzero(seen % LONGEST == 0)
    arrays = (gap, number.astype(np.float64), closes, wait, returned)
    return Timeline(
        torch.from_numpy(np.append(first, n)), *(torch.from_numpy(array.astype(np.float32)) for array in arrays)
    )
