"""Fitting classes of taste to a log: all shoppers at once, by gradient steps on their marginal likelihood."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.lines import Lines
from hawker.simulators.appeal import Recorded
from hawker.simulators.rows import Rows, Timeline
from hawker.simulators.taste_classes import CLASSES, FADES, TasteClasses, log_likelihood, part_sum

STEPS = 100
"""Steps of the fit, each over the whole log."""

STARTS, FIRST_STEPS = 3, 20
"""Sets of first weights, and steps after which only the likeliest of them goes on: a poor start merges two classes."""

STEP_SIZE = 0.05

FOLDS, REFIT = 8, 20
"""Parts that shoppers fall into, and last steps of the fit that are taken again without one of them."""

FEW = 8
"""Shoppers of a part, at least; where there are fewer, all are in one."""

FIRST_SPREAD = 0.05
"""Standard deviation of the first weights in which classes differ."""

BLOCK = 1_000_000
"""Rows computed with at once: they bound the memory."""

SCALES = {
    "start": 0.3,
    "item_class": 0.15,
    "line_class": 0.3,
    "item": 0.1,
    "line": 0.1,
    "own": 0.35,
    "shopper": 0.1,
    "level": 0.3,
    "offer": 0.5,
    "ad": 0.5,
    "kinds": 0.5,
    "position": 2.0,
    "match": 1.0,
    "share": 1.0,
}
"""Prior standard deviations of the weights, by the last part of their names."""


class _Block(NamedTuple):
    """Some shoppers of a log, and what the fit needs of them that no weight changes.

    Attributes:
        rows: Their rows.
        scaled: Scaled features of their pages, shape (P, D).
        alike: As ``TasteClasses.alike``, by row, shape (n, 2, blocks).
        seen: What was seen of each row's kinds before, shape (n, speeds, blocks).
        visit: The visit of each page, shape (P,).
        turns: For each visit number the visits that have it and their shoppers.
    """

    rows: Rows
    scaled: Tensor
    alike: Tensor
    seen: Tensor
    visit: Tensor
    turns: list[tuple[Tensor, Tensor]]


def folds_of(shopper: npt.NDArray[np.int64]) -> Tensor:
    """Return which part each shopper of ``EncodedLog.shopper`` falls into, shape (n,)."""
    return torch.from_numpy(shopper % (FOLDS if len(shopper) >= FEW * FOLDS else 1))


def fit_taste_classes(
    model: TasteClasses, rows: Rows, seed: int, fold: Tensor
) -> tuple[TasteClasses, list[TasteClasses]]:
    """Fit classes to a log with a timeline by maximum a posteriori.

    Args:
        model: Unfitted classes, on the log's device.
        rows: The log.
        seed: Of the first weights.
        fold: The part that each shopper falls into, shape (n,).

    Returns:
        The classes; and for each part the same classes (their numbers agree) as the other parts alone have them.
    """
    generator = torch.Generator().manual_seed(seed)
    by_fold = [[_prepared(model, part) for part in _parts(rows, fold == f)] for f in range(int(fold.max()) + 1)]
    blocks = [block for some in by_fold for block in some]
    unfitted = {name: value.clone() for name, value in model.state_dict().items()}
    best_loss, best = math.inf, unfitted
    for _ in range(STARTS):
        model.load_state_dict(unfitted)
        _first_weights(model, generator)
        loss = _descend(model, blocks, 0, FIRST_STEPS)
        if loss < best_loss:
            best_loss, best = loss, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    _descend(model, blocks, FIRST_STEPS, STEPS)
    apart = [copy.deepcopy(model) for _ in by_fold]
    for f, other in enumerate(apart if len(by_fold) > 1 else ()):
        _descend(other, [block for g, some in enumerate(by_fold) if g != f for block in some], STEPS - REFIT, STEPS)
    return model.requires_grad_(False).eval(), [other.requires_grad_(False).eval() for other in apart]


@torch.no_grad()
def _first_weights(model: TasteClasses, generator: torch.Generator) -> None:
    """Draw first weights: classes differ a little, everything else has no effect."""
    for name, weights in model.named_parameters():
        if name.endswith(("weight", "bias")):
            spread = FIRST_SPREAD if "_class" in name else 0.0
            weights.copy_(spread * torch.randn(weights.shape, generator=generator))


def _descend(model: TasteClasses, blocks: list[_Block], first: int, last: int) -> float:
    """Take the steps from one number to another; return the loss at the last one."""
    optimizer = torch.optim.Adam(model.parameters(), lr=STEP_SIZE, fused=True)
    loss = math.inf
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = STEP_SIZE * min(1.0, (step + 1 - first) / 10) * (1.0 - 0.95 * step / STEPS)
        optimizer.zero_grad()
        penalty = _penalty(model)
        penalty.backward()
        total = penalty.detach()
        for block in blocks:
            part = -_log_marginal(model, block)
            part.backward()
            total = total + part.detach()
        optimizer.step()
        loss = float(total)
    return loss


def _penalty(model: TasteClasses) -> Tensor:
    """Return the negative log-density of the prior, but for a constant."""
    total = model.position.new_zeros(())
    for name, weights in model.named_parameters():
        *head, part = name.removesuffix(".weight").split(".")
        if part in ("base", "switch"):
            continue
        scale = 0.5 if part == "bias" else SCALES[part.split("_")[0] if part.startswith("kinds") else part]
        scale = scale / 2 if "purchase" in head and part != "bias" else scale  # purchases are few
        total = total + (weights / scale).square().sum() / 2
    return total


def _parts(rows: Rows, chosen: Tensor) -> Iterator[Rows]:
    """Yield the rows of the chosen shoppers, where a mask (n,) is True, some at a time."""
    assert rows.time is not None
    pages = rows.time.first[1:]
    last = torch.searchsorted(rows.page, pages)  # rows up to and with each shopper
    for number in range(int(last[-1]) // BLOCK + 1):
        who = ((last // BLOCK == number) & chosen.to(last.device)).nonzero().squeeze(1)
        if len(who):
            yield rows.take(rows.time.pages(who), rows.time.take(who))


@torch.no_grad()
def _prepared(model: TasteClasses, rows: Rows) -> _Block:
    assert rows.time is not None
    time, n_pages, size = rows.time, len(rows.shopper), len(model.position)
    slate = torch.full((n_pages, size), EMPTY, device=rows.item.device)
    slate[rows.page, rows.position] = rows.item
    alike = model.alike(slate)[rows.page, rows.position]
    seen = _seen_before(model, model.shown(slate), time)
    kinds = model.kinds[rows.item.clamp(min=0)]
    before = torch.stack([part[rows.page].gather(1, kinds) for part in seen], 1)
    opens = time.number == 0
    opens[time.first[:-1]] = True
    visit = opens.cumsum(0) - 1
    who = torch.repeat_interleave(torch.arange(len(time), device=visit.device), time.first[1:] - time.first[:-1])
    shopper_of = who[opens]
    number = torch.arange(len(shopper_of), device=visit.device) - visit[time.first[:-1]][shopper_of]
    turns = [(number == j).nonzero().squeeze(1) for j in range(int(number.max()) + 1)]
    return _Block(rows, model.scaled(rows.shopper), alike, before, visit, [(turn, shopper_of[turn]) for turn in turns])


def _seen_before(model: TasteClasses, shown: Tensor, time: Timeline) -> list[Tensor]:
    """Return what was seen of every kind before each page, shape (P, values) for each speed."""
    count, found = time.first[1:] - time.first[:-1], []
    for page, visit in FADES:
        seen, here = torch.zeros_like(shown), shown.new_zeros(len(time), model.values)
        for turn in range(int(count.max())):
            who = (count > turn).nonzero().squeeze(1)
            pages = time.first[:-1][who] + turn
            before = torch.where((time.number[pages] == 0)[:, None], visit * here[who], here[who])
            seen[pages] = before
            here[who] = page * before + shown[pages]
        found.append(seen)
    return found


def _log_marginal(model: TasteClasses, block: _Block) -> Tensor:
    """Return the log-likelihood of all shoppers of a block, summed over their paths of classes, a scalar."""
    rows = block.rows
    around = torch.einsum("nsb,sb->n", block.alike, model.kinds_around)
    around = around + torch.einsum("nsb,sb->n", block.seen, model.kinds_seen)
    # What a row's shopper adds is the same for a whole page.
    alike = model.click.shopper(block.scaled).squeeze(1)[rows.page] + around
    tables = model.utilities()
    parts = (rows.item.clamp(min=0), rows.line, rows.offer, rows.ad)
    click = part_sum(tables[0], parts) + alike[:, None]
    log_examined = (model.position - model.position.max())[rows.position]
    likely = log_likelihood(click, None, log_examined, rows.clicked, None)
    visits = likely.new_zeros(int(block.visit[-1]) + 1, CLASSES).index_add(0, block.visit[rows.page], likely)
    if model.purchase is not None and tables[1] is not None and rows.converted is not None:
        which = (rows.clicked > 0).nonzero().squeeze(1)
        own = part_sum(tables[1], tuple(None if part is None else part[which] for part in parts))
        odds = own + model.purchase.shopper(block.scaled)[rows.page[which]] + model.match * alike[which, None]
        bought = rows.converted[which, None]
        known = nn.functional.logsigmoid(torch.where(bought > 0, odds, -odds)).masked_fill(bought.isnan(), 0.0)
        visits = visits.index_add(0, block.visit[rows.page[which]], known)
    time = rows.time
    assert time is not None
    classes = (model.start(block.scaled[time.first[:-1]]) + model.share).log_softmax(1)
    total: Tensor = classes.new_zeros(())
    for turn, (visit, who) in enumerate(block.turns):
        here = classes[who]
        both = (model.moved(here) if turn else here) + visits[visit]
        evidence = both.logsumexp(1, keepdim=True)
        total = total + evidence.sum()
        classes = classes.index_copy(0, who, both - evidence)
    return total


def find_tastes(
    rows: Rows, builder: ContextBuilder, size: int, recorded: Recorded, lines: Lines | None, seed: int, fold: Tensor
) -> tuple[TasteClasses, list[TasteClasses]]:
    """Return the classes of taste that a log with a timeline shows, and those that do not know a part of its shoppers.

    ``seed`` and ``fold`` are as in ``fit_taste_classes``, the other arguments as for
    `hawker.simulators.shopper.ShopperModel`.
    """
    clicks = float(rows.clicked.sum())
    bought = 0.0 if rows.converted is None else float(rows.converted.nan_to_num().sum())
    rates = (clicks + 1.0) / (len(rows) + 2.0), (bought + 1.0) / (clicks + 2.0)
    unfitted = TasteClasses(builder, size, recorded, lines, *rates).to(rows.item.device)
    return fit_taste_classes(unfitted, rows, seed, fold)
