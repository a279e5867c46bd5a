"""The memory of a shopper model that learns no more, and its heads for leaving and coming back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hawker.simulators.frozen_pages import Came, Carried, Page
from hawker.simulators.memory import CLASSES, COUNTS, MOODS
from hawker.simulators.shopper import ShopperModel

Weights: TypeAlias = tuple[Tensor, Tensor]
"""Of a linear layer, transposed, and its biases."""

FILLED = 3
"""Columns after an item's entries in the memory: 1 for being there, and two that are filled page by page."""


@dataclass(frozen=True)
class Before:
    """What n shoppers of one member bring to a page, as its heads see it.

    Attributes:
        unit: Of the recurrent unit, shape (n, width).
        sums: Surprises, classes and moods, shape (n, sums).
        told: What the heads see, shape (n, TOLD).
        wishes: Changes of tastes, shape (n, wishes).
        carried: What this was made from.
    """

    unit: Tensor
    sums: Tensor
    told: Tensor
    wishes: Tensor
    carried: Carried


@dataclass(frozen=True)
class Read:
    """What a memory reads of a page, beside what came of it.

    Attributes:
        before: What its shoppers brought.
        anybody: Log-odds that anybody with their features clicks, shape (n, K), ``base`` their constant.
        examined: P(examined), 0 in an empty slot, shape (n, K).
        items: Tastes, entries, ``FILLED`` columns and log-odds by class of the items, shape (n, K, width); written to.
        lines: Tastes, entries and log-odds by class of the lines, shape (n, K, width), or None.
        page: The page.
    """

    before: Before
    anybody: Tensor
    base: Tensor
    examined: Tensor
    items: Tensor
    lines: Tensor | None
    page: Page


