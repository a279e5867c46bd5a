"""What classes of taste expect of logged pages, given the pages of the same shopper before: members add to it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hawker.shop.decision import EMPTY
from hawker.simulators.rows import Rows, Timeline
from hawker.simulators.taste_classes import CLASSES, TasteClasses

BLOCK = 200_000
"""Rows read at once, whole shoppers: they bound the memory."""


@torch.no_grad()
def believing(tastes: TasteClasses | None, rows: Rows) -> Rows:
    """Return rows that also tell what was believed of their shoppers before each page; unchanged without classes."""
    return rows if tastes is None else replace(rows, believed=believed(tastes, beliefs_before(tastes, rows), rows))


@torch.no_grad()
def believing_apart(tastes: list[TasteClasses], fold: Tensor, rows: Rows) -> Rows:
    """Return rows that also tell what classes believed that do not know their shoppers.

    Classes tell more of the shoppers that they were fitted to than of others. Members that learn to add to that, and a
    calibration by it, would trust them too much (Breiman 1996, Stacked Regressions).

    Args:
        tastes: For each part of the shoppers, classes fitted to the others.
        fold: The part that each shopper falls into, shape (n,).
        rows: Their rows.
    """
    assert rows.time is not None
    told, fold = rows.affinity.new_zeros(len(rows), 2), fold.to(rows.page.device)
    for number, classes in enumerate(tastes):
        pages = rows.time.pages(who := (fold == number).nonzero().squeeze(1))
        own = torch.zeros(len(rows.shopper), dtype=torch.bool, device=told.device).index_fill(0, pages, value=True)
        found = believing(classes, rows.take(pages, rows.time.take(who))).believed
        assert found is not None
        told[own[rows.page]] = found
    return replace(rows, believed=told)


@torch.no_grad()
def believed(tastes: TasteClasses, beliefs: Tensor, rows: Rows) -> Tensor:
    """Return what is expected of rows: log-odds of a click and of a purchase, less their constants, shape (n, 2).

    Args:
        tastes: The classes.
        beliefs: Probabilities of the classes at each page of the rows, shape (P, CLASSES).
        rows: What was shown.
    """
    tables, scaled, found = tastes.utilities(), tastes.scaled(rows.shopper), []
    for some in torch.arange(len(rows), device=rows.item.device).split(BLOCK):
        parts = tuple(None if part is None else part[some] for part in _parts(rows))
        odds = tastes.log_odds(tables, scaled[rows.page[some]], parts)
        found.append(tastes.expected(beliefs[rows.page[some]], *odds))
    told = torch.cat(found) if found else rows.affinity.new_zeros(0, 2)
    return told if told.shape[1] == 2 else torch.nn.functional.pad(told, (0, 1))


@torch.no_grad()
def beliefs_before(tastes: TasteClasses, rows: Rows) -> Tensor:
    """Return the probabilities of the classes before each page, given the pages before, shape (P, CLASSES)."""
    if rows.time is None:
        return tastes.beliefs(tastes.begin(tastes.scaled(rows.shopper)))
    time = rows.time
    number = torch.searchsorted(rows.page, time.first[1:]) // BLOCK  # of the block that each shopper is in
    found = [
        _beliefs(tastes, rows.take(time.pages(who), part := time.take(who)), part)
        for block in range(int(number[-1]) + 1)
        if len(who := (number == block).nonzero().squeeze(1))
    ]
    return torch.cat(found)


def _beliefs(tastes: TasteClasses, rows: Rows, time: Timeline) -> Tensor:
    n_pages, size = len(rows.shopper), len(tastes.position)
    scaled, place = tastes.scaled(rows.shopper), rows.page * size + rows.position

    def laid(values: Tensor, empty: float) -> Tensor:
        pages = values.new_full((n_pages * size, *values.shape[1:]), empty).index_copy(0, place, values)
        return pages.view(n_pages, size, *values.shape[1:])

    click, purchase = tastes.log_odds(tastes.utilities(), scaled[rows.page], _parts(rows))
    click, purchase = laid(click, 0.0), None if purchase is None else laid(purchase, 0.0)
    slate, clicked = laid(rows.item, EMPTY), laid(rows.clicked, 0.0)
    converted = None if rows.converted is None else laid(rows.converted, torch.nan)
    count, found = time.first[1:] - time.first[:-1], scaled.new_zeros(n_pages, CLASSES)
    opens = torch.cat([time.number == 0, torch.ones_like(time.number[:1], dtype=torch.bool)])
    state = tastes.begin(scaled[time.first[:-1]])
    for turn in range(int(count.max())):
        who = (count > turn).nonzero().squeeze(1)
        page = time.first[:-1][who] + turn
        found[page] = tastes.beliefs(state[who])
        odds = click[page], None if purchase is None else purchase[page]
        came = clicked[page], None if converted is None else converted[page]
        # Who has no page any more is not asked about again: whether they left then makes no difference.
        state[who] = tastes.after(state[who], odds, slate[page], *came, opens[page + 1])
    return found


def _parts(rows: Rows) -> tuple[Tensor | None, ...]:
    """Return the parts of rows in the order of ``TasteClasses.log_odds``."""
    return rows.item.clamp(min=0), rows.line, rows.offer, rows.ad
