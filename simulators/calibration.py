"""Recalibration of an ensemble: log-odds z become a + b z, head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from hawker.simulators.shopper import calibrated, log_odds

FEW = 300.0
"""Events that two members have not seen, of which half is believed of what they tell."""


def calibrate(raw: Tensor, happened: Tensor, unseen: Tensor, times: Tensor | None = None) -> Tensor:
    """Return a and b of log-odds z -> a + b z, fitted to the mean of the members' probabilities.

    An event is predicted by the members that have not learned from it, often one or two: their log-odds vary more than
    those of all members together, by noise, which flattens the slope. It is raised by the ratio of the two variances
    (regression dilution; Fuller 1987, Measurement Error Models).

    The level at the mean z and the slope b have Gaussian priors around no change, with standard deviations 0.1 and
    0.25: they weigh as much as a hundred clicks or fewer, so that ten clicks can neither move the click rate by half
    nor turn a model's ranking around.

    Args:
        raw: The members' probabilities of some events, shape (M, n).
        happened: 1 where the event happened, 0 where not, shape (n,).
        unseen: 1 where a member has not learned from an event, shape (M, n).
        times: How often each event counts, shape (n,); None for once.
    """
    usable = unseen.sum(0) > 0
    times = torch.ones_like(happened) if times is None else times
    usable &= times > 0
    raw, happened, times = raw[:, usable].double(), happened[usable].double(), times[usable].double()
    unseen = unseen[:, usable].double()
    weight = unseen / unseen.sum(0)
    # In single precision a line search can overflow where predictions are certain.
    identity = torch.tensor([0.0, 1.0], device=raw.device, dtype=raw.dtype)
    if not len(happened):
        return identity.float()
    total = times.sum()
    mean = (log_odds(raw) * times).sum() / (total * len(raw))
    scale = torch.tensor([0.1, 0.25], device=raw.device, dtype=raw.dtype)
    change = torch.zeros(2, device=raw.device, dtype=raw.dtype, requires_grad=True)  # level, slope
    optimizer = torch.optim.LBFGS([change], max_iter=100, line_search_fn="strong_wolfe")

    def calibration() -> Tensor:
        return torch.stack([change[0] - change[1] * mean, 1.0 + change[1]])

    def closure() -> Tensor:
        optimizer.zero_grad()
        p = (calibrated(raw, calibration()) * weight).sum(0).clamp(1e-9, 1 - 1e-6)
        loss = -(times * (happened * p.log() + (1 - happened) * torch.log1p(-p))).sum() / total
        loss = loss + (change / scale).square().sum() / (2 * total)
        loss.backward()
        return loss

    optimizer.step(closure)
    if not bool(torch.isfinite(change).all()):
        return identity.float()
    level, slope = change.detach()
    slope = (1.0 + slope) * _dilution(raw, unseen, weight, times)
    return torch.stack([level + (1.0 - slope) * mean, slope]).float()


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
