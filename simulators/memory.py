"""What a shopper carries from page to page and from visit to visit, and when they come back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.simulators.layers import Gru, Linear
from hawker.simulators.rows import Rows, Timeline

EDGES = (*range(11), 12, 14, 17, 21, 26, 32, 40, 50, 64)
"""First day of each interval of the return hazard; the last one has no end."""


class Memory(nn.Module):
    """What is carried from page to page: a gated recurrent unit, running sums, latent classes, and counts.

    The unit (Cho et al. 2014, arXiv 1406.1078) reads which items were shown, clicked and bought, under what kind of
    lines of copy (see ``ShopperModel.heard``) and offers, whether one was an ad, and how long ago the page before was.
    Surprises are clicks minus what was expected of anybody with these features, times the tastes of what was shown: the
    gradient of the log-likelihood in the shopper's own tastes, slowly forgotten, as in score-driven models (Creal,
    Koopman, Lucas 2013, Journal of Applied Econometrics 28 (5)). Classes of shoppers have tastes of their own (Kamakura
    and Russell 1989, Journal of Marketing Research 26 (4)); which of them a shopper is of is followed by Bayes' rule,
    from the likelihood of their clicks, and slowly forgotten too, since tastes drift. Moods are running sums of what a
    linear layer makes of each page and of how well its clicks and purchases met the wishes held before. All sums fade
    page by page and day by day. Counts are of visits, days and pages.

    Attributes:
        hidden: Entries of what is carried, H.
        lowest, highest: Range of the sums over the log, shape (sums,). A simulated shopper's do not leave it: what they
            would do there nobody has seen, and a shopper who likes what they see feeds their own sums.
        least, most: Range over the log of the log-odds that a visit ends and of those of coming back in each interval
            of ``EDGES``, shape (1 + len(EDGES),), which a simulated shopper's do not leave either: sums that are all
            high at once are as new as one that is higher than any.
        readable_width: Entries of its readable form, R.
    """

    lowest: Tensor
    highest: Tensor
    least: Tensor
    most: Tensor

    def __init__(
        self, builder: ContextBuilder, line_width: int, offers: int, size: int, width: int, surprises: int
    ) -> None:
        """Build an unfilled memory with a unit of ``width`` and ``surprises`` running sums."""
        super().__init__()
        rank, n_items = 16, len(builder.catalog)
        self.rank, self.offers, self.lines = rank, offers, line_width > 0
        self.width, self.surprises, self.sums = width, surprises, surprises + CLASSES + MOODS
        self.hidden = width + self.sums + COUNTS
        self.readable_width = width + 2 * surprises + CLASSES + MOODS + COUNTS
        self.item = Linear(builder.catalog.width, rank, bias=False)
        self.own_item = nn.Embedding.from_pretrained(torch.zeros(n_items, rank), freeze=False)
        self.line = nn.Sequential(Linear(line_width, rank), nn.ELU()) if line_width else None
        self.look = nn.Parameter(torch.zeros(size))  # how much an exposure at a position counts
        summary = 3 * rank + 7 + 2 * offers + (3 * rank if line_width else 0)
        self.wishes = surprises - OTHER_SURPRISES
        self.alike = 2 * (1 if line_width == 0 else 2)  # how well pages met the wishes
        self.read = Linear(summary + surprises + CLASSES + LIKED + self.alike + CLOCK, 2 * width)
        self.gru = Gru(2 * width, width, batch_first=True)
        self.starts = Linear(builder.shopper.width, width)
        self.classes = Linear(builder.shopper.width, CLASSES)
        self.class_weights = nn.Parameter(torch.zeros(CLASSES, surprises - OTHER_SURPRISES))
        self.mood = Linear(summary + surprises + CLASSES + LIKED + self.alike, MOODS)
        # Logarithms of the rates at which sums fade, by page and by day; the moods start at several speeds.
        speeds = torch.linspace(-5.0, -2.0, MOODS)
        self.fade_page = nn.Parameter(torch.cat([torch.full((surprises + CLASSES,), -4.0), speeds]))
        self.fade_day = nn.Parameter(torch.cat([torch.full((surprises + CLASSES,), -5.0), speeds]))
        self.tell = nn.Sequential(Linear(self.readable_width + CLOCK, 32), nn.ELU(), Linear(32, TOLD))
        self.gain = nn.Parameter(torch.full((self.wishes,), 2.0))
        self.wane = nn.Parameter(torch.full((self.wishes,), -2.5))
        self.register_buffer("lowest", torch.full((self.sums,), -torch.inf))
        self.register_buffer("highest", torch.full((self.sums,), torch.inf))
        self.register_buffer("least", torch.full((1 + len(EDGES),), -torch.inf))
        self.register_buffer("most", torch.full((1 + len(EDGES),), torch.inf))

    def keep_within(self, carried: Tensor, ends: list[Tensor]) -> None:
        """Take ranges from a log: all but the rarest at either end.

        Args:
            carried: What was carried on from its pages, shape (P, H).
            ends: Log-odds that visits ended with them (P, 1), then, if known, of coming back after (P, len(EDGES)).
        """
        self.lowest, self.highest = _range(carried[:, self.width : self.width + self.sums])
        bounds, unknown = _range(torch.cat(ends, 1)), (0, 1 + len(EDGES) - sum(part.shape[1] for part in ends))
        self.least, self.most = (nn.functional.pad(bound, unknown) for bound in bounds)

    def start(self, shopper: Tensor) -> Tensor:
        """Return what new shoppers with scaled features (B, D) begin with, shape (B, H)."""
        unit = nn.functional.pad(self.starts(shopper).tanh(), (0, self.surprises))
        return nn.functional.pad(torch.cat([unit, self.classes(shopper)], 1), (0, MOODS + COUNTS))

    def readable(self, carried: Tensor) -> Tensor:
        """Return what is carried (B, H) in a form for layers to read, shape (B, R)."""
        unit, surprises, classes, moods, counts = carried.split([self.width, self.surprises, CLASSES, MOODS, COUNTS], 1)
        visits, days, pages = counts.unbind(1)
        mean = surprises / (2.0 + pages[:, None] / 8.0)
        rate = (visits + 0.5).log() - (days + 7.0).log()
        totals = torch.stack([visits.log1p() / 2.0, days.log1p() / 3.0, rate / 2.0], 1)
        return torch.cat([unit, surprises / 4.0, mean, classes.softmax(1), MOOD_SCALE * moods, totals], 1)

    def _wished(self, sums: Tensor, pages: Tensor) -> Tensor:
        """Return changes of tastes, shape (P, wishes), from running sums (P, >= wishes) and pages seen (P, 1).

        A running sum of surprises times a gain that wanes with the pages seen: one step of Newton's from nothing known
        towards the most likely tastes, with learned prior and information.
        """
        step = self.gain * sums[:, : self.wishes] / (1.0 + pages * self.wane.exp())
        return step + sums[:, self.surprises : self.surprises + CLASSES].softmax(1) @ self.class_tastes

    @property
    def class_tastes(self) -> Tensor:
        """What shoppers of each class like beside anybody, shape (CLASSES, wishes)."""
        return CLASS_SCALE * self.class_weights

    def _met(self, summary: Tensor, wishes: Tensor) -> Tensor:
        """Return what is read of pages, with how well what was clicked and bought met the wishes held before."""
        read, tastes = summary[:, : -2 * self.wishes], summary[:, -2 * self.wishes :]
        products = tastes.unflatten(1, (self.alike, -1)) * wishes.unflatten(1, (self.alike // 2, -1)).repeat(1, 2, 1)
        return torch.cat([read, products.sum(2)], 1)

    def _fading(self, gap: Tensor) -> Tensor:
        """Return the logarithm of what is left of the sums at a page, from days since the one before: (P, sums)."""
        return -self.fade_page.exp() - self.fade_day.exp() * gap[:, None]

    def before(self, carried: Tensor, clock: Tensor | None) -> Tensor:
        """Return what the heads see before a page, shape (B, TOLD + wishes): the wishes are changes of tastes.

        Args:
            carried: What is carried from the page before, shape (B, H).
            clock: The clock of this page, shape (B, CLOCK); None for the first page of new shoppers.
        """
        if clock is None:
            clock = clock_of(carried.new_zeros(len(carried)), carried.new_zeros(len(carried)))
        told: Tensor = self.tell(torch.cat([self.readable(carried), clock], 1))
        return torch.cat([told, self._wished(carried[:, self.width :], carried[:, -1:])], 1)

    def after(self, carried: Tensor, gap: Tensor, number: Tensor, summary: Tensor) -> Tensor:
        """Return what is carried on from a page, shape (B, H).

        Args:
            carried: What was carried to it, shape (B, H).
            gap: Days since the page before, shape (B,).
            number: Its number within its visit, shape (B,).
            summary: What ``ShopperModel.summary`` returned of it, shape (B, width).
        """
        unit, sums, counts = carried.split([self.width, self.sums, COUNTS], 1)
        met = self._met(summary, self._wished(sums, counts[:, -1:]))
        read = nn.functional.elu(self.read(torch.cat([met, clock_of(gap, number)], 1)))
        unit = self.gru(read[:, None], unit[None].contiguous())[0][:, 0]
        sums = sums * self._fading(gap).exp() + torch.cat([self._surprises(summary), self.mood(met)], 1)
        sums = sums.clamp(self.lowest, self.highest)
        return torch.cat([unit, sums, counts + _count(gap, number)], 1)

    def _surprises(self, summary: Tensor) -> Tensor:
        return summary[:, : self.surprises + CLASSES]

    def summary(self, rows: Rows, item_vectors: Tensor, line_vectors: Tensor | None, keep_own: Tensor | None) -> Tensor:
        """Return what the unit reads of pages that were answered, surprises left out, shape (P, width)."""
        own = self.own_item.weight if keep_own is None else self.own_item.weight * keep_own[:, None]
        items = (self.item(item_vectors) + own)[rows.item.clamp(min=0)]
        shown = (rows.item != EMPTY).to(rows.clicked.dtype)
        look = self.look.sigmoid()[rows.position] * shown
        zero = torch.zeros_like(rows.clicked)
        bought = zero if rows.converted is None else rows.converted.nan_to_num()
        earned = zero if rows.revenue is None else rows.revenue.nan_to_num().clamp(min=0.0).log1p()
        ad = zero if rows.ad is None else rows.ad
        tier = zero.long() if rows.offer is None else rows.offer
        offer = nn.functional.one_hot(tier, self.offers).to(items.dtype)
        parts = [items * look[:, None] / 4, items * rows.clicked[:, None], items * bought[:, None]]
        if self.line is not None and rows.line is not None and line_vectors is not None:
            said = self.line(line_vectors)[rows.line.clamp(min=0)] * ((rows.line >= 0) & (shown > 0))[:, None]
            free = (tier == 0).to(items.dtype)
            parts += [said * look[:, None] / 4, said * rows.clicked[:, None], said * (rows.clicked * free)[:, None]]
        elif self.lines:
            parts.append(items.new_zeros(items.shape[0], 3 * self.rank))
        counts = (look / 4, shown / 8, rows.clicked, bought, earned / 4, ad, ad * rows.clicked)
        parts += [torch.stack(counts, 1), offer * shown[:, None] / 8, offer * rows.clicked[:, None]]
        values = torch.cat(parts, 1)
        return values.new_zeros(rows.shopper.shape[0], values.shape[1]).index_add(0, rows.page, values)

    def run(self, shopper: Tensor, summary: Tensor, time: Timeline) -> tuple[Tensor, Tensor]:
        """Return what the heads see before each page (P, TOLD + wishes) and what is carried on from it (P, H).

        Args:
            shopper: Scaled features of each page's shopper, shape (P, D).
            summary: What ``ShopperModel.summary`` returned, shape (P, width).
            time: How the pages follow each other.
        """
        count = time.first[1:] - time.first[:-1]
        longest, n = int(count.max()), len(time)
        who = torch.repeat_interleave(torch.arange(n, device=count.device), count)
        place = who * longest + torch.arange(len(who), device=count.device) - time.first[:-1][who]

        def laid(values: Tensor) -> Tensor:
            empty = values.new_zeros(n * longest, values.shape[1])
            return empty.index_copy(0, place, values).reshape(n, longest, -1)

        def before(values: Tensor, start: Tensor) -> Tensor:
            return torch.cat([start[:, None], values[:, :-1]], 1).reshape(n * longest, -1)[place]

        clock, begin = clock_of(time.gap, time.number), self.start(shopper[time.first[:-1]])
        start, nothing, none = begin.split([self.width, self.sums, COUNTS], 1)
        counts = laid(_count(time.gap, time.number)).cumsum(1)
        keep = laid(self._fading(time.gap).exp())
        told = self.surprises + CLASSES
        surprises = leaky_sums(laid(self._surprises(summary)), keep[:, :, :told], nothing[:, :told])
        wishes = self._wished(before(surprises, nothing[:, :told]), before(counts, none)[:, -1:])
        met = self._met(summary, wishes)
        moods = leaky_sums(laid(self.mood(met)), keep[:, :, told:], nothing[:, told:])
        read = nn.functional.elu(self.read(torch.cat([met, clock], 1)))
        unit, _ = self.gru(laid(read), start[None].contiguous())
        carried = torch.cat([unit, surprises, moods, counts], 2)
        return self.before(before(carried, begin), clock), carried.reshape(n * longest, -1)[place]


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest values of each column but for the rarest, from (P, w): (w,) both."""
    ranked = values.sort(0).values
    rarest = int(len(ranked) * RAREST)
    return ranked[rarest].clone(), ranked[-1 - rarest].clone()