class FrozenMemory:
    """The memory of one model; see `hawker.simulators.memory.Memory`."""

    def __init__(self, model: ShopperModel) -> None:
        memory = model.memory
        assert memory is not None
        self.width, self.surprises, self.sums = memory.width, memory.surprises, memory.sums
        self.hidden, self.rank, self.wishes = memory.hidden - COUNTS, memory.rank, memory.wishes
        self.has_lines = memory.lines
        self.tastes = self.wishes // 2 if memory.lines else self.wishes
        self.start = _linear(torch.cat([memory.starts.weight, memory.classes.weight]), memory.starts, memory.classes)
        self.gain, self.wane, self.class_tastes = memory.gain, memory.wane.exp(), memory.class_tastes
        self.fade_page, self.fade_day = -memory.fade_page.exp(), -memory.fade_day.exp()
        self.one = memory.gain.new_ones(1)
        self.look = memory.look.sigmoid() / 4
        first, last = two_layers(memory.tell)
        self.tell = (self._unscaled(first.weight), first.bias), (last.weight.T.contiguous(), last.bias)
        read = nn.functional.pad(memory.mood.weight, (0, memory.read.in_features - memory.mood.in_features))
        self.read = _linear(torch.cat([memory.read.weight, read]), memory.read, memory.mood)
        gru: Any = memory.gru
        self.inward: Weights = (gru.weight_ih_l0.T.contiguous(), gru.bias_ih_l0)
        self.onward: Weights = (gru.weight_hh_l0.T.contiguous(), gru.bias_hh_l0)
        self.ends = self._ends(model, memory.readable_width)

    def _unscaled(self, weight: Tensor) -> Tensor:
        """Return weights of the readable form, transposed, for surprises that are not divided by 4."""
        weight = weight.clone()
        weight[:, self.width : self.width + self.surprises] /= 4.0
        return weight.T.contiguous()

    def _ends(self, model: ShopperModel, readable: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return one network of two layers for leaving and coming back, which read the same.

        Returns:
            Weights and biases of its hidden units and then of what goes straight to the outputs, weights from the
            hidden units to the outputs, and how many hidden units there are.
        """
        parts = [] if model.leave is None else [(model.leave.shift, model.leave.body, model.leave.shift.bias)]
        parts += [] if model.back is None else [(model.back.shift, model.back.body, model.back.level)]
        inner, straight, outer = [], [], []
        for shift, body, level in parts:
            first, last = two_layers(body)
            more = readable + 1 - first.in_features
            inner.append(torch.cat([nn.functional.pad(first.weight, (0, more)), first.bias[:, None]], 1))
            weight = nn.functional.pad(shift.weight, (0, more)).expand(last.out_features, -1)
            bias = last.bias + level + (0.0 if level is shift.bias else shift.bias)
            straight.append(torch.cat([weight, bias[:, None]], 1))
            outer.append(last.weight.T)
        rows, hidden = torch.cat([*inner, *straight]), sum(len(block) for block in inner)
        return self._unscaled(rows[:, :-1]), rows[:, -1].contiguous(), torch.block_diag(*outer), hidden

    def before(self, scaled: Tensor, carried: Carried) -> Before:
        """Return what shoppers bring to a page; who has seen none yet begins with what their features say."""
        parts = [self.width, self.surprises, CLASSES, MOODS]
        unit, surprises, classes, moods = carried.memory[:, : self.hidden].split(parts, 1)
        begin = torch.addmm(self.start[1], scaled, self.start[0])
        new = carried.counts[:, 2:] == 0
        unit = torch.where(new, begin[:, : self.width].tanh(), unit)
        classes = torch.where(new, begin[:, self.width :], classes)
        shares = _shares(classes)
        readable = [unit, surprises, surprises * carried.share, shares, moods, carried.totals, carried.clock]
        (inner, bias), (outer, last) = self.tell
        told = torch.addmm(last, _elu(torch.addmm(bias, torch.cat(readable, 1), inner)), outer)
        wishes = surprises[:, : self.wishes] / torch.addcmul(self.one, carried.counts[:, 2:], self.wane)
        wishes = wishes.mul_(self.gain).addmm_(shares, self.class_tastes)
        return Before(unit, torch.cat([surprises, classes, moods], 1), told, wishes, carried)

    def after(self, read: Read, came: Came) -> tuple[Tensor, Tensor]:
        """Return what is carried on from a page, and what comes next.

        Args:
            read: The page.
            came: What came of it.

        Returns:
            The memory, counts left out, (n, H); the log-odds that the visit ends and, where returns are known, those
            of coming back on a day of each interval, if not before, (n, 1 + intervals).
        """
        before, items, h = read.before, read.items, self.tastes
        carried, entries = before.carried, h + self.rank
        excess = items[:, :, entries + 1]
        torch.sub(read.anybody, read.base, out=excess)
        torch.tanh(excess, out=items[:, :, entries + 2])
        surprise = torch.addcmul(came.clicked, read.anybody.sigmoid(), read.examined, value=-1.0)
        look = read.page.shown * self.look[: surprise.shape[1]]
        how = torch.stack([surprise, came.clicked, came.converted, look], 1)
        seen = torch.bmm(how, items[:, :, : entries + FILLED])
        likely = items[:, :, entries + FILLED :] + read.anybody[:, :, None]
        said = None
        if read.lines is not None:
            likely += read.lines[:, :, entries:]
            said = torch.bmm(how, read.lines[:, :, :entries])
        likely = likely.sigmoid_().mul_(read.examined[:, :, None])
        # A click's probability, or of none where there was none; 1 in an empty slot.
        likely = likely.sub_((1.0 - came.clicked)[:, :, None]).abs_().clamp_(min=1e-6).log_().sum(1)
        likely -= likely.mean(1, keepdim=True)
        met = self._met(read, seen, said, likely, came)
        weight, bias = self.read
        found = torch.addmm(bias, torch.cat([*met, carried.clock], 1), weight)
        unit = self._gru(_elu(found[:, : 2 * self.width]), before.unit)
        kept = torch.addcmul(self.fade_page, carried.gap, self.fade_day).exp_()
        fresh = [*met[: 4 if self.has_lines else 3], found[:, 2 * self.width :]]
        sums = torch.cat(fresh, 1).addcmul_(before.sums, kept)
        surprises, classes, moods = sums.split([self.surprises, CLASSES, MOODS], 1)
        readable = [unit, surprises, surprises * came.share, _shares(classes), moods, came.totals]
        readable.append(carried.clock[:, -1:])  # the page's number
        inner, biases, outer, hidden = self.ends
        ends = torch.addmm(biases, torch.cat(readable, 1), inner)
        odds = torch.mm(ends[:, :hidden].tanh(), outer).add_(ends[:, hidden:])
        return torch.cat([unit, sums], 1), odds

    def _met(self, read: Read, seen: Tensor, said: Tensor | None, likely: Tensor, came: Came) -> list[Tensor]:
        """Return the blocks of what the unit reads, in the order of ``ShopperModel.summary`` and ``Memory._met``."""
        h, entries, wishes = self.tastes, self.tastes + self.rank, read.before.wishes
        alike = [torch.bmm(seen[:, 1:3, :h], wishes[:, :h, None]).squeeze(2)]
        blocks = [seen[:, 0, :h]]
        words: list[Tensor] = []
        if self.has_lines:
            if said is None:
                said = seen.new_zeros(1, 4, entries).expand(len(seen), -1, -1)
            blocks.append(said[:, 0, :h])
            spoken, tier = said[:, 1, h:], read.page.tier
            words = [said[:, 3, h:], spoken, spoken if tier is None else spoken * tier[:, :1]]
            more = torch.bmm(said[:, 1:3, :h], wishes[:, h:, None]).squeeze(2)
            alike = [alike[0][:, :1], more[:, :1], alike[0][:, 1:], more[:, 1:]]
        liked = seen[:, 1:3, entries + 1 : entries + 3].flatten(1)
        entered = [seen[:, 3, h:entries], seen[:, 1:3, h:entries].flatten(1)]
        surprise, look = seen[:, 0, entries : entries + 1], seen[:, 3, entries : entries + 1]
        return [*blocks, surprise, likely, *entered, *words, look, came.sums, liked, *alike]

    def _gru(self, moved: Tensor, unit: Tensor) -> Tensor:
        here = torch.addmm(self.inward[1], moved, self.inward[0])
        there = torch.addmm(self.onward[1], unit, self.onward[0])
        gates = (here[:, : 2 * self.width] + there[:, : 2 * self.width]).sigmoid_()
        reset, keep = gates.split(self.width, 1)
        new = torch.addcmul(here[:, 2 * self.width :], reset, there[:, 2 * self.width :]).tanh_()
        return torch.lerp(new, unit, keep)


def _linear(weight: Tensor, *layers: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weights, transposed, and the layers' biases one after the other."""
    return weight.T.contiguous(), torch.cat([layer.bias for layer in layers])


def _elu(values: Tensor) -> Tensor:
    """Return the exponential linear unit; torch's own takes several times as long on a CPU."""
    return values.clamp(max=0.0).exp_().sub_(1.0).add_(values.clamp(min=0.0))


def _shares(classes: Tensor) -> Tensor:
    """Return the softmax over few classes; torch's own takes several times as long on a CPU."""
    shares = (classes - classes.amax(1, keepdim=True)).exp_()
    return shares.div_(shares.sum(1, keepdim=True))


def two_layers(tower: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """Return the linear layers of a tower with one hidden layer."""
    assert isinstance(tower, nn.Sequential)
    first, last = tower[0], tower[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return first, last
