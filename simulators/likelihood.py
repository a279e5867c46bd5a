"""What a shopper model expects of logged pages, and how likely that makes what came of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawker.simulators.memory import days_at_risk
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import ShopperModel


@dataclass(frozen=True)
class Predicted:
    """What a member says of logged pages, as log-odds or log-probabilities; a head it lacks is None.

    Attributes:
        click: log P(click) of each row, shape (n,).
        conversion: Log-odds of a purchase given a click, shape (n,).
        amount: Mean logarithm of a purchase's worth, shape (n,).
        leave: Log-odds that the visit ends with a page, shape (P,).
        back: Log-odds of returning on a day of each interval, after each page, shape (P, intervals).
    """

    click: Tensor
    conversion: Tensor | None = None
    amount: Tensor | None = None
    leave: Tensor | None = None
    back: Tensor | None = None


def recall(model: ShopperModel, rows: Rows, keep_own: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return what a member's heads see before each page, and what its memory carries on from it.

    Returns:
        Scaled features and state, shape (P, D + H); what is carried, shape (P, H), None without a memory or a timeline.
    """
    state = after = None
    if model.memory is not None and rows.time is not None:
        state, after = model.memory.run(model.scaled(rows.shopper), model.summary(rows, keep_own), rows.time)
    return model.person(rows.shopper, state), after


def predict_rows(
    model: ShopperModel, rows: Rows, keep_own: Tensor | None = None, *, clicked_only: bool = False
) -> Predicted:
    """Return what a member expects at each page, given all the pages of the same shopper before it.

    Args:
        model: The member.
        rows: The pages.
        keep_own: 1 where an item's own vectors take part and 0 where they are dropped, shape (n_items,).
        clicked_only: Leave purchases at 0 where nothing was clicked: learning has no use for them.
    """
    person, after = recall(model, rows, keep_own)
    timed = rows.time if after is not None else None
    odds = model.log_odds(person, rows, keep_own)
    conversion = None
    if model.conversion is not None and clicked_only:
        which = rows.clicked.nonzero().squeeze(1)
        found = model.conversion_odds(person, rows.only(which), odds[which], keep_own)
        conversion = torch.zeros_like(odds).index_copy(0, which, found)
    elif model.conversion is not None:
        conversion = model.conversion_odds(person, rows, odds, keep_own)
    return Predicted(
        click=model.log_click(odds, rows),
        conversion=conversion,
        amount=model.log_amount(rows) if model.recorded.revenue else None,
        leave=None if timed is None or after is None else model.leave_odds(after, timed.number),
        back=None if model.back is None or after is None else model.return_odds(after),
    )


def log_loss(log_probability: Tensor, clicked: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of clicks in nats, a scalar."""
    bounded = log_probability.clamp(max=-1e-6)
    return -(clicked * bounded + (1 - clicked) * torch.log1p(-bounded.exp())).mean()


def negative_log_likelihood(model: ShopperModel, rows: Rows, predicted: Predicted) -> Tensor:
    """Return the joint negative log-likelihood of what came of some pages, in nats, a scalar."""
    total = log_loss(predicted.click, rows.clicked) * len(rows)
    if predicted.conversion is not None and rows.converted is not None:
        known = (rows.clicked > 0) & ~rows.converted.isnan()
        bce = nn.functional.binary_cross_entropy_with_logits
        total = total + (bce(predicted.conversion, rows.converted.nan_to_num(), reduction="none") * known).sum()
    if predicted.amount is not None and rows.revenue is not None:
        paid = rows.revenue.nan_to_num() > 0
        error = rows.revenue.nan_to_num().clamp(min=1e-6).log() - predicted.amount
        spread = model.amount_spread
        total = total + ((error.square() * (-2 * spread).exp() / 2 + spread) * paid).sum()
    if predicted.leave is not None and rows.time is not None:
        closes = rows.time.closes
        bce = nn.functional.binary_cross_entropy_with_logits
        total = total + (bce(predicted.leave, closes.nan_to_num(), reduction="none") * ~closes.isnan()).sum()
    if predicted.back is not None and rows.time is not None:
        ends = ~rows.time.returned.isnan()
        passed, came = days_at_risk(rows.time.wait, rows.time.returned.nan_to_num())
        odds = predicted.back
        waited = passed * nn.functional.softplus(odds) - came * nn.functional.logsigmoid(odds)
        total = total + (waited.sum(1) * ends).sum()
    return total