RAREST = 0.005
"""Share of pages beyond either end of the range that simulated shoppers keep to."""

TOLD = 12
"""Entries of what the heads see: fewer than are carried, so that a head cannot learn histories by heart."""

OTHER_SURPRISES = 1
"""Running sums that are not in tastes: of clicks."""

LIKED = 4
"""How well liked by anybody was what was clicked and bought, as items and as answers."""

CLASSES = 8
"""Latent classes of tastes."""

CLASS_SCALE = 6.0
"""Tastes of a class per unit of their weights: Adam moves all weights alike, and classes have to part early."""

COUNTS = 3
"""Counts that are carried: visits, days and pages."""

CLOCK = 5
"""Entries of a clock."""

MOODS = 8
"""Running sums of what a linear layer makes of pages."""

MOOD_SCALE = 6.0
"""Moods as they are read: what pages do to them is small, and what they do is not to be shrunk twice."""


def leaky_sums(values: Tensor, keep: Tensor, start: Tensor) -> Tensor:
    """Return a_t = keep_t a_(t-1) + values_t along the second axis, shape (n, T, S), from ``start`` a_0 (n, S)."""
    found: Tensor = _LeakySums.apply(values, keep, start)  # type: ignore[no-untyped-call]
    return found


class _LeakySums(torch.autograd.Function):
    """The recurrence and its gradient, which is the same recurrence backwards: torch would record 3 T steps of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, keep: Tensor, start: Tensor) -> Tensor:
        sums = values.clone()
        total = start
        for here, left in zip(sums.unbind(1), keep.unbind(1), strict=True):
            total = here.addcmul_(left, total)
        ctx.save_for_backward(keep, start, sums)
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, start, sums = ctx.saved_tensors
        found = gradient.clone()
        steps, lefts = found.unbind(1), keep.unbind(1)
        for t in range(len(steps) - 1, 0, -1):
            steps[t - 1].addcmul_(lefts[t], steps[t])
        before = torch.cat([start[:, None], sums[:, :-1]], 1)
        return found, found * before, steps[0] * lefts[0]


def _count(gap: Tensor, number: Tensor) -> Tensor:
    return torch.stack([(number == 0).to(gap.dtype), gap, torch.ones_like(gap)], 1)


def clock_of(gap: Tensor, number: Tensor) -> Tensor:
    """Return days since the page before (B,) and the page's number within its visit (B,) as features (B, CLOCK)."""
    opens = (number == 0).to(gap.dtype)
    short, long = 1.0 - torch.exp(-gap / 3.0), 1.0 - torch.exp(-gap / 14.0)
    return torch.stack([opens, gap.log1p() / 3.0, short, long, number.log1p()], 1)


