"""Log-probabilities and entropies of choices in one step each, with their gradients written out.

What autograd records of the same formulas takes about twice as long: tables of some dozen columns are small, and every
operation costs something. Gradients are of first order only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RAREST = -50.0
"""Log-probability below which nothing adds to an entropy; where exp underflows, a CPU takes thirty times as long."""

NARROW = 16
"""Columns up to which torch's own log-softmax takes several times as long as its definition on a CPU."""


def one_of_each(logits: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of picks among columns, and the entropy of a row in nats.

    Args:
        logits: Shape (B, n).
        picks: Columns, shape (B, m), int64.

    Returns:
        Shapes (B, m) and (B,).
    """
    found: tuple[Tensor, Tensor] = _OneOfEach.apply(logits, picks)  # type: ignore[no-untyped-call]
    return found


class _OneOfEach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
        if logits.shape[1] > NARROW:
            log_probs = logits.log_softmax(1)
        else:
            log_probs = logits - logits.amax(1, keepdim=True)
            log_probs = log_probs.sub_(log_probs.exp().sum(1, keepdim=True).log_())
        bounded = log_probs.clamp(min=RAREST)
        shares = bounded.exp()
        entropy = -torch.linalg.vecdot(shares, bounded)
        ctx.save_for_backward(bounded, shares, entropy, picks)
        return log_probs.gather(1, picks), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_picks: Tensor, of_entropy: Tensor) -> tuple[Tensor, None]:
        log_probs, shares, entropy, picks = ctx.saved_tensors
        plain = torch.addcmul(of_picks.sum(1), of_entropy, entropy).neg_()[:, None]
        found = torch.addcmul(plain, of_entropy[:, None], log_probs, value=-1.0).mul_(shares)
        return found.scatter_add_(1, picks, of_picks), None


def ranked(logits: Tensor, left: Tensor, picks: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability and conditional entropies of Plackett-Luce slates, summed over their slots, (B,) each.

    Args:
        logits: From -40 to 40, shape (B, C).
        left: 1 for an eligible candidate that is not picked, else 0, shape (B, C).
        picks: Candidates from the last slot to the first, shape (B, K), int64; any in an empty slot.
        filled: 1 for a slot that is filled, else 0, shape (B, K).
    """
    found: tuple[Tensor, Tensor] = _Ranked.apply(logits, left, picks, filled)  # type: ignore[no-untyped-call]
    return found


class _Ranked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, left: Tensor, picks: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        weights = logits.exp()
        chosen, weight = logits.gather(1, picks), weights.gather(1, picks).mul_(filled)
        never = weights.mul_(left)
        until = filled.new_ones(picks.shape[1], picks.shape[1]).triu_()  # sums from the last slot up to each
        total = torch.addmm(never.sum(1, keepdim=True), weight, until).add_(1.0 - filled)
        product = torch.addmm(torch.linalg.vecdot(never, logits)[:, None], weight * chosen, until)
        log_total, inverse = total.log().mul_(filled), filled / total
        mean = product.mul_(inverse)
        ctx.save_for_backward(logits, never, picks, filled, chosen, weight, until, inverse, mean)
        return (chosen * filled).sub_(log_total).sum(1), (log_total - mean).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_prob: Tensor, of_entropy: Tensor) -> tuple[Tensor, None, None, None]:
        logits, never, picks, filled, chosen, weight, until, inverse, mean = ctx.saved_tensors
        of_log_prob, of_entropy = of_log_prob[:, None], of_entropy[:, None]
        of_product = of_entropy * -inverse
        of_total = torch.addcmul(of_entropy - of_log_prob, of_entropy, mean).mul_(inverse)
        both = of_total + of_product
        own = torch.addcmul(both @ until.T, of_product @ until.T, chosen).mul_(weight).addcmul_(filled, of_log_prob)
        rest, times = both.sum(1, keepdim=True), of_product.sum(1, keepdim=True)
        found = torch.addcmul(rest, times, logits).mul_(never)
        return found.scatter_add_(1, picks, own), None, None, None
