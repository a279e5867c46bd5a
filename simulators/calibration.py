"""Recalibration of an ensemble: a line with a bend through its log-odds, head by head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hawker.simulators.shopper import IDENTITY, calibrated, log_odds

FEW = 300.0
"""Events that two members have not seen, of which half is believed of what they tell."""

STEEPEST = 0.9
"""Largest share of the slope that a bend takes away on its flat side."""


def calibrate(
    raw: Tensor, happened: Tensor, unseen: Tensor, times: Tensor | None = None, *, bend: bool = False
) -> Tensor:
    """Return a, b, c, m of log-odds z -> a + b z + c max(z - m, 0), fitted to the mean of the members' probabilities.

    An event is predicted by the members that have not learned from it, often one or two: their log-odds vary more than
    those of all members together, by noise, which flattens the slope. It is raised by the ratio of the two variances
    (regression dilution; Fuller 1987, Measurement Error Models).

    The level at the mean m of the log-odds, the slope and the bend c have Gaussian priors around no change, with
    standard deviations 0.1, 0.25 and 0.5: they weigh as much as a hundred clicks or fewer, so that ten clicks can
    neither move the click rate by half nor turn a model's ranking around. No bend makes a rising curve fall.

    Args:
        raw: The members' probabilities of some events, shape (M, n).
        happened: 1 where the event happened, 0 where not, shape (n,).
        unseen: 1 where a member has not learned from an event, shape (M, n).
        times: How often each event counts, shape (n,); None for once.
        bend: Whether the line (Platt 1999) may bend, as where a model is too sure at one end.
    """
    usable = unseen.sum(0) > 0
    times = torch.ones_like(happened) if times is None else times
    usable &= times > 0
    raw, happened, times = raw[:, usable].double(), happened[usable].double(), times[usable].double()
    unseen = unseen[:, usable].double()
    weight = unseen / unseen.sum(0)
    # In single precision a line search can overflow where predictions are certain.
    identity = IDENTITY[0].to(raw)
    if not len(happened):
        return identity.float()
    total = times.sum()
    curve = _Curve.of(log_odds(raw), times)
    scale = torch.tensor([0.1, 0.25, 0.5], device=raw.device, dtype=raw.dtype)
    change = torch.zeros(3, device=raw.device, dtype=raw.dtype, requires_grad=True)  # level, slope, bend
    optimizer = torch.optim.LBFGS([change], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        p = (calibrated(raw, curve(change[0], 1.0 + change[1], change[2] * bend)) * weight).sum(0)
        p = p.clamp(1e-9, 1 - 1e-6)
        loss = -(times * (happened * p.log() + (1 - happened) * torch.log1p(-p))).sum() / total
        loss = loss + (change / scale).square().sum() / (2 * total)
        loss.backward()
        return loss

    optimizer.step(closure)
    if not bool(torch.isfinite(change).all()):
        return identity.float()
    level, slope, bent = change.detach()
    more = _dilution(raw, unseen, weight, times)
    slope = (1.0 + slope) * more
    most = STEEPEST * slope.clamp(min=0.0) / (0.5 + curve.lean.abs())
    return curve(level, slope, (bent * more).clamp(-most, most)).float()


@dataclass(frozen=True, eq=False)
class _Curve:
    """Curves of which level, slope and bend say three different things about some log-odds.

    The bend is taken apart from the line through those log-odds, so that neither their mean nor their spread hangs on
    it: where it cannot be told, as of two values, it stays away.

    Attributes:
        mean, lean, height: The mean log-odds, and the line through a bend of 1 there: its slope, its level.
    """

    mean: Tensor
    lean: Tensor
    height: Tensor

    @classmethod
    def of(cls, odds: Tensor, times: Tensor) -> _Curve:
        """Return the curves about log-odds (M, n), each counting so often (n,)."""
        total = times.sum() * len(odds)
        mean = (odds * times).sum() / total
        apart = odds - mean
        bend = apart.abs() / 2
        lean = (times * bend * apart).sum() / (times * apart.square()).sum().clamp(min=1e-9)
        return cls(mean, lean, (times * bend).sum() / total)

    def __call__(self, level: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
        """Return a, b, c, m of ``recalibrated``, shape (4,)."""
        below = slope - bend * (0.5 + self.lean)
        return torch.stack([level + (1.0 - below) * self.mean - bend * self.height, below, bend, self.mean])


def _dilution(raw: Tensor, unseen: Tensor, weight: Tensor, times: Tensor) -> Tensor:
    """Return how much more the log-odds of those who judge an event vary than those of all members, 1 to 2, a scalar.

    No event is unseen by all members, and of what it has learned from a member says too much. The variance of their
    mean is the mean of their covariances: it is corrected by what these are among events that neither of two has
    learned from, over what they are among all; the less, the fewer such events there are.
    """
    total = times.sum()

    def spread(probability: Tensor) -> Tensor:
        z = log_odds(probability)
        return (times * (z - (times * z).sum() / total).square()).sum() / total

    z, own = log_odds(raw), unseen * times
    everything = z - (z * times).sum(1, keepdim=True) / total
    apart = z - (z * own).sum(1, keepdim=True) / own.sum(1, keepdim=True).clamp(min=1e-9)
    both = own @ unseen.T
    known = ((everything * times) @ everything.T / total).mean()
    fresh = ((apart * own) @ (apart * unseen).T / both.clamp(min=1e-9)).mean()
    trust = both.min() / (both.min() + FEW)
    everybody = spread(raw.mean(0)) * (fresh / known.clamp(min=1e-9)).clamp(0.5, 2.0) ** trust
    ratio = spread((raw * weight).sum(0)) / everybody if everybody > 1e-9 else torch.ones_like(total)
    return ratio.clamp(1.0, 2.0)