class Leave(nn.Module):
    """Whether a visit ends with a page: a linear layer and a small one with a hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = Linear(width, 1)
        self.body = nn.Sequential(Linear(width, 16), nn.Tanh(), Linear(16, 1))

    def forward(self, readable: Tensor) -> Tensor:
        """Return the log-odds that the visit ends: (B, R + 1) to (B, 1)."""
        odds: Tensor = self.shift(readable) + self.body(readable)
        return odds


class Return(nn.Module):
    """The days until the next visit: a hazard for each day, constant within the intervals of ``EDGES``.

    A shopper's hazard is the mean one with a shift on the log-odds that is the same for all days, and small ones that
    are not.

    References:
        Discrete-time survival: Singer and Willett (1993), It's About Time, Journal of Educational Statistics 18 (2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.full((len(EDGES),), -2.0))
        self.shift = Linear(width, 1)
        self.body = nn.Sequential(Linear(width, 16), nn.Tanh(), Linear(16, len(EDGES)))

    def forward(self, readable: Tensor) -> Tensor:
        """Return the log-odds of returning on a day of each interval, if not before: (B, R) to (B, len(EDGES))."""
        odds: Tensor = self.level + self.shift(readable) + self.body(readable)
        return odds


def days_at_risk(wait: Tensor, returned: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each interval how many days passed in it without a return and whether one came: both (B, len(EDGES)).

    Args:
        wait: Whole days until the return, or that were waited for one in vain, shape (B,).
        returned: 1 where there was a return, shape (B,). In vain means that the day itself has not ended: it is not
            counted.
    """
    edges = torch.tensor(EDGES, device=wait.device, dtype=wait.dtype)
    ends = torch.cat([edges[1:], edges.new_full((1,), torch.inf)])
    passed = (wait[:, None].clamp(max=1e6) - edges).clamp(min=0.0).minimum(ends - edges)
    came = ((wait[:, None] >= edges) & (wait[:, None] < ends)).to(wait.dtype) * returned[:, None]
    return passed, came
