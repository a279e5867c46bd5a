"""The memory of a shopper model that learns no more, and its heads for leaving and coming back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hawker.simulators.frozen_pages import Came, Carried, Page
from hawker.simulators.memory import CLASSES, COUNTS, MOOD_SCALE, MOODS, Memory
from hawker.simulators.shopper import ShopperModel

Weights: TypeAlias = tuple[Tensor, Tensor]
"""Of a linear layer, transposed, and its biases."""


@dataclass(frozen=True)
class Before:
    """What n shoppers of one member bring to a page, as its heads see it.

    Attributes:
        memory: Of the recurrent unit, then surprises, classes and moods, shape (n, H).
        told: What the heads see, shape (n, TOLD).
        wishes: Changes of tastes, shape (n, wishes).
        carried: What this was made from.
    """

    memory: Tensor
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
        items: Tastes and entries of the items, shape (n, K, width).
        lines: Tastes and entries of the lines, shape (n, K, width), or None.
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
        self.start = self._start(memory)
        self.gain, self.wane, self.class_tastes = memory.gain, memory.wane.exp(), memory.class_tastes
        self.fade_page, self.fade_day = -memory.fade_page.exp(), -memory.fade_day.exp()
        self.range, self.ends_range = (memory.lowest, memory.highest), (memory.least, memory.most)
        self.one, self.ones = memory.gain.new_ones(1), memory.gain.new_ones(len(memory.look))
        self.look = memory.look.sigmoid() / 4
        first, last = two_layers(memory.tell)
        self.tell = (self._reads(first.weight), first.bias), _after_elu(last.weight, last.bias)
        read = nn.functional.pad(memory.mood.weight, (0, memory.read.in_features - memory.mood.in_features))
        self.read = _linear(torch.cat([memory.read.weight, read]), memory.read, memory.mood)
        gru: Any = memory.gru
        self.inward = _after_elu(gru.weight_ih_l0, gru.bias_ih_l0)
        self.onward: Weights = (gru.weight_hh_l0.T.contiguous(), gru.bias_hh_l0)
        self.ends = self._ends(model, memory.readable_width)

    def _start(self, memory: Memory) -> Weights:
        """Return what makes of features all that new shoppers begin with, before the unit's tanh."""
        width = [self.width, self.surprises, CLASSES, MOODS]
        weight = memory.starts.weight.new_zeros(self.hidden, memory.starts.in_features)
        bias = weight.new_zeros(self.hidden)
        for layer, place in ((memory.starts, 0), (memory.classes, 2)):
            weight.split(width)[place].copy_(layer.weight)
            bias.split(width)[place].copy_(layer.bias)
        return weight.T.contiguous(), bias

    def _reads(self, weight: Tensor) -> Tensor:
        """Return weights of the readable form, transposed, for the form of ``_readable``."""
        width = [self.width, self.surprises, self.surprises, CLASSES, MOODS]
        unit, surprises, means, shares, moods, rest = weight.split([*width, weight.shape[1] - sum(width)], 1)
        rows = torch.cat([unit, surprises / 4.0, torch.zeros_like(shares), MOOD_SCALE * moods, means, shares, rest], 1)
        return rows.T.contiguous()

    def _readable(self, memory: Tensor, shares: Tensor, share: Tensor) -> list[Tensor]:
        """Return the blocks that layers read of what is remembered (n, H), ``totals`` left out.

        Args:
            memory: What is remembered.
            shares: Of the classes, shape (n, CLASSES).
            share: What the mean surprise is of their sum, shape (n, 1).
        """
        return [memory, memory[:, self.width : self.width + self.surprises] * share, shares]

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
        return self._reads(rows[:, :-1]), rows[:, -1].contiguous(), torch.block_diag(*outer), hidden

    def before(self, scaled: Tensor, carried: Carried) -> Before:
        """Return what shoppers bring to a page; who has seen none yet begins with what their features say."""
        begin = torch.addmm(self.start[1], scaled, self.start[0])
        begin[:, : self.width].tanh_()
        memory = torch.addcmul(carried.memory[:, : self.hidden], begin, carried.new)  # zeros before the first page
        _, surprises, classes, _ = memory.split([self.width, self.surprises, CLASSES, MOODS], 1)
        shares = shares_of(classes)
        readable = [*self._readable(memory, shares, carried.share), carried.totals, carried.clock]
        (inner, bias), (outer, last) = self.tell
        told = torch.addmm(last, _elu_and_1(torch.addmm(bias, torch.cat(readable, 1), inner)), outer)
        wishes = surprises[:, : self.wishes] / torch.addcmul(self.one, carried.counts[:, 2:], self.wane)
        wishes = wishes.mul_(self.gain).addmm_(shares, self.class_tastes)
        return Before(memory, told, wishes, carried)

    def after(self, read: Read, came: Came) -> tuple[Tensor, Tensor]:
        """Return what is carried on from a page, and what comes next.

        Args:
            read: The page.
            came: What came of it.

        Returns:
            The memory, counts left out, (n, H); the log-odds that the visit ends and, where returns are known, those
            of coming back on a day of each interval, if not before, (n, 1 + intervals).
        """
        memory, number = self.remembered(read, came), read.before.carried.clock[:, -1:]  # of the page
        shares = shares_of(memory[:, self.width + self.surprises :][:, :CLASSES])
        readable = [*self._readable(memory, shares, came.share), came.totals, number]
        inner, biases, outer, hidden = self.ends
        ends = torch.addmm(biases, torch.cat(readable, 1), inner)
        odds = torch.mm(ends[:, :hidden].tanh(), outer).add_(ends[:, hidden:])
        return memory, odds.clamp_(*(bound[: odds.shape[1]] for bound in self.ends_range))

    def remembered(self, read: Read, came: Came) -> Tensor:
        """Return the memory that ``after`` returns, alone."""
        before, carried, entries = read.before, read.before.carried, self.tastes + self.rank
        surprise = torch.addcmul(came.clicked, read.anybody.sigmoid(), read.examined, value=-1.0)
        look = read.page.shown * self.look[: surprise.shape[1]]
        how = torch.stack([surprise, came.clicked, came.converted, look], 1)
        seen = torch.bmm(how, read.items[:, :, :entries])
        said = None if read.lines is None else torch.bmm(how, read.lines[:, :, :entries])
        excess = read.anybody - read.base
        liked = torch.bmm(how[:, 1:3], torch.stack([excess, excess.tanh()], 2)).flatten(1)
        met = self._met(read, seen, said, how.sum(2), self._likely(read, came), liked, came)
        weight, bias = self.read
        found = torch.addmm(bias, torch.cat([*met, carried.clock], 1), weight)
        unit, sums = before.memory.split([self.width, self.sums], 1)
        unit = self._gru(_elu_and_1(found[:, : 2 * self.width]), unit)
        kept = torch.addcmul(self.fade_page, carried.gap, self.fade_day).exp_()
        fresh = [*met[: 4 if self.has_lines else 3], found[:, 2 * self.width :]]
        sums = torch.cat(fresh, 1).addcmul_(sums, kept).clamp_(*self.range)
        return torch.cat([unit, sums], 1)

    def _likely(self, read: Read, came: Came) -> Tensor:
        """Return the log-likelihood of the clicks in each class, less their mean, shape (n, CLASSES)."""
        n, size = read.anybody.shape
        # Classes come first here: what is done to all of them alike runs along the items.
        tastes = self.class_tastes[:, : self.tastes]
        odds = torch.addmm(read.anybody.reshape(1, -1), tastes, read.items[:, :, : self.tastes].flatten(0, 1).T)
        if read.lines is not None:
            odds.addmm_(self.class_tastes[:, self.tastes :], read.lines[:, :, : self.tastes].flatten(0, 1).T)
        # A click's probability, or of none where there was none; 1 in an empty slot.
        none = 1.0 - came.clicked
        likely = odds.sigmoid_().mul_(read.examined.reshape(1, -1)).sub_(none.reshape(1, -1)).abs_()
        # A product with ones takes half as long as a sum.
        total = torch.mv(likely.clamp_(min=1e-6).log_().reshape(CLASSES * n, size), self.ones[:size])
        total = total.reshape(CLASSES, n)
        return (total - total.mean(0)).T

    def _met(
        self, read: Read, seen: Tensor, said: Tensor | None, how: Tensor, likely: Tensor, liked: Tensor, came: Came
    ) -> list[Tensor]:
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
        entered = [seen[:, 3, h:entries], seen[:, 1:3, h:entries].flatten(1)]
        return [*blocks, how[:, :1], likely, *entered, *words, how[:, 3:], came.sums, liked, *alike]

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


def _after_elu(weight: Tensor, bias: Tensor) -> Weights:
    """Return weights, transposed, and biases of a layer that reads ``_elu_and_1``."""
    return weight.T.contiguous(), bias - weight.sum(1)


def _elu_and_1(values: Tensor) -> Tensor:
    """Return the exponential linear unit, plus 1; torch's own unit takes several times as long on a CPU."""
    return values.clamp(max=0.0).exp_().add_(values.clamp(min=0.0))


def shares_of(classes: Tensor) -> Tensor:
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
